"""Signs of life of the workers, and what the driver makes of them: who hangs, where, and the word that it is time to end.

A thread in every worker tells a board, once a second, what the worker does and since when; the answer may ask it to end, or
for the stack of its main thread. No collective is needed for that, so it works where one hangs. Plain Python: the driver
makes an actor of the `Board`.
"""

import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

INTERVAL_S = 1.0
SILENT_S = 15.0
"""Without a beat for so long a worker's process is stopped, or its machine is not to be reached."""
COLLECTIVES = ("torch/distributed/", "deepspeed/comm/")
"""Where a stack goes through these, a worker waits for the others."""


@dataclass(frozen=True)
class Beat:
    """What a worker says of itself."""

    rank: int
    host: str
    node: str
    """Ray's id of it."""
    pid: int
    place: str
    step: int
    """From 1; 0 before the first."""
    since_s: float
    """How long it has been there."""
    stack: str = ""


class Board:
    """The newest beat of every worker of the group, by the board's own clock."""

    def __init__(self) -> None:
        self._beats: dict[int, tuple[float, Beat]] = {}
        self._group = self._over = ""
        self._stop = self._stacks = False
        self._hopeless: tuple[bool, str] | None = None

    def beat(self, group: str, beat: Beat) -> tuple[bool, bool]:
        """Takes a beat of a worker of the group that is known by that name; says whether it is to end, and whether its stack
        is wanted."""
        if group == self._over:
            return self._stop, False
        if group != self._group:  # a new group: the old one is gone
            self._group, self._beats, self._stacks = group, {}, False
        self._beats[beat.rank] = (time.monotonic(), beat)
        return self._stop, self._stacks

    def stop(self) -> None:
        """Asks all workers to end after their step."""
        self._stop = True

    def give_up(self, of_values: bool, told: str) -> None:
        """A worker met what the next group would meet again; `of_values`: the job's settings or data are what is wrong."""
        self._hopeless = self._hopeless or (of_values, told)

    def given_up(self) -> tuple[bool, str] | None:
        """What the first worker said that gave up."""
        return self._hopeless

    def want_stacks(self, wanted: bool) -> None:
        self._stacks = wanted

    def end_group(self) -> None:
        """What workers of this group say no longer counts: one of them was ended, and Ray ends the others."""
        self._over, self._beats, self._stacks = self._group, {}, False

    def seen(self) -> list[tuple[float, Beat]]:
        """By rank: seconds since the worker was heard of, and what it said then."""
        now = time.monotonic()
        return [(now - at, beat) for _, (at, beat) in sorted(self._beats.items())]


class Heart:
    """The thread of a worker. `at` is told what comes next, `stopping` is what the board has answered last."""

    def __init__(
        self, tell: Callable[[Beat], tuple[bool, bool]], rank: int, node: str, interval_s: float = INTERVAL_S
    ) -> None:
        self._tell, self._rank, self._node, self._interval = tell, rank, node, interval_s
        self._place, self._step, self._since = "starts", 0, time.monotonic()
        self._ended = threading.Event()
        self.stopping = False
        self._main = threading.get_ident()
        self._thread = threading.Thread(target=self._run, name="heart", daemon=True)
        self._thread.start()

    def at(self, place: str, step: int) -> None:
        self._place, self._step, self._since = place, step, time.monotonic()

    def close(self) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        wanted = False
        while True:
            since = time.monotonic() - self._since
            about = (
                self._rank,
                socket.gethostname(),
                self._node,
                os.getpid(),
                self._place,
                self._step,
                since,
            )
            try:
                stopping, wanted = self._tell(Beat(*about, stack=self._stack() if wanted else ""))
                self.stopping |= stopping
            except ConnectionError:
                pass  # the board is gone with the driver, which takes this worker along
            if self._ended.wait(self._interval):
                return

    def _stack(self) -> str:
        frame = sys._current_frames().get(self._main)
        return "".join(traceback.format_stack(frame)) if frame else ""


def stalled(seen: list[tuple[float, Beat]], timeout_s: float) -> bool:
    """Whether no worker has got on for so long. Before the first step they may take their time: weights are loaded."""
    return bool(seen) and all(beat.step and age + beat.since_s > timeout_s for age, beat in seen)


def culprits(seen: list[tuple[float, Beat]]) -> list[tuple[float, Beat]]:
    """Of workers that do not get on, those that the others wait for: the silent, else those in no collective, else all."""
    silent = [one for one in seen if one[0] > SILENT_S]
    if silent:
        return silent
    busy = [one for one in seen if one[1].stack and not any(part in one[1].stack for part in COLLECTIVES)]
    return busy or list(seen)


def describe(age: float, beat: Beat) -> str:
    """A worker that hangs, in a line, and where it is, if it could say."""
    told = f"worker {beat.rank} (process {beat.pid} on {beat.host})"
    if age > SILENT_S:
        return f"{told} has not been heard of for {age:.0f} s; in step {beat.step:,} it said: {beat.place}"
    lines = beat.stack.strip().splitlines()
    where = "\n" + "\n".join(lines[-8:]) if lines else ""
    return f"{told} {beat.place} in step {beat.step:,} for {age + beat.since_s:.0f} s{where}"
