"""What TensorBoard's own reader finds in what we write: on disk, on S3, after a resume, with the clock set back."""

import json
import logging
import math
import time

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from train_cases import N_STEPS, small_job

from moxin import storage
from moxin.train import checkpoint, sinks
from moxin.train.build import build
from moxin.train.engine_torch import TorchEngine
from moxin.train.loop import Watcher, train
from moxin.train.sinks import Files, JsonLines, Sinks, TensorBoard, numbers


def row(step, **more):
    return {"step": step, "tokens": 100 * step, "loss": 5.0 - step / 100, "tokens_per_second": 50.0, **more}


def scalars(folder, tag):
    accumulator = EventAccumulator(str(folder), {"scalars": 0})
    accumulator.Reload()
    return [(event.step, round(event.value, 4)) for event in accumulator.Scalars(tag)]


def feed(sink, steps, **more):
    for step in steps:
        sink(row(step, **more))
    sink.close()


def test_tensorboard_reads_every_number_by_step(tmp_path):
    sink = TensorBoard(str(tmp_path))
    more = {
        "mfu": 0.41,
        "spike": True,
        "source_loss": {"web": 2.5, "code": 1.5},
        "grad_norm": math.nan,
        "writer": "x",
    }
    feed(sink, range(1, 6), **more)
    assert scalars(tmp_path, "train/loss") == [(step, round(5 - step / 100, 4)) for step in range(1, 6)]
    assert scalars(tmp_path, "speed/tokens_per_second") == [(step, 50.0) for step in range(1, 6)]
    assert scalars(tmp_path, "source_loss/code") == [(step, 1.5) for step in range(1, 6)]
    assert scalars(tmp_path, "train/spike")[0] == (1, 1.0)
    assert math.isnan(scalars(tmp_path, "train/grad_norm")[0][1])
    accumulator = EventAccumulator(str(tmp_path))
    accumulator.Reload()
    assert set(accumulator.Tags()["scalars"]) == {
        *(
            "train/loss",
            "train/tokens",
            "train/spike",
            "train/grad_norm",
            "speed/mfu",
            "speed/tokens_per_second",
        ),
        *("source_loss/web", "source_loss/code"),
    }


@pytest.mark.parametrize("clock", [0.0, -3600.0], ids=["later", "clock set back"])
def test_a_resumed_run_leaves_no_step_twice(tmp_path, monkeypatch, clock):
    """The first attempt wrote up to step 10, its checkpoint was of step 6: another learning rate tells them apart."""
    feed(TensorBoard(str(tmp_path)), range(1, 11), lr=1.0)
    now = time.time()
    monkeypatch.setattr(sinks.time, "time", lambda: now + clock)
    feed(TensorBoard(str(tmp_path), first_step=7), range(7, 13), lr=2.0)
    assert scalars(tmp_path, "train/lr") == [(step, 1.0 if step < 7 else 2.0) for step in range(1, 13)]


def test_many_small_files_read_as_one(tmp_path, monkeypatch):
    monkeypatch.setattr(sinks, "FILE_BYTES", 1000)
    feed(TensorBoard(str(tmp_path)), range(1, 101))
    assert len(list(tmp_path.iterdir())) > 5
    assert [step for step, _ in scalars(tmp_path, "train/loss")] == list(range(1, 101))


def test_a_reader_sees_a_run_while_it_is_written_and_survives_a_torn_end(tmp_path, monkeypatch):
    monkeypatch.setattr(sinks, "FLUSH_S", 0.0)
    sink = TensorBoard(str(tmp_path))
    sink(row(1))
    sink(row(2))
    assert [step for step, _ in scalars(tmp_path, "train/loss")] == [1, 2]
    [file] = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-5])  # the process was killed in the middle of a record
    feed(TensorBoard(str(tmp_path), first_step=2), [2, 3])
    assert [step for step, _ in scalars(tmp_path, "train/loss")] == [1, 2, 3]


def test_an_object_store_gets_the_same_files_in_the_background(s3, tmp_path, monkeypatch):
    monkeypatch.setattr(sinks, "FILE_BYTES", 4000)
    monkeypatch.setattr(sinks, "UPLOAD_S", 0.0)
    url = f"{s3.url}/tensorboard"
    s3.faults.refuse(2)
    feed(TensorBoard(url), range(1, 60), lr=1.0)
    feed(TensorBoard(url, first_step=41), range(41, 81), lr=2.0)
    storage.download(url, tmp_path / "copy")
    expected = [(step, 1.0 if step < 41 else 2.0) for step in range(1, 81)]
    assert scalars(tmp_path / "copy", "train/lr") == expected
    assert s3.faults.injected == 2


