"""How a run's progress reaches the person who started it: rank 0 leaves its newest metrics in a file, the driver reads it.

A file needs no further process and works on every storage; losing one costs nothing.
"""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from moxin import console, storage
from moxin.train.job import Batches, FitJob
from moxin.train.loop import Row

INTERVAL_S = 1.0
REMOTE_INTERVAL_S = 10.0
"""Seconds between two looks where the storage is remote."""


def interval(url: str) -> float:
    return INTERVAL_S if storage.is_local(url) else REMOTE_INTERVAL_S


class Reporter:
    """Called with each step's metrics, it writes the first and then at most one in an interval, with its process."""

    def __init__(self, url: str) -> None:
        self.url, self.interval, self.written = url, interval(url), float("-inf")

    def __call__(self, row: Row) -> None:
        if time.monotonic() - self.written >= self.interval:
            self.written = time.monotonic()
            storage.write_json(self.url, {**row, "writer": f"{socket.gethostname()}:{os.getpid()}"})


@contextmanager
def shown(url: str, job: FitJob, batches: Batches) -> Iterator[None]:
    """Shows what a `Reporter` writes to `url`, from its first row to the end of the block."""
    storage.remove(url)
    ended = threading.Event()
    thread = threading.Thread(
        target=_show, args=(url, job, batches, ended), name=f"progress of {job.name}", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _show(url: str, job: FitJob, batches: Batches, ended: threading.Event) -> None:
    total = sum(batches.size(i) for i in range(batches.n_steps))
    bar, step, writer = None, 0, ""
    with ExitStack() as stack:
        while not ended.wait(interval(url)):
            if not storage.exists(url):
                continue
            row = storage.read_json(url)
            if bar is None:
                bar = stack.enter_context(console.progress(job.name, total, job.unit, start=row[job.unit]))
            elif row["writer"] != writer:
                console.warn(f"{job.name}: a worker was lost; training goes on from step {row['step']:,}")
            elif row["step"] == step:
                continue
            step, writer = row["step"], row["writer"]
            bar.update(row[job.unit], f"step {step:,}/{batches.n_steps:,}  loss {row['loss']:.3f}")
