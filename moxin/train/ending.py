"""Signals to end a run: the first asks, the second insists."""

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from moxin import console


class Ending:
    """`with` this, the first signal to end calls `ask`; the second one, or the end of the grace, calls `abort`."""

    def __init__(self, grace_s: float, ask: Callable[[], object]) -> None:
        self.ask, self.grace_s, self.asked = ask, grace_s, False
        self.abort: Callable[[], None] = self._interrupt
        self.timer: threading.Timer | None = None

    @staticmethod
    def _interrupt() -> None:
        raise KeyboardInterrupt

    def __enter__(self) -> "Ending":
        self.before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self._signalled)
        return self

    def __exit__(self, *_: object) -> None:
        if self.timer:
            self.timer.cancel()
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            self.abort()
            return
        self.asked = True
        console.warn(f"saving a checkpoint, at most {self.grace_s:g} s; once more ends without it")
        self.ask()
        self.timer = threading.Timer(self.grace_s, os.kill, (os.getpid(), signal.SIGTERM))
        self.timer.daemon = True
        self.timer.start()
