"""Pretraining phases: whose data is in a step, and what makes a phase another one."""

from dataclasses import replace

from moxin.artifact import Artifact
from moxin.config import override
from moxin.recipes.demo import smoke
from moxin.train.pretrain import schedule
from moxin.train.run import stage


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
