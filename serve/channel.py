"""Pieces of many answers in one stream, from an engine's process to an ingress.

What a stream of Ray costs goes by the message, and a step of the engine makes a token for every answer. So only the first
piece of an answer comes by the answer's own stream, which then tells no more than that it has ended; what follows travels
with that of all other answers between the same two processes.
"""

import asyncio
import itertools
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager

from serve.engine_loop import Piece
from serve.errors import EngineError
from serve.mailbox import Mailbox

IDLE_S = 1.0
"""After so long without an answer a channel ends, so that a replica can be idle, and be replaced."""

UNCLAIMED_S = 30.0
"""How long an outbox that nobody has opened a channel to outlives its answers: a short one has ended before that."""

Parcel = tuple[int, list[Piece]]
"""The ingress's number of an answer, and what has come of it."""


class Outbox:
    """What waits for one ingress. A number tells it from those that ended before."""

    def __init__(self, number: int) -> None:
        self.number, self.n_senders, self.taken = number, 0, False
        self._mailbox = Mailbox[Parcel]()

    def put(self, key: int, pieces: list[Piece]) -> None:
        self._mailbox.put((key, pieces))

    async def take(self) -> list[Parcel]:
        return await self._mailbox.take()

    @property
    def is_idle(self) -> bool:
        """Whether nobody sends and nothing waits: what was put as a `take` gave up is still there."""
        return not self.n_senders and self._mailbox.is_empty


class Outboxes:
    """An engine's side: an outbox for every ingress that has answers in work here."""

    def __init__(self) -> None:
        self._of: dict[str, Outbox] = {}
        self._numbers = itertools.count()

    @property
    def n_taken(self) -> int:
        """Channels that are open."""
        return sum(outbox.taken for outbox in self._of.values())

    @contextmanager
    def sending(self, ingress: str) -> Iterator[Outbox]:
        """The outbox for an answer; it stays until the answer ends."""
        outbox = self._of.setdefault(ingress, Outbox(next(self._numbers)))
        outbox.n_senders += 1
        try:
            yield outbox
        finally:
            outbox.n_senders -= 1
            if not outbox.n_senders and not outbox.taken:
                asyncio.get_running_loop().call_later(UNCLAIMED_S, self._forget, ingress, outbox)

    def _forget(self, ingress: str, outbox: Outbox) -> None:
        if not outbox.n_senders and not outbox.taken and self._of.get(ingress) is outbox:
            del self._of[ingress]

    async def channel(self, ingress: str, number: int) -> AsyncGenerator[list[Parcel]]:
        """All that is put into an outbox, until it has been idle for `IDLE_S`. Raises `EngineError` where it is gone."""
        outbox = self._of.get(ingress)
        if outbox is None or outbox.number != number:
            raise EngineError("the engine that began this answer is gone")
        outbox.taken = True
        try:
            while True:
                try:
                    parcels = await asyncio.wait_for(outbox.take(), IDLE_S)
                except TimeoutError:
                    if outbox.is_idle:
                        return
                else:
                    yield parcels
        finally:
            if self._of.get(ingress) is outbox:
                del self._of[ingress]
