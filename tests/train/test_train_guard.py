"""Bad steps: told, not applied, and gone back from; and the run that comes out of it is the one without their batches."""

import functools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from train_cases import CONTEXT, ROWS, CountingBatches, small_job

from moxin import storage
from moxin.recipe import GuardConfig
from moxin.train import checkpoint, rollback
from moxin.train.guard import LEFT_OUT, SKIPPED, SPIKE, Guard, RollBackError
from moxin.train.job import Keeping, Schedule
from moxin.train.local import fit_local

N = 40
GUARDS = GuardConfig(window=8, spike_score=8.0, skip_score=0.0, rollback_after=3, max_rollbacks=2)


class PoisonedBatches(CountingBatches):
    """Steps of random tokens, which no model of the rule can like."""

    def __init__(self, bad: tuple[int, ...], n_steps: int = N) -> None:
        super().__init__(n_steps=n_steps)
        self.bad = bad

    def step(self, i, rank, world):
        micros = super().step(i, rank, world)
        if i in self.bad:
            rng = np.random.default_rng(1000 + i)
            for micro in micros:
                micro["tokens"] = rng.integers(0, 64, micro["tokens"].shape)
                micro["targets"] = rng.integers(0, 64, micro["targets"].shape)
        return micros


def job_of(bad=(), guards=GUARDS, **changes):
    schedule = Schedule(total_steps=N, warmup_steps=3)
    batches = functools.partial(PoisonedBatches, tuple(bad))
    return small_job(batches=batches, guards=guards, schedule=schedule, keeping=Keeping(5), **changes)


def losses(rows):
    return [row["loss"] for row in rows]


def exploding(module, micro):
    """As `next_token`, but the gradient of a step that a token marks is not finite."""
    loss, nll = module(
        micro["tokens"], segments_BT=micro["segments"], targets_BT=micro["targets"], reduction="sum"
    )
    if int(micro["tokens"][0, 0]) == int(micro["tokens"].max()) == 63:
        loss = loss * float("inf")
    count = (micro["targets"] != -100).sum()
    return loss, torch.stack([nll.sum(dtype=torch.float64), count.double()])


class MarkedBatches(CountingBatches):
    def step(self, i, rank, world):
        micros = super().step(i, rank, world)
        if i == 6:
            micros[0]["tokens"][:] = 63
        return micros


def test_a_gradient_that_is_not_finite_is_left_out_and_the_rest_is_as_if_it_had_not_been():
    engine, rows = fit_local(small_job(batches=MarkedBatches, objective=exploding))
    assert [row["step"] for row in rows if row.get(SKIPPED)] == [7]
    assert rows[6]["grad_norm"] is None
    assert math.isfinite(rows[6]["loss"])
    assert all(math.isfinite(loss) for loss in losses(rows))
    weights = engine.weights()
    assert all(weight.isfinite().all() for weight in weights.values())
    # Adam's own count of steps too: the same as a run whose schedule never had the step.
    states = engine.optimizer.state.values()
    assert {int(state["step"]) for state in states} == {len(rows) - 1}


def test_a_spike_is_told_and_a_great_one_is_not_applied():
    _, rows = fit_local(job_of(bad=[30]))
    assert [row["step"] for row in rows if row.get(SPIKE)] == [31]
    assert not any(row.get(SKIPPED) for row in rows)
    assert rows[30]["score"] > 8
    engine, rows = fit_local(job_of(bad=[30], guards=replace(GUARDS, skip_score=9.0)))
    assert [row["step"] for row in rows if row.get(SKIPPED)] == [31]
    skipped = losses(rows)[31]
    undisturbed = losses(fit_local(job_of())[1])
    assert skipped == pytest.approx(undisturbed[31], abs=0.05)
    assert all(int(state["step"]) == N - 1 for state in engine.optimizer.state.values())


def test_several_bad_steps_and_the_run_goes_back_and_leaves_them_out(tmp_path):
    bad = [22, 23, 24, 25]
    engine, rows = fit_local(job_of(bad), tmp_path)
    assert [row["step"] for row in rows] == list(range(1, N + 1))
    left_out = [row["step"] for row in rows if row.get(LEFT_OUT)]
    assert left_out == [23, 24, 25]
    (told,) = rollback.recorded(str(tmp_path))
    assert (told["first"], told["last"]) == (23, 25)
    assert "3 bad steps in a row" in told["told"]
    # The one that is still in is a single spike.
    assert [row["step"] for row in rows if row.get(SPIKE)] == [26]
    assert [row["tokens"] for row in rows] == [ROWS * CONTEXT * (k + 1) for k in range(N)]

    # Without the first three the run is the same bit by bit, if one writes it out: nothing of the bad steps is left.
    clean = tmp_path / "clean"
    storage.write_json(str(clean / rollback.RECORD), [{"first": 23, "last": 25, "told": ""}])
    same, expected = fit_local(job_of(bad), clean)
    assert losses(rows) == losses(expected)
    weights = same.weights()
    assert all(torch.equal(weights[name], weight) for name, weight in engine.weights().items())
    # And training recovers.
    assert rows[-1]["loss"] < rows[20]["loss"] + 0.1


def test_checkpoints_after_the_first_bad_step_are_not_trusted(tmp_path):
    job = job_of()
    fit_local(job, tmp_path)
    names = [checkpoint.name_of(step) for step in (35, 30)]
    assert checkpoint.listed(str(tmp_path)) == names
    rollback.go_back(str(tmp_path), job, RollBackError(32, 34, "bad"))
    assert checkpoint.listed(str(tmp_path)) == names[1:]
    assert rollback.left_out(str(tmp_path)) == {32, 33, 34}


def test_a_job_does_not_go_back_for_ever(tmp_path):
    with pytest.raises(RuntimeError, match=r"after 2 roll-backs.*lower pretrain.learning_rate"):
        fit_local(job_of(bad=range(25, N)), tmp_path)
    assert len(rollback.recorded(str(tmp_path))) == 2


def test_scores_are_what_statistics_say_and_the_step_before_is_not_asked():
    rng = np.random.default_rng(0)
    values = rng.normal(3.0, 0.1, 200)
    rows = [{"loss": float(value)} for value in values]
    guard = Guard(GuardConfig(window=128))
    median, deviation = guard.usual(rows, 200)
    assert median == pytest.approx(np.median(values[71:199]))
    assert deviation == pytest.approx(0.1, rel=0.3)
    assert guard.usual(rows[:20], 20)[0] != guard.usual(rows[:20], 20)[0]  # not known yet
    moved = [*rows[:199], {"loss": 99.0}]
    assert guard.usual(moved, 200) == (median, deviation)
    assert guard.score((median, deviation), 3.0 + 12 * deviation) == pytest.approx(12, abs=1)
    assert guard.score((median, deviation), math.nan) == math.inf
    flagged = [{"loss": 50.0, SPIKE: True} if k % 2 else row for k, row in enumerate(rows)]
    assert guard.usual(flagged, 200)[0] == pytest.approx(3.0, abs=0.1)
