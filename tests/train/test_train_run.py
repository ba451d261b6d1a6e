"""Training on Ray: what a dead worker, a dead driver and another number of workers do to a run: nothing."""

import functools
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
import train_cases
from ray import cloudpickle
from train_cases import N_STEPS, BreakingBatches, curve, small_job

from moxin import session, storage
from moxin.artifact import Builder
from moxin.model import checkpoint as model_checkpoint
from moxin.train import checkpoint
from moxin.train.engine_deepspeed import DeepSpeedEngine
from moxin.train.local import fit_local
from moxin.train.run import fit

PATIENCE_S = 300
cloudpickle.register_pickle_by_value(train_cases)  # the workers cannot import it


def losses(rows):
    return [row["loss"] for row in rows]


@pytest.mark.slow
def test_a_worker_that_dies_changes_nothing_and_one_worker_goes_on_where_two_stopped(tmp_path, ray_session):
    batches = functools.partial(BreakingBatches, str(tmp_path / "died"), at=9, rank=1, kind="die")
    first = small_job(n_workers=2, batches=batches, keep_state=True)
    builder = Builder(str(tmp_path / "first"), {})
    fit(first, builder)
    assert (tmp_path / "died").exists()

    engine, rows = fit_local(small_job())
    metrics = storage.read_jsonl(builder.file("metrics.jsonl"))
    assert [row["step"] for row in metrics] == list(range(1, N_STEPS + 1))
    assert losses(metrics) == pytest.approx(losses(rows), abs=1e-5)
    saved = model_checkpoint.load(builder.file("model")).state_dict()
    assert all((saved[name] - weight).abs().max() < 2e-5 for name, weight in engine.weights().items())
    assert builder.counts["tokens"] == N_STEPS * 128
    assert builder.counts["loss_last"] < builder.counts["loss_first"]

    checkpoint.save(engine, small_job(), rows, tmp_path / "state")
    schedule = replace(first.schedule, total_steps=2 * N_STEPS, first_step=N_STEPS)
    second = small_job(state=builder.file("state"), schedule=schedule)
    after = Builder(str(tmp_path / "second"), {})
    fit(second, after)
    reference = fit_local(replace(second, state=str(tmp_path / "state")))[1]
    metrics = storage.read_jsonl(after.file("metrics.jsonl"))
    assert losses(metrics) == pytest.approx(losses(reference), abs=1e-5)
    assert not storage.exists(after.file("state"))


def family(pid: int) -> list[psutil.Process]:
    me = psutil.Process(pid)
    return [me, *me.children(recursive=True)]


@pytest.mark.slow
def test_a_killed_driver_started_again_ends_with_the_same_bits(tmp_path, ray_session, one_worker):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    log = tmp_path / "driver.log"
    script = Path(__file__).with_name("train_driver.py")
    with open(log, "w") as output:
        driver = subprocess.Popen(
            [sys.executable, str(script), str(tmp_path)],
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    processes: list[psutil.Process] = []
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not (tmp_path / "reached").exists():
            assert driver.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        processes = family(driver.pid)
    finally:
        driver.kill()
        driver.wait()
        psutil.wait_procs(processes, timeout=30)  # Ray's processes end with the driver
        for process in processes:
            if process.is_running():
                process.kill()
    assert not (tmp_path / "model").exists()
    assert checkpoint.newest(str(tmp_path / ".scratch" / "checkpoints"))[0] == checkpoint.name_of(4)

    builder = Builder(str(tmp_path), {})
    batches = functools.partial(BreakingBatches, str(tmp_path / "reached"), at=6, rank=0, kind="wait")
    fit(small_job(batches=batches), builder)
    undisturbed, rows = fit_local(small_job(), engine_of=DeepSpeedEngine)
    assert curve(storage.read_jsonl(builder.file("metrics.jsonl"))) == curve(rows)
    saved = model_checkpoint.load(builder.file("model")).state_dict()
    assert all(torch.equal(saved[name], weight) for name, weight in undisturbed.weights().items())


@pytest.mark.slow
def test_what_a_worker_says_when_it_fails_reaches_the_driver_in_short(tmp_path, ray_session):
    batches = functools.partial(BreakingBatches, str(tmp_path / "mark"), at=1, rank=0, kind="raise")
    with pytest.raises(RuntimeError) as failed:
        fit(small_job(batches=batches, max_failures=0), Builder(str(tmp_path), {}))
    message = str(failed.value)
    assert "small: worker 0: KeyError: 'the objective of this test is broken'" in message
    assert session.log_folder() in message
    assert len(message.splitlines()) == 1


@pytest.mark.slow
def test_what_would_be_met_again_is_not_tried_again(tmp_path, ray_session):
    """With a hundred failures allowed, as in a long run, a mistake in the data ends it after one start."""
    batches = functools.partial(BreakingBatches, str(tmp_path / "mark"), at=3, rank=0, kind="hopeless")
    with pytest.raises(
        ValueError, match=r"small: worker 0: ValueError: these batches cannot be right\. Logs: /"
    ):
        fit(small_job(batches=batches, max_failures=100), Builder(str(tmp_path), {}))
    assert (tmp_path / "mark-starts").read_text() == "x"


def test_mistakes_are_told_before_a_worker_starts(tmp_path, ray_session):
    empty = functools.partial(train_cases.CountingBatches, n_steps=0)
    with pytest.raises(ValueError, match="the data makes no step"):
        fit(small_job(batches=empty), Builder(str(tmp_path), {}))
    fit_local(small_job(), tmp_path / ".scratch" / "checkpoints")
    with pytest.raises(ValueError, match=r"another run: seed was 5, now it is 6"):
        fit(small_job(seed=6), Builder(str(tmp_path), {}))
