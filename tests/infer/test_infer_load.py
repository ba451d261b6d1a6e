"""Folders as inference weights: the same as through the decoder, quantised within memory, broken ones refused."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from infer_helpers import ALL, PROMPTS, answer_all, decoder

from moxin.infer.engine import Engine
from moxin.infer.load import converted, load
from moxin.infer.memory import weight_bytes
from moxin.infer.model import InferenceModel
from moxin.infer.sampling import SamplingParams
from moxin.model import checkpoint
from moxin.model.decoder import Decoder
from moxin.recipe import ModelConfig


@pytest.mark.parametrize("name", ["mistral, window", "mpt", "qk_norm", "learned positions"])
@pytest.mark.parametrize("kind", [None, "int8"])
def test_a_folder_is_the_decoder(tmp_path: Path, name: str, kind: str | None) -> None:
    model = decoder(ALL[name])
    checkpoint.save(model, model.config, str(tmp_path), max_shard_bytes=20_000)
    loaded = load(str(tmp_path), kind)
    ours = InferenceModel.of(model)
    params = SamplingParams(max_tokens=10)
    expected = answer_all(Engine(converted(ours, kind) if kind else ours), PROMPTS, params)
    assert answer_all(Engine(loaded), PROMPTS, params) == expected


def test_weights_take_what_the_arithmetic_says() -> None:
    config = ModelConfig(n_layers=2, d_model=64, n_heads=4, n_kv_heads=2, d_ff=96, vocab_size=128)
    ours = InferenceModel.of(Decoder(config))
    assert ours.n_bytes == weight_bytes(config, "float32")
    norms = 5 * 64
    for kind in ("int8", "int4"):
        assert (
            converted(ours, kind).n_bytes == weight_bytes(config, kind) + norms * 2
        )  # float32 here, 16 bits there


@pytest.mark.slow
def test_quantising_needs_no_more_than_the_result_and_a_tensor(tmp_path: Path) -> None:
    """Peak memory of a process that loads 440 MB of bfloat16 as int8, above what it has after its imports."""
    config = ModelConfig(
        n_layers=12, d_model=1024, n_heads=16, n_kv_heads=4, d_ff=4096, vocab_size=16000, max_seq_len=512
    )
    checkpoint.save(Decoder(config), config, str(tmp_path), "bfloat16", 60_000_000)
    script = (
        "import resource, sys, torch; from moxin.infer.load import load; import kernels.linear\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "kernels.linear.int8_weight(torch.randn(64, 64)); before = peak(); model = load(sys.argv[1], 'int8')\n"
        "print(peak() - before, model.n_bytes)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True
    )
    grown, size = map(int, ran.stdout.split())
    assert size < 260_000_000
    assert grown < size + 60_000_000 + 4 * 16000 * 1024 * 2  # a shard, and a tensor while it is widened


@pytest.mark.parametrize(
    ("kind", "spoil", "message"),
    [
        ("int9", lambda folder: None, "weights = 'int9': one of float32"),
        ("int4", lambda folder: None, r"weights = int4: model\.d_model = 48"),
        (None, lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (None, lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors missing"),
        (None, lambda folder: _edit(folder, model_type="gpt2"), "model_type = 'gpt2'"),
        (None, lambda folder: _edit(folder, num_hidden_layers=3), "is missing"),
        (None, lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 100), "no safetensors file"),
    ],
)
def test_broken_folders_are_refused(tmp_path: Path, kind: str | None, spoil: object, message: str) -> None:
    model = decoder()
    checkpoint.save(model, model.config, str(tmp_path))
    spoil(tmp_path)
    with pytest.raises(ValueError, match=message):
        load(str(tmp_path), kind)


def test_a_weight_that_is_not_finite_is_refused_by_name(tmp_path: Path) -> None:
    model = decoder(dataclasses.replace(ALL["mistral"]))
    with torch.no_grad():
        model.blocks[1].mlp.down.weight[3, 4] = float("nan")
    checkpoint.save(model, model.config, str(tmp_path))
    with pytest.raises(ValueError, match=r"model\.layers\.1\.mlp\.down_proj\.weight: a weight holds NaN"):
        load(str(tmp_path), "int8")


def _edit(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
