"""Checkpoints in the making: what a step waits for, what stays, what a failed write says, and the same on S3."""

import threading
import time
from dataclasses import replace

import pytest
import torch
from train_cases import small_job

from moxin import storage
from moxin.train import checkpoint, shards
from moxin.train.build import build
from moxin.train.engine_torch import TorchEngine
from moxin.train.job import Keeping
from moxin.train.local import fit_local
from moxin.train.loop import Watcher, train
from moxin.train.saving import Saver


def steps(url):
    return [checkpoint.step_of(name) for name in checkpoint.listed(url)]


@pytest.mark.parametrize(
    ("keeping", "left"),
    [
        (Keeping(1), [11, 10]),
        (Keeping(1, last=4), [11, 10, 9, 8]),
        (Keeping(2, last=1, also_every=4), [10, 8, 4]),
        (Keeping(0), []),
    ],
)
def test_what_stays(tmp_path, keeping, left):
    fit_local(small_job(keeping=keeping), tmp_path)
    assert steps(str(tmp_path)) == left


def test_nothing_goes_before_its_successor_is_whole():
    names = [checkpoint.name_of(step) for step in (30, 20, 10)]
    assert checkpoint.to_remove(names, names[1], last=1, also_every=0) == names[2:]
    assert checkpoint.to_remove(names, names[2], last=1, also_every=0) == []
    assert checkpoint.to_remove(names, names[0], last=1, also_every=20) == names[2:]


def test_a_step_waits_for_the_copy_and_not_for_the_disk(tmp_path, monkeypatch):
    """What is written is the state at the call, although training has gone on."""
    job = small_job()
    engine, rows = fit_local(job, stop_after=4)
    at_call = engine.weights()
    gate, write = threading.Event(), shards.write

    def slow(*arguments):
        gate.wait(30)
        write(*arguments)

    monkeypatch.setattr(shards, "write", slow)
    saver = Saver(engine, job, str(tmp_path), tmp_path)
    began = time.monotonic()
    saver.save(rows)
    assert time.monotonic() - began < 10
    train(engine, job, job.batches(), rows, stop_after=6)
    assert not checkpoint.is_whole(str(tmp_path / checkpoint.name_of(4)))
    gate.set()
    saver.wait()
    saver.close()
    again = TorchEngine(build(job), job)
    folder = tmp_path / checkpoint.name_of(4)
    checkpoint.load(again, job, folder, checkpoint.check(str(folder), job))
    assert all(torch.equal(again.weights()[name], weight) for name, weight in at_call.items())
    assert any(not torch.equal(engine.weights()[name], weight) for name, weight in at_call.items())


def test_what_went_wrong_in_the_thread_is_said_by_the_next_call(tmp_path, monkeypatch):
    job = small_job()
    engine, rows = fit_local(job, stop_after=4)
    saver = Saver(engine, job, str(tmp_path), tmp_path)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shards, "write", full)
    saver.save(rows)
    with pytest.raises(OSError, match="No space left"):
        saver.wait()
    saver.close()


def test_a_half_written_checkpoint_of_an_earlier_attempt_does_not_count(tmp_path, monkeypatch):
    """Files of the same name and size with another content: the list of files of a worker is gone before they are."""
    job = small_job()
    fit_local(job, tmp_path)
    folder = tmp_path / checkpoint.name_of(8)
    engine, rows = fit_local(job, stop_after=8)
    assert checkpoint.is_whole(str(folder))

    def stop(*arguments):
        raise RuntimeError("stop here")

    monkeypatch.setattr(shards, "write", stop)
    with pytest.raises(RuntimeError, match="stop here"):
        checkpoint.save(engine, job, rows, folder)
    assert not checkpoint.is_whole(str(folder))


def test_a_state_of_another_optimizer_or_model_is_refused(tmp_path):
    fit_local(small_job(), tmp_path)
    with pytest.raises(ValueError, match=r"optimizer\.kind was 'adamw', now it is 'lion'"):
        fit_local(small_job(kind="lion"), tmp_path)
    url = str(tmp_path / checkpoint.name_of(8))
    with pytest.raises(ValueError, match=r"optimizer\.kind was 'adamw'"):
        checkpoint.check(url, small_job(kind="lion"), carried=True)
    engine = TorchEngine(build(small_job()), small_job())
    other = shards.Flat({"exp_avg": torch.zeros(3)}, [shards.Piece("blocks.9.mlp.up.weight", 0, 0, 3)], 0)
    with (
        shards.Reader(tmp_path / checkpoint.name_of(8), 1) as reader,
        pytest.raises(ValueError, match=r"lacks 3 of 3 elements"),
    ):
        reader.fill("exp_avg", other.tensors["exp_avg"], other.pieces)
    assert engine.world == 1


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["", "refuse", "cut_uploads", "lose_answers"])
def test_on_s3_as_on_a_disk(s3, tmp_path, fault):
    job = small_job(keeping=Keeping(4, last=1))
    url = storage.join(s3.url, "run")
    engine = TorchEngine(build(job), job)
    saver = Saver(engine, job, url, tmp_path / "scratch")
    if fault:
        getattr(s3.faults, fault)(2)
    rows = train(engine, job, job.batches(), [], watcher=Watcher(checkpoint=saver.save), stop_after=10)
    saver.wait()
    saver.close()
    if fault:
        assert s3.faults.injected == 2
    assert steps(url) == [8]
    assert not any((tmp_path / "scratch").iterdir())
    folder = storage.download(storage.join(url, checkpoint.name_of(8)), tmp_path / "back")
    assert checkpoint.harmed(folder) == []
    again = TorchEngine(build(job), job)
    checkpoint.load(again, job, folder, checkpoint.check(str(folder), job))
    resumed = storage.read_jsonl(str(folder / checkpoint.METRICS))
    resumed = train(again, job, job.batches(), resumed, stop_after=10)
    assert [row["loss"] for row in resumed] == [row["loss"] for row in rows]


def test_weights_on_the_way_are_published(tmp_path):
    from moxin.model import checkpoint as model_checkpoint

    job = small_job(keeping=replace(Keeping(0), publish_every=5))
    engine = TorchEngine(build(job), job)
    seen = {}

    def publish(step):
        model_checkpoint.save(engine.weights(), job.model, str(tmp_path / f"{step}"))
        seen[step] = engine.weights()

    train(engine, job, job.batches(), [], watcher=Watcher(publish=publish))
    assert sorted(seen) == [5, 10]
    loaded = model_checkpoint.load(str(tmp_path / "5")).state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in seen[5].items())
