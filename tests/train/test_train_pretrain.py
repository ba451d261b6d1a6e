"""Pretraining phases: whose data is in a step, and what makes a phase another one."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from stores import curriculum, documents, write_store

from moxin.artifact import Artifact
from moxin.config import override
from moxin.recipe import PhaseConfig, PretrainConfig
from moxin.recipes.demo import smoke
from moxin.train.job import Schedule
from moxin.train.pretrain import PhaseBatches, Sizes, context_at, schedule
from moxin.train.run import stage
from moxin.train.schedule import learning_rate


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


def small_phase(**changes):
    return PhaseConfig(**{"name": "p", "tokens": 100_000, "context": 100, "mix": {"a": 1.0}, **changes})


def test_a_batch_grows_linearly_and_no_row_is_missing_or_there_twice():
    sizes = Sizes(small_phase(), full=2000, initial=500, warmup=20_000)
    rows = [sizes.rows(i) for i in range(sizes.n_steps)]
    assert rows[0] == 5
    assert rows == sorted(rows)
    assert rows[-1] == 20
    assert [sizes.first(i) for i in range(sizes.n_steps)] == [sum(rows[:i]) for i in range(sizes.n_steps)]
    assert 100 * sum(rows) <= 100_000 < 100 * (sum(rows) + 20)
    seen = 0
    for n in rows:
        assert n == (20 if seen >= 20_000 else (500 + 1500 * seen // 20_000) // 100)
        seen += n * 100
    within = sizes.steps_within(50)
    assert sum(rows[:within]) <= 50 < sum(rows[: within + 1])
    later = Sizes(small_phase(), full=2000, initial=500, warmup=20_000, before=20_000)
    assert {later.rows(i) for i in range(later.n_steps)} == {20}


def test_warm_up_is_counted_in_tokens_also_while_the_batch_grows():
    phases = (small_phase(name="one", tokens=10_000), small_phase(name="two"))
    pretrain = PretrainConfig(
        phases=phases,
        global_batch=2000,
        initial_global_batch=500,
        batch_warmup_tokens=20_000,
        warmup_tokens=12_000,
    )
    schedules = [schedule(pretrain, i) for i in range(2)]
    first = Sizes(phases[0], 2000, 500, 20_000)
    second = Sizes(phases[1], 2000, 500, 20_000, before=10_000)
    assert schedules[0].warmup_steps == schedules[1].warmup_steps > first.n_steps
    assert schedules[1].first_step == first.n_steps
    assert schedules[0].total_steps == first.n_steps + second.n_steps


def test_a_phase_with_its_own_rate_has_its_own_schedule():
    phases = (
        small_phase(name="one"),
        small_phase(name="anneal", learning_rate=1e-4),
        small_phase(name="three"),
    )
    pretrain = PretrainConfig(phases=phases, global_batch=1000, warmup_tokens=5000)
    one, own, three = (schedule(pretrain, i) for i in range(3))
    assert (own.first_step, own.total_steps, own.warmup_steps) == (0, 100, 5)
    assert (one.total_steps, three.first_step) == (200, 100)


@pytest.mark.parametrize("seen", [0, 1, 2499, 2500, 7499, 7500, 9999, 10_000])
def test_contexts_double_at_even_distances(seen):
    phase = small_phase(context=128, initial_context=8, context_warmup_tokens=10_000)
    assert context_at(phase, seen) == {0: 8, 1: 16, 2: 32, 3: 64}.get(seen // 2500, 128)


def test_a_growing_context_cuts_the_same_tokens(tmp_path):
    sources = {name: [documents(seed, 300)] for seed, name in enumerate("ab")}
    url = write_store(str(tmp_path), sources)
    plain = PhaseConfig("p", 4096, 64, {"a": 0.5, "b": 0.5})
    growing = replace(plain, initial_context=16, context_warmup_tokens=2048)
    whole = PhaseBatches(url, curriculum(plain), 512, 512)
    cut = PhaseBatches(url, curriculum(growing), 512, 512)
    shapes = []
    for i in range(whole.n_steps):
        (one,), (other,) = whole.step(i, 0, 1), cut.step(i, 0, 1)
        for name in ("tokens", "targets", "segments"):
            assert np.array_equal(one[name].ravel(), other[name].ravel())
        shapes.append(other["tokens"].shape[1])
        assert np.array_equal(one["sources"].repeat(64 // shapes[-1]), other["sources"])
    assert shapes == [16, 16, 32, 32, 64, 64, 64, 64]


@pytest.mark.parametrize("kind", ["linear", "wsd", "inverse_sqrt", "cosine"])
def test_schedules_are_pytorchs_and_transformers(kind):
    total, warmup, peak = 100, 10, 3e-3
    own = Schedule(
        total, warmup_steps=warmup, min_ratio=0.1, kind=kind, decay_steps=20 if kind == "wsd" else 0
    )
    rates = [learning_rate(own, peak, i) for i in range(total)]
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=peak)
    common = {"num_warmup_steps": warmup}
    theirs = {
        "cosine": lambda: transformers.get_cosine_with_min_lr_schedule_with_warmup(
            optimizer, num_training_steps=total, min_lr_rate=0.1, **common
        ),
        "wsd": lambda: transformers.get_wsd_schedule(
            optimizer,
            num_decay_steps=20,
            num_stable_steps=70,
            min_lr_ratio=0.1,
            decay_type="linear",
            **common,
        ),
        "inverse_sqrt": lambda: transformers.get_inverse_sqrt_schedule(optimizer, **common),
        "linear": lambda: torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda k: k / warmup if k < warmup else 1 - 0.9 * (k - warmup) / (total - warmup)
        ),
    }[kind]()
    expected = []
    for _ in range(total):
        optimizer.step()
        theirs.step()  # theirs counts steps from 0, and makes the first one at a rate of 0
        expected.append(theirs.get_last_lr()[0])
    known = warmup if kind == "wsd" else 0  # theirs warms up from the minimum there, everywhere else from 0
    assert rates[known:] == pytest.approx(expected[known:], rel=1e-6)
