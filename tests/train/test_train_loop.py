"""The loop, the schedule and the optimizer on plain PyTorch: batches may be cut at will, and a resumed run is the run."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F
from train_cases import N_STEPS, CountingBatches, curve, small_job

from moxin.model.decoder import Decoder
from moxin.train import optimizer
from moxin.train.job import Schedule
from moxin.train.local import fit_local
from moxin.train.schedule import learning_rate


def by_the_book(n_steps):
    """The same training written out: one batch, one mean over its targets, PyTorch's own scheduler and clipping."""
    job = small_job()
    module = Decoder(job.model)
    module.reset(job.seed)
    norms = [p for name, p in module.named_parameters() if "norm" in name]
    others = [p for name, p in module.named_parameters() if "norm" not in name]
    optimizer = torch.optim.AdamW(
        [{"params": others, "weight_decay": 0.1}, {"params": norms, "weight_decay": 0.0}],
        lr=1e-2,
        betas=(0.9, 0.95),
    )
    losses = []
    for i in range(n_steps):
        (batch,) = CountingBatches().step(i, 0, 1)
        tokens, targets, segments = (
            torch.from_numpy(batch[name]) for name in ("tokens", "targets", "segments")
        )
        loss = F.cross_entropy(module(tokens, segments).flatten(0, 1), targets.flatten(), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 0.5)
        warm, rest = (i + 1) / 3, (i + 1 - 3) / (N_STEPS - 3)
        rate = 1e-2 * (warm if i < 3 else 0.1 + 0.9 * (1 + math.cos(math.pi * rest)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_the_loop_is_training_by_the_book_and_the_model_learns():
    losses = [row["loss"] for row in fit_local(small_job())[1]]
    assert losses == pytest.approx(by_the_book(N_STEPS), abs=1e-5)
    assert losses[-1] < losses[0] - 1


@pytest.mark.parametrize("micro_rows", [1, 3])
def test_the_cut_into_micro_batches_changes_nothing(micro_rows):
    whole, parts = fit_local(small_job())[1], fit_local(small_job(micro_rows))[1]
    assert [row["loss"] for row in parts] == pytest.approx([row["loss"] for row in whole], abs=1e-5)
    assert [row["grad_norm"] for row in parts] == pytest.approx([row["grad_norm"] for row in whole], abs=1e-5)


def test_metrics_count_units():
    rows = fit_local(small_job(unit="pairs"))[1]
    assert [row["step"] for row in rows] == list(range(1, N_STEPS + 1))
    assert [row["pairs"] for row in rows] == [128 * (i + 1) for i in range(N_STEPS)]
    assert all(row["pairs_per_second"] > 0 and row["seconds"] > 0 for row in rows)


@pytest.mark.parametrize("stop_after", [4, 7])
def test_a_resumed_run_is_bit_for_bit_the_uninterrupted_one(tmp_path, stop_after):
    engine, rows = fit_local(small_job())
    fit_local(small_job(), tmp_path, stop_after=stop_after)
    again, resumed = fit_local(small_job(), tmp_path)
    assert curve(resumed) == curve(rows)
    assert all(torch.equal(again.weights()[name], whole) for name, whole in engine.weights().items())


def test_two_jobs_that_carry_the_optimizer_over_are_one_long_job(tmp_path):
    from moxin.train import checkpoint

    rows = fit_local(small_job())[1]
    engine, first = fit_local(small_job(), stop_after=6)
    checkpoint.save(engine, small_job(), first, tmp_path / "state")
    schedule = replace(small_job().schedule, first_step=6)
    second = fit_local(small_job(state=str(tmp_path / "state"), schedule=schedule, batches=LaterBatches))[1]
    assert curve(first)[:6] == curve(rows)[:6]
    assert [row[1:] for row in curve(second)] == [row[1:] for row in curve(rows)[6:]]
    assert second[0]["step"] == 1


class LaterBatches(CountingBatches):
    """Steps 6 and on."""

    def __init__(self) -> None:
        super().__init__(n_steps=N_STEPS - 6)

    def step(self, i, rank, world):
        return super().step(i + 6, rank, world)


def test_a_batch_without_targets_stops_the_run():
    with pytest.raises(ValueError, match="no position of the batch is in the loss"):
        fit_local(small_job(count=lambda micro: 0))


def test_an_objective_that_counts_otherwise_than_its_job_says_is_refused():
    with pytest.raises(ValueError, match=r"counted \d+ where FitJob.count said 7"):
        fit_local(small_job(count=lambda micro: 7))


def test_learning_rates_of_phases_join_into_one_warm_up_and_one_cosine():
    whole = Schedule(total_steps=100, warmup_steps=10, min_ratio=0.1)
    rates = [learning_rate(whole, 2.0, i) for i in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9] == max(rates) == pytest.approx(2.0)
    assert rates[54] == pytest.approx(1.1)  # half way down the cosine: the mean of 2.0 and 0.2
    assert rates[99] == pytest.approx(0.2)
    later = replace(whole, first_step=60)
    assert [learning_rate(later, 2.0, i) for i in range(40)] == rates[60:]


def test_weight_decay_spares_the_norms():
    module = Decoder(small_job().model)
    decayed, spared = optimizer.build(module, small_job().optimizer).param_groups
    names = {id(p): name for name, p in module.named_parameters()}
    assert {names[id(p)] for p in spared["params"]} == {name for name in names.values() if "norm" in name}
    assert len(decayed["params"]) + len(spared["params"]) == len(names)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)


@pytest.mark.slow
def test_compiled_blocks_train_alike():
    job = small_job(model=replace(small_job().model, n_layers=1))
    eager = fit_local(job, stop_after=3)[1]
    compiled = fit_local(replace(job, scaling=replace(job.scaling, compile=True)), stop_after=3)[1]
    assert [row["loss"] for row in compiled] == pytest.approx([row["loss"] for row in eager], abs=1e-5)
