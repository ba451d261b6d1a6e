"""Pretraining phases: whose data is in a step, and what makes a phase another one."""

from dataclasses import asdict, replace

import numpy as np
import pytest

from moxin import storage
from moxin.artifact import Artifact
from moxin.config import override
from moxin.recipe import PhaseConfig
from moxin.recipes.demo import smoke
from moxin.tokens.loader import PhaseData
from moxin.tokens.store import dtype_for, writing
from moxin.train.pretrain import PhaseBatches, schedule
from moxin.train.run import stage

PHASE = PhaseConfig("p", 2048, 16, {"a": 1.0})


@pytest.fixture(scope="module")
def tokens_url(tmp_path_factory) -> str:
    """A store of one source: 300 documents of 3 to 30 tokens."""
    url, rng = str(tmp_path_factory.mktemp("store")), np.random.default_rng(0)
    with writing(url, "shards/a-00000.bin", dtype_for(1000)) as writer:
        for _ in range(300):
            writer.append([1, *rng.integers(7, 1000, rng.integers(1, 29)).tolist(), 2])
    sources = {"a": {"shards": [asdict(writer.shard)]}}
    described = {"dtype": dtype_for(1000).name, "vocab_size": 1000, "sources": sources}
    storage.write_json(storage.join(url, "store.json"), described)
    return url


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("micro_batch", [16, 50, 4096])
def test_a_step_is_the_same_samples_for_any_workers_and_micro_batches(tokens_url, world, micro_batch):
    batches = PhaseBatches(tokens_url, PHASE, seed=3, global_batch=128, micro_batch=micro_batch)
    assert batches.n_steps == 16
    assert batches.size(0) == 128
    data = PhaseData(tokens_url, PHASE, seed=3)
    for i in (0, 5, 15):
        micros = [batches.step(i, rank, world) for rank in range(world)]
        assert len({len(of_rank) for of_rank in micros}) == 1
        assert all(part["tokens"].size <= max(micro_batch, 16) for of_rank in micros for part in of_rank)
        whole = data.batch(i * 8, 8)
        for name, expected in (
            ("tokens", whole.tokens_BT),
            ("targets", whole.targets_BT),
            ("segments", whole.segments_BT),
        ):
            got = np.concatenate([part[name] for of_rank in micros for part in of_rank])
            np.testing.assert_array_equal(got, expected)


def test_workers_that_do_not_divide_the_batch_are_told(tokens_url):
    with pytest.raises(ValueError, match="8 sequences a step do not divide among 3 workers"):
        PhaseBatches(tokens_url, PHASE, 3, 128, 128).step(0, 0, 3)


def test_one_schedule_spans_the_phases():
    pretrain = smoke().pretrain
    first, second, third = (schedule(pretrain, i) for i in range(3))
    steps = 24 * 1024 // 1024
    assert (first.first_step, second.first_step, third.first_step) == (0, steps, 2 * steps)
    assert {s.total_steps for s in (first, second, third)} == {3 * steps}
    assert first.warmup_steps == 4


def test_the_key_of_a_phase_follows_what_decides_its_weights():
    tokens = Artifact("tokenize", "0123456789ab", "runs/x/tokenize-0123456789ab", {"counts": {}})
    other = replace(tokens, key="ba9876543210")

    def key(setting="", index=0, tokens=tokens, previous=None):
        recipe = override(smoke(), *setting.split("=")) if setting else smoke()
        return stage(recipe, index, tokens, previous).key

    for setting in (
        "pretrain.learning_rate=1e-4",
        "pretrain.phases.phase1.tokens=4096",
        "pretrain.phases.phase3.tokens=4096",  # the cosine spans all phases
        "pretrain.seed=9",
        "model.n_layers=3",
        "scaling.precision=fp32",
    ):
        assert key(setting) != key(), setting
    for setting in (
        "pretrain.micro_batch=256",
        "pretrain.checkpoint_every=7",
        "scaling.n_workers=4",
        "pretrain.phases.phase3.context=32",
        "sft.epochs=2",
    ):
        assert key(setting) == key(), setting
    assert key(tokens=other) != key()
    assert key(index=1, previous=tokens) != key(index=1, previous=other)
