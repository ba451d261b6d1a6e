"""The data of the next step is made ready while a step is trained, so that a step waits for none."""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import numpy as np
import torch

from moxin.train.job import Batches, Micro

AHEAD = 32
"""Steps ahead for which remote data is asked for."""


class Prefetched:
    """The micro-batches of one rank, a step ahead. With a GPU they come in page-locked memory, from which copies to it are
    asynchronous; they have to be kept until the step has ended."""

    def __init__(self, batches: Batches, rank: int, world: int, pin: bool) -> None:
        self._batches, self._rank, self._world, self._pin = batches, rank, world, pin
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._next: tuple[int, Future[list[Micro]]] | None = None
        self.waited = 0.0
        """Seconds that the last call of `step` took."""

    def step(self, i: int) -> list[Micro]:
        """The micro-batches of step `i`, which after the first call should be the one after the last."""
        started = time.perf_counter()
        if self._next is None or self._next[0] != i:
            self._next = (i, self._thread.submit(self._make, i))
        micros = self._next[1].result()
        self._next = None
        if i + 1 < self._batches.n_steps:
            self._next = (i + 1, self._thread.submit(self._make, i + 1))
        self.waited = time.perf_counter() - started
        return micros

    def _make(self, i: int) -> list[Micro]:
        micros = self._batches.step(i, self._rank, self._world)
        return (
            [{name: _pinned(array) for name, array in micro.items()} for micro in micros]
            if self._pin
            else micros
        )

    def __enter__(self) -> "Prefetched":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)


def _pinned(array: np.ndarray) -> np.ndarray:
    pinned: np.ndarray = torch.from_numpy(array).pin_memory().numpy()
    return pinned
