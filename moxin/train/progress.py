"""How a run's progress reaches the person who started it: rank 0 leaves its newest metrics in a file, the driver reads it.

A file needs no further process and works on every storage; losing one costs nothing.
"""

import math
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from rich.progress import Progress, SpinnerColumn, TextColumn
from rich.table import Column

from moxin import console, storage
from moxin.train.job import Batches, FitJob
from moxin.train.line import WIDTH, line
from moxin.train.loop import Row

INTERVAL_S = 1.0
REMOTE_INTERVAL_S = 10.0
"""Seconds between two looks where the storage is remote."""
RECENT_S = 120.0
"""Seconds after which a step counts 1/e of a new one in the rate and the waits that are shown."""


def interval(url: str) -> float:
    return INTERVAL_S if storage.is_local(url) else REMOTE_INTERVAL_S


class Recent:
    """Of the last minutes, the newer the more: the rate and the shares of waiting; and of all rows: spikes, steps skipped.

    Single rows would mislead: a checkpoint is waited for in one step out of hundreds.
    """

    def __init__(self, unit: str) -> None:
        self.unit, self.warm, self.spikes, self.skipped = unit, False, 0, 0
        self.sums = dict.fromkeys(("units", "seconds", "data", "checkpoint"), 0.0)

    def add(self, row: Row) -> None:
        self.spikes += bool(row.get("spike"))
        self.skipped += bool(row.get("skipped"))
        if not self.warm:  # the first step of a process compiles kernels and opens connections
            self.warm = True
            return
        seconds = row["seconds"]
        fade = math.exp(-seconds / RECENT_S)
        new = {
            "units": row[f"{self.unit}_per_second"] * seconds,
            "seconds": seconds,
            "data": row.get("data_seconds", 0.0),
            "checkpoint": row.get("checkpoint_seconds", 0.0),
        }
        self.sums = {name: fade * value + new[name] for name, value in self.sums.items()}

    def told(self) -> dict[str, float]:
        seconds = max(self.sums["seconds"], 1e-9)
        return {
            "rate": self.sums["units"] / seconds,
            "data": self.sums["data"] / seconds,
            "checkpoint": self.sums["checkpoint"] / seconds,
            "spikes": self.spikes,
            "skipped": self.skipped,
        }


class Reporter:
    """Called with each step's metrics, it writes the first and then at most one in an interval, with its process."""

    def __init__(self, url: str, unit: str) -> None:
        self.url, self.interval, self.written = url, interval(url), float("-inf")
        self.recent = Recent(unit)

    def __call__(self, row: Row) -> None:
        self.recent.add(row)
        if time.monotonic() - self.written >= self.interval:
            self.written = time.monotonic()
            writer = f"{socket.gethostname()}:{os.getpid()}"
            storage.write_json(self.url, {**row, "recent": self.recent.told(), "writer": writer})

    def close(self) -> None:
        """The last row may be one that was not written: the run's own summary follows."""


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
    display, step, writer, printed = None, 0, "", float("-inf")
    with ExitStack() as stack:
        while not ended.wait(interval(url)):
            if not storage.exists(url):
                continue
            row = storage.read_json(url)
            if writer and row["writer"] != writer:
                console.warn(f"{job.name}: a worker was lost; training goes on from step {row['step']:,}")
            elif row["step"] == step:
                continue
            step, writer = row["step"], row["writer"]
            if console.console.is_terminal and display is None:
                display = stack.enter_context(_spinner())
            width = min(WIDTH, console.console.width - 3)
            text = line(job.name, row, total=total, n_steps=batches.n_steps, unit=job.unit, width=width)
            if display is not None:
                display.update(display.task_ids[0], description=text)
            elif time.monotonic() - printed >= console.PLAIN_INTERVAL_S:
                printed = time.monotonic()
                console.say(f"  {text}")


def _spinner() -> Progress:
    """One line that is replaced: it turns while the driver lives."""
    text = TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True))
    display = Progress(SpinnerColumn(), text, console=console.console, transient=True)
    display.add_task("")
    return display
