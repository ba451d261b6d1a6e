"""Whatever happens to a run, its losses are those of the run that nothing happened to, with every step once.

What is really done: nodes of a local cluster are killed, drained and added, workers are stopped and hang, the driver is told
to end, bytes of a checkpoint are changed. (A worker and the driver are killed in `test_train_run.py`, a disk is filled in
`tests/test_disk.py`.)
"""

import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import train_cases
from ray import cloudpickle
from train_cases import N_STEPS, BreakingBatches, small_job

from moxin import console, storage
from moxin.artifact import Builder
from moxin.train import beats, checkpoint
from moxin.train.engine_deepspeed import DeepSpeedEngine
from moxin.train.local import fit_local
from moxin.train.run import fit

pytestmark = pytest.mark.slow
PATIENCE_S = 300
HERE = Path(__file__).parent
cloudpickle.register_pickle_by_value(train_cases)  # the workers cannot import it


@pytest.fixture(scope="module")
def expected():
    return [row["loss"] for row in fit_local(small_job())[1]]


def assert_undisturbed(folder, expected):
    rows = storage.read_jsonl(str(folder / "metrics.jsonl"))
    assert [row["step"] for row in rows] == list(range(1, N_STEPS + 1))
    assert [row["loss"] for row in rows] == pytest.approx(expected, abs=1e-5)
    return rows


def on_a_cluster(scenario, folder):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, str(HERE / "train_cluster.py"), scenario, str(folder)]
    done = subprocess.run(
        command,
        env={**environment, "RAY_AUTH_MODE": "disabled", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def test_a_node_leaves_another_joins_and_the_group_follows(tmp_path, expected):
    told = on_a_cluster("elastic", tmp_path)
    assert "a node left" in told
    assert "a node joined" in told
    rows = assert_undisturbed(tmp_path, expected)
    assert {row["workers"] for row in rows[:4]} == {2}
    assert {row["workers"] for row in rows[4:8]} == {1}
    assert {row["workers"] for row in rows[8:]} == {2}


def test_a_node_that_is_taken_back_costs_no_step(tmp_path, expected):
    """Spot: there is a checkpoint of the very step, and no failure is counted (none is allowed)."""
    told = on_a_cluster("preempted", tmp_path)
    assert "a node drains" in told
    assert "a machine is taken away" in told
    assert_undisturbed(tmp_path, expected)


def test_a_killed_raylet_is_replaced(tmp_path, expected):
    told = on_a_cluster("raylet", tmp_path)
    assert "a raylet was killed" in told
    assert_undisturbed(tmp_path, expected)


@pytest.mark.parametrize("kind", ["stop", "wait"])
def test_a_worker_that_hangs_is_named_and_ended(tmp_path, ray_session, expected, monkeypatch, kind):
    """`stop`: the whole process is stopped (SIGSTOP); `wait`: it waits for data that never comes."""
    told = []
    monkeypatch.setattr(console, "warn", told.append)
    monkeypatch.setattr(beats, "SILENT_S", 4.0)
    batches = functools.partial(BreakingBatches, str(tmp_path / "mark"), at=6, rank=1, kind=kind)
    fit(small_job(n_workers=2, batches=batches, hang_timeout_s=6), Builder(str(tmp_path / "run"), {}))
    assert_undisturbed(tmp_path / "run", expected)
    (named,) = [line for line in told if "is ended, and the group starts again" in line]
    pid = (tmp_path / "mark").read_text()
    assert f"worker 1 (process {pid} on " in named
    if kind == "stop":
        assert "has not been heard of" in named
    else:
        assert "waits for its data in step 7" in named
        assert "prefetch.py" in named


def test_sigterm_saves_the_very_step_and_the_next_start_goes_on_from_it(tmp_path, ray_session, expected):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    log = tmp_path / "driver.log"
    with open(log, "w") as output:
        driver = subprocess.Popen(
            [sys.executable, str(HERE / "train_driver.py"), str(tmp_path), "slow"],
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    until = time.monotonic() + PATIENCE_S
    while not (tmp_path / "slow").exists():
        assert driver.poll() is None, log.read_text()
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.1)
    driver.send_signal(signal.SIGTERM)
    assert driver.wait(PATIENCE_S) == 130, log.read_text()
    assert "saving a checkpoint" in log.read_text()
    name = checkpoint.newest(str(tmp_path / ".scratch" / "checkpoints"))[0]
    step = checkpoint.step_of(name)
    assert 5 <= step < N_STEPS
    fit(
        small_job(batches=functools.partial(train_cases.SlowBatches, str(tmp_path))),
        Builder(str(tmp_path), {}),
    )
    assert_undisturbed(tmp_path, expected)


def test_a_harmed_newest_checkpoint_is_told_and_the_one_before_is_taken(
    tmp_path, ray_session, one_worker, expected, monkeypatch
):
    told = []
    monkeypatch.setattr(console, "warn", told.append)
    saved = tmp_path / ".scratch" / "checkpoints"
    fit_local(small_job(), saved, DeepSpeedEngine, stop_after=10)
    shard = saved / checkpoint.name_of(8) / "shard-0.safetensors"
    data = bytearray(shard.read_bytes())
    data[-5] ^= 1
    shard.write_bytes(data)
    fit(small_job(), Builder(str(tmp_path), {}))
    assert_undisturbed(tmp_path, expected)
    (line,) = [line for line in told if "is harmed" in line]
    assert checkpoint.name_of(8) in line
    assert "shard-0.safetensors" in line


def test_state_that_is_not_what_was_saved_stops_the_run(tmp_path):
    """A stand-in for what goes wrong between file and model: files that fit their hashes, and numbers that do not fit."""
    fit_local(small_job(), tmp_path, stop_after=6)
    where = tmp_path / checkpoint.name_of(4)
    about = storage.read_json(str(where / checkpoint.METADATA))
    for wrong, words in (
        ({"sums": {**about["sums"], "exp_avg": [0.0, 1.0]}}, "exp_avg sums to"),
        ({"probe_loss": about["probe_loss"] * 1.01}, "the loss on the probe is"),
    ):
        metadata = {**about, **wrong}
        storage.write_json(str(where / checkpoint.METADATA), metadata)
        part = storage.read_json(str(where / "part-0.json"))
        part[checkpoint.METADATA]["bytes"] = (where / checkpoint.METADATA).stat().st_size
        storage.write_json(str(where / "part-0.json"), part)
        with pytest.raises(RuntimeError, match=words):
            fit_local(small_job(), tmp_path)
