"""Peak memory of a job: this process and everything it started, Ray's processes among them."""

import os
import threading
from types import TracebackType

import psutil

INTERVAL_S = 5.0


def tree_bytes() -> int:
    """Proportional set size of this process and its descendants now, in bytes: shared pages are counted once."""
    total = 0
    me = psutil.Process(os.getpid())
    for process in [me, *me.children(recursive=True)]:
        try:
            total += int(process.memory_full_info().pss)
        except (psutil.NoSuchProcess, psutil.AccessDenied, AttributeError):
            continue  # ended while it was looked at, or a platform without PSS
    return total


class PeakMemory:
    """`with PeakMemory() as memory: ...` then `memory.peak_bytes`; samples every `INTERVAL_S`."""

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="peak-memory", daemon=True)

    def _sample(self) -> None:
        while True:
            self.peak_bytes = max(self.peak_bytes, tree_bytes())
            if self._stop.wait(INTERVAL_S):
                return

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
