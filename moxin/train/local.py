"""Training in this process, without Ray: for tests and notebooks."""

from collections.abc import Callable
from pathlib import Path

from torch import nn

from moxin import storage
from moxin.train import checkpoint
from moxin.train.build import build
from moxin.train.engine import Engine
from moxin.train.engine_torch import TorchEngine
from moxin.train.job import FitJob
from moxin.train.loop import Rows, train


def fit_local(
    job: FitJob,
    folder: Path | None = None,
    engine_of: Callable[[nn.Module, FitJob], Engine] = TorchEngine,
    stop_after: int | None = None,
) -> tuple[Engine, Rows]:
    """Trains and returns the engine and the metrics. With a `folder` it checkpoints there and goes on from what is there.

    `stop_after` ends early, after that many steps of the job, as if it had been interrupted.
    """
    engine = engine_of(build(job), job)
    rows: Rows = []
    if folder is not None and (name := checkpoint.newest(str(folder))[0]):
        checkpoint.check(str(folder / name), job)
        engine.load(folder / name)
        rows = storage.read_jsonl(str(folder / name / checkpoint.METRICS))
    elif job.state:
        checkpoint.check(job.state, job, carried=True)
        engine.load(storage.local_path(job.state))

    def save(rows: Rows) -> None:
        if folder is not None:
            checkpoint.save(engine, job, rows, folder / checkpoint.name_of(len(rows)))

    rows = train(engine, job, job.batches(), rows, checkpoint=save, stop_after=stop_after)
    return engine, rows