def test_what_lies_in_a_store_grows_while_the_run_goes_on(s3, monkeypatch):
    monkeypatch.setattr(sinks, "UPLOAD_S", 0.0)
    sink = JsonLines(f"{s3.url}/attempts")
    sink(row(1))
    assert sink.files._upload is not None
    sink.files._upload.result()
    [name] = storage.files_under(f"{s3.url}/attempts")
    assert storage.read_jsonl(f"{s3.url}/attempts/{name}")[0]["step"] == 1
    sink(row(2))
    sink.close()
    assert [line["step"] for line in storage.read_jsonl(f"{s3.url}/attempts/{name}")] == [1, 2]


def test_every_attempt_keeps_its_rows(tmp_path):
    url = str(tmp_path / "attempts")
    feed(JsonLines(url), [1, 2, 3], source_loss={"prose": 1.0})
    feed(JsonLines(url), [2, 3])
    first, second = (storage.read_jsonl(f"{url}/{name}") for name in storage.files_under(url))
    assert [line["step"] for line in first] == [1, 2, 3]
    assert [line["step"] for line in second] == [2, 3]
    assert first[0]["source_loss"] == {"prose": 1.0}
    assert first[0]["time"] <= first[-1]["time"]


def test_names_sort_as_they_were_written(tmp_path):
    names = []
    for _ in range(3):
        files = Files(str(tmp_path), "a", ".jsonl")
        names.append(files.name)
        files.write(b"x")
        files.close()
    assert names == sorted(names)
    assert len(set(names)) == 3


class Failing:
    def __init__(self, error):
        self.error, self.calls = error, 0

    def __call__(self, row):
        self.calls += 1
        raise self.error

    def close(self):
        raise AssertionError


def test_a_sink_that_fails_is_given_up_and_the_others_go_on(tmp_path, caplog):
    full, healthy = Failing(OSError(28, "No space left on device")), JsonLines(str(tmp_path))
    both = Sinks([full, healthy])
    with caplog.at_level(logging.WARNING):
        feed(both, [1, 2])
    assert full.calls == 1
    assert "Failing is given up" in caplog.text
    [file] = tmp_path.iterdir()
    assert len(file.read_text().splitlines()) == 2
    with pytest.raises(KeyError):
        Sinks([Failing(KeyError("loss"))])(row(1))


def test_a_store_that_is_gone_does_not_end_training(s3, monkeypatch, caplog):
    monkeypatch.setattr(sinks, "UPLOAD_S", 0.0)
    sink = Sinks([JsonLines(f"{s3.url}/attempts")])
    monkeypatch.setattr(sinks.storage, "write_bytes", _gone)
    with caplog.at_level(logging.WARNING):
        feed(sink, range(20))
    assert "not uploaded this time" in caplog.text
    assert "JsonLines is given up" in caplog.text


def _gone(url, data):
    raise OSError("the store is gone")


def test_a_run_and_its_resumption_end_up_in_tensorboard_as_in_its_own_metrics(tmp_path):
    """Through the loop itself, from a checkpoint at step 4 after a first attempt that had come to step 7."""
    job, batches = small_job(), small_job().batches()
    for saved, last in ((0, 7), (4, N_STEPS)):
        engine = TorchEngine(build(job), job)
        rows = []
        if saved:
            about = checkpoint.check(str(tmp_path / "checkpoint"), job)
            checkpoint.load(engine, job, tmp_path / "checkpoint", about)
            rows = storage.read_jsonl(str(tmp_path / "checkpoint" / "metrics.jsonl"))
        sink = Sinks(
            [TensorBoard(str(tmp_path / "tensorboard"), len(rows) + 1), JsonLines(str(tmp_path / "attempts"))]
        )

        def save(rows, engine=engine, first=not saved):
            if first:
                checkpoint.save(engine, job, rows, tmp_path / "checkpoint")

        watcher = Watcher(report=sink, checkpoint=save)
        rows = train(engine, job, batches, rows, watcher=watcher, stop_after=last)
        sink.close()
    found = scalars(tmp_path / "tensorboard", "train/loss")
    assert found == [(row["step"], pytest.approx(row["loss"], abs=1e-4)) for row in rows]
    assert scalars(tmp_path / "tensorboard", "speed/data_seconds")[-1][0] == N_STEPS
    lines = [len(file.read_text().splitlines()) for file in sorted((tmp_path / "attempts").iterdir())]
    assert lines == [7, N_STEPS - 4]


def test_numbers_of_a_row():
    given = {"step": 1, "skipped": False, "name": "x", "nothing": None, "source_loss": {"a": 1, "b": None}}
    assert dict(numbers(given)) == {"step": 1.0, "skipped": 0.0, "source_loss/a": 1.0}
    assert json.dumps(given)
