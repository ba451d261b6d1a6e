"""Weights made where DeepSpeed wants them are those that it would have made of float32 ones."""

import dataclasses

import pytest
import torch
from train_cases import MODEL, small_job

from moxin.model import checkpoint
from moxin.model.decoder import Decoder
from moxin.train.build import build
from moxin.train.worker import placing


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("initial", [False, True])
def test_weights_in_16_bits_are_the_rounded_ones(tmp_path, tied, initial):
    config = dataclasses.replace(MODEL, tie_embeddings=tied)
    job = small_job(model=config, precision="bf16")
    if initial:
        checkpoint.save(Decoder(config, seed=8), config, str(tmp_path))
        job = dataclasses.replace(job, initial=str(tmp_path))
    assert placing(job, 0) == ("bfloat16", torch.device("cpu"))
    made, wide = build(job, *placing(job, 0)), build(job)
    assert {p.dtype for p in made.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in wide.parameters()} == {torch.float32}
    names = [name for name, _ in made.named_parameters()]
    assert names == [name for name, _ in wide.named_parameters()]
    assert all(torch.equal(made.get_parameter(n), wide.get_parameter(n).bfloat16()) for n in names)
    assert (made.head.weight is made.embedding.weight) == tied


@pytest.mark.parametrize(("precision", "zero_stage"), [("fp32", "1"), ("fp32", "3"), ("bf16", "0")])
def test_others_stay_in_float32(precision, zero_stage):
    assert placing(small_job(precision=precision, zero_stage=zero_stage), 0)[0] is None
