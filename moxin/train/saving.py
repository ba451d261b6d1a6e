"""Checkpoints while training goes on: a step waits for a copy in memory, a thread does the rest."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch import Tensor

from moxin import storage
from moxin.train import checkpoint, shards
from moxin.train.engine import Engine
from moxin.train.job import FitJob, Micro
from moxin.train.loop import Rows


class Saver:
    """Writes checkpoints below `url`, one at a time: the next one waits for the last.

    On a local disk files are written in place, else into `scratch` and uploaded. What goes wrong in the thread is raised by
    the next call. Rank 0 removes what `job.keeping` does not keep.
    """

    def __init__(self, engine: Engine, job: FitJob, url: str, scratch: Path) -> None:
        self.engine, self.job, self.url, self.scratch = engine, job, url, scratch
        self.probe: Micro | None = None
        self.snapshot = shards.Snapshot()
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self.running: Future[None] | None = None

    def save(self, rows: Rows) -> None:
        """Collective. Returns when the state is copied."""
        if self.probe is None:
            self.probe = checkpoint.probe_of(self.job)
        self.wait()
        metadata, flats = checkpoint.describe(self.engine, self.job, rows, self.probe)
        copies = self.snapshot.take(flats)
        name = checkpoint.name_of(len(rows))
        arguments = (name, copies, flats, metadata, list(rows), self.probe)
        self.running = self.thread.submit(self._write, *arguments)

    def later(self, work: Callable[[], None]) -> None:
        """Does something else in the thread, after what is being written."""
        before = self.running

        def after() -> None:
            if before is not None:
                before.result()
            work()

        self.running = self.thread.submit(after)

    def wait(self) -> None:
        """Returns when nothing is being written any more. Raises what went wrong."""
        if self.running is not None:
            running, self.running = self.running, None
            running.result()

    def close(self) -> None:
        self.thread.shutdown(wait=True)

    def _write(
        self,
        name: str,
        copies: Sequence[dict[str, Tensor]],
        flats: Sequence[shards.Flat],
        metadata: Mapping[str, Any],
        rows: Rows,
        probe: Micro,
    ) -> None:
        rank, target = self.engine.rank, storage.join(self.url, name)
        if storage.is_local(self.url):
            checkpoint.write(storage.local_path(target), rank, copies, flats, metadata, rows, probe)
        else:
            folder = self.scratch / name
            storage.remove(storage.join(target, checkpoint.PART.format(rank)))
            checkpoint.write(folder, rank, copies, flats, metadata, rows, probe)
            part = folder / checkpoint.PART.format(rank)
            told = part.read_bytes()
            part.unlink()
            storage.upload(folder, target)
            storage.write_bytes(
                storage.join(target, part.name), told
            )  # last: it says that the others are there
            storage.remove(str(folder))
        if rank == 0:
            self._tidy()

    def _tidy(self) -> None:
        whole, others = checkpoint.newest(self.url)
        if whole:
            keeping = self.job.keeping
            for name in checkpoint.to_remove([whole, *others], whole, keeping.last, keeping.also_every):
                storage.remove(storage.join(self.url, name))
