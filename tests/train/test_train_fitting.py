"""The size of a micro-batch that fits, found and explained."""

import functools
import sys
from dataclasses import replace

import psutil
import pytest
import torch
import train_cases
from ray import cloudpickle
from train_cases import CONTEXT, ROWS, CountingBatches, small_job

from moxin import console, storage
from moxin.artifact import Builder
from moxin.model.presets import PRESETS
from moxin.train import fitting
from moxin.train.build import build
from moxin.train.engine_torch import TorchEngine
from moxin.train.local import fit_local
from moxin.train.objective import next_token
from moxin.train.run import fit

for module in (train_cases, sys.modules[__name__]):  # the workers cannot import them
    cloudpickle.register_pickle_by_value(module)


class SizedBatches(CountingBatches):
    """The same rows, told in tokens how many to take at once, or `auto`."""

    def __init__(self, micro_batch) -> None:
        super().__init__(1 if micro_batch == "auto" else micro_batch // CONTEXT)


def greedy(module, micro):
    """A GPU with room for three rows."""
    if len(micro["tokens"]) > 3:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    return next_token(module, micro)


def job_of(micro_batch="auto", **changes):
    return small_job(
        batches=functools.partial(SizedBatches, micro_batch=micro_batch), context=CONTEXT, **changes
    )


def engine_of(job):
    return TorchEngine(build(job), job)


def test_what_pytorch_raises_is_known():
    with pytest.raises(RuntimeError) as failed:
        torch.empty(2**50)
    assert fitting.is_out_of_memory(failed.value)
    assert fitting.is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not fitting.is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_as_many_rows_as_fit_are_taken_and_none_that_failed_before(tmp_path, monkeypatch):
    job = job_of()
    engine = engine_of(job)
    assert fitting.asks(job)
    everything = fitting.settled(job, engine, str(tmp_path), 1)
    assert fitting.size_of(everything) == ROWS * CONTEXT  # all there are, on a machine with room
    fitting.note_failure(everything, str(tmp_path))
    assert fitting.size_of(fitting.settled(job, engine, str(tmp_path), 1)) == 6 * CONTEXT
    monkeypatch.setattr(fitting, "free_bytes", lambda device, local_world: 1)
    with pytest.raises(ValueError, match="out of memory with 16 tokens at once in rows of 16"):
        fitting.settled(job, engine, str(tmp_path), 1)


def test_the_size_found_trains_as_any_other(tmp_path):
    job = job_of()
    settled = fitting.settled(job, engine_of(job), str(tmp_path), 1)
    rows, expected = fit_local(settled)[1], fit_local(job_of(2 * CONTEXT))[1]
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in expected], abs=1e-5)


def test_the_explanation_names_what_to_set_and_it_would_fit(monkeypatch):
    job = replace(job_of(65536), model=PRESETS["1.3b"], context=2048, name="pretrain-phase1")
    job = replace(job, scaling=replace(job.scaling, n_workers=8, use_gpu=True, accelerator="A100-40GB"))
    engine = engine_of(small_job())
    engine.world = 8
    told = fitting.explained(job, 65536, engine, 8).splitlines()
    assert told[0] == (
        "pretrain-phase1: out of memory with 65,536 tokens at once in rows of 2,048, of 35.6 GiB a worker"
    ), told[0]
    assert [line.split(":")[0].strip() for line in told[1:5]] == ["ZeRO-0", "ZeRO-1", "ZeRO-2", "ZeRO-3"]
    assert told[2].endswith("<- now")
    ways = [line.strip() for line in told[6:]]
    assert 1 <= len(ways) <= 3
    assert all(way.startswith("--set ") for way in ways)


@pytest.mark.slow
def test_auto_on_ray_starts_again_with_less_until_it_fits(tmp_path, ray_session, monkeypatch):
    told = []
    monkeypatch.setattr(console, "warn", told.append)
    fit(job_of(objective=greedy, max_failures=6), Builder(str(tmp_path), {}))
    sizes = [int(line.split(": ")[1].split()[0]) for line in told if "tokens at once on every worker" in line]
    assert sorted(sizes, reverse=True) == [128, 96, 64, 48]
    rows = storage.read_jsonl(str(tmp_path / "metrics.jsonl"))
    expected = fit_local(small_job())[1]
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in expected], abs=1e-5)


@pytest.mark.slow
def test_a_given_size_that_does_not_fit_is_explained(tmp_path, ray_session, monkeypatch):
    told = []
    monkeypatch.setattr(console, "warn", told.append)
    with pytest.raises(RuntimeError, match="out of memory with 128 tokens at once"):
        fit(job_of(8 * CONTEXT, objective=greedy, max_failures=0), Builder(str(tmp_path), {}))
    (table,) = [line for line in told if "ZeRO-3" in line]
    assert "what would fit" in table or "nothing fits" in table


def test_a_cpu_is_shared_by_its_workers():
    whole, half = (fitting.free_bytes(torch.device("cpu"), n) for n in (1, 2))
    assert half == pytest.approx(whole / 2, rel=0.05)
    assert whole < psutil.virtual_memory().total
