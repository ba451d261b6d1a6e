"""Training in this process, without Ray: for tests and notebooks."""

from collections.abc import Callable
from pathlib import Path

from torch import nn

from moxin import console, storage
from moxin.train import checkpoint, rollback
from moxin.train.build import build
from moxin.train.engine import Engine
from moxin.train.engine_torch import TorchEngine
from moxin.train.guard import RollBackError
from moxin.train.job import FitJob
from moxin.train.loop import Rows, Watcher, train
from moxin.train.saving import Saver


def fit_local(
    job: FitJob,
    folder: Path | None = None,
    engine_of: Callable[[nn.Module, FitJob], Engine] = TorchEngine,
    stop_after: int | None = None,
) -> tuple[Engine, Rows]:
    """Trains and returns the engine and the metrics. With a `folder` it checkpoints there and goes on from what is there.

    `stop_after` ends early, after that many steps of the job, as if it had been interrupted.
    """
    while True:
        engine = engine_of(build(job), job)
        rows: Rows = []
        if folder is not None and (name := checkpoint.newest(str(folder))[0]):
            metadata = checkpoint.check(str(folder / name), job)
            checkpoint.load(engine, job, folder / name, metadata)
            rows = storage.read_jsonl(str(folder / name / checkpoint.METRICS))
        elif job.state:
            metadata = checkpoint.check(job.state, job, carried=True)
            checkpoint.load(engine, job, storage.local_path(job.state), metadata)
        if folder is None:
            return engine, train(engine, job, job.batches(), rows, stop_after=stop_after)
        saver = Saver(engine, job, str(folder), folder)
        try:
            left_out = rollback.left_out(str(folder))
            watcher = Watcher(checkpoint=saver.save)
            train(engine, job, job.batches(), rows, watcher=watcher, left_out=left_out, stop_after=stop_after)
            saver.wait()
            return engine, rows
        except RollBackError as bad:
            saver.wait()
            console.warn(f"{job.name}: {rollback.go_back(str(folder), job, bad)}")
        finally:
            saver.close()
