"""One thread that steps the inference engine, and any number of coroutines that wait for its tokens.

The thread alone touches the engine: coroutines hand it commands through a queue, and once a step it hands events back to
their event loop. Closing a `generate` iterator, as a client's disconnect does, cancels the request in the engine.
"""

import asyncio
import itertools
import logging
import queue
import threading
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol

from moxin.infer.request import Event, Request
from moxin.infer.sampling import SamplingParams
from serve.errors import EngineError, OverloadError

logger = logging.getLogger(__name__)


class Engine(Protocol):
    """What the loop needs of `moxin.infer.engine.Engine`."""

    @property
    def has_work(self) -> bool: ...

    def add(self, request: Request) -> None: ...

    def step(self) -> list[Event]: ...

    def cancel(self, id: str) -> bool: ...


@dataclass(frozen=True)
class Chunk:
    """A piece of an answer: whole characters, the number of tokens that came, and with the last piece the reason."""

    text: str
    n_tokens: int
    finish_reason: str | None = None
    """"stop" or "length"."""


class EngineLoop:
    """Answers requests with one engine that has a `decode`; at most `limit` are in work or waiting."""

    def __init__(self, engine: Engine, limit: int) -> None:
        self.engine, self.limit = engine, limit
        self._inboxes: dict[str, asyncio.Queue[Event | Exception]] = {}
        self._commands: queue.SimpleQueue[Request | str | None] = queue.SimpleQueue()
        """A request to add, the id of one to cancel, None to end."""
        self._ids = itertools.count()
        self._failure: Exception | None = None
        self._thread: threading.Thread | None = None

    @property
    def n_requests(self) -> int:
        """Requests in work or waiting."""
        return len(self._inboxes)

    async def check(self) -> None:
        """Raises `EngineError` where the engine has died."""
        if self._failure is not None:
            raise EngineError(f"the engine died: {self._failure!r}")

    async def generate(self, tokens: Sequence[int], params: SamplingParams) -> AsyncGenerator[Chunk]:
        """The answer to a prompt in chunks: all that has come since the last one, so a slow reader gets fewer.

        Raises `OverloadError` at the limit, `EngineError` where the engine dies, `ValueError` for what it cannot answer.
        """
        await self.check()
        if self.n_requests >= self.limit:
            raise OverloadError(f"{self.limit} requests are in work or waiting, which is the limit")
        id, inbox = str(next(self._ids)), asyncio.Queue[Event | Exception]()
        self._inboxes[id] = inbox
        self._start()
        self._commands.put(Request(id, list(tokens), params))
        reason = None
        try:
            while reason is None:
                events = [await inbox.get(), *(inbox.get_nowait() for _ in range(inbox.qsize()))]
                parts, n_tokens = [], 0
                for event in events:
                    if isinstance(event, Exception):
                        raise event
                    parts.append(event.text)
                    n_tokens += event.token is not None
                    reason = event.finished
                yield Chunk("".join(parts), n_tokens, reason)
        finally:
            del self._inboxes[id]
            if reason is None:
                self._commands.put(id)

    def close(self) -> None:
        """Ends the thread; requests in work are left alone."""
        if self._thread is not None:
            self._commands.put(None)
            self._thread.join()

    def _start(self) -> None:
        if self._thread is None:
            work = (asyncio.get_running_loop(),)
            self._thread = threading.Thread(target=self._run, args=work, name="engine", daemon=True)
            self._thread.start()

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        """The thread: commands, then a step, and sleep while there is nothing to do. It ends where the engine fails."""
        try:
            while self._obey(loop):
                if events := self.engine.step():
                    loop.call_soon_threadsafe(self._deliver, events)
        except Exception as error:
            logger.exception("the engine died")
            loop.call_soon_threadsafe(self._fail, error)

    def _obey(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Carries out all commands that have come, and waits for one while there is no work; False at the end."""
        while not (self.engine.has_work and self._commands.empty()):
            command = self._commands.get()
            if command is None:
                return False
            if isinstance(command, str):
                self.engine.cancel(command)
                continue
            try:
                self.engine.add(command)
            except ValueError as error:  # this request cannot be answered; the others can
                loop.call_soon_threadsafe(self._deliver_to, command.id, error)
        return True

    def _deliver(self, events: Sequence[Event]) -> None:
        for event in events:
            self._deliver_to(event.id, event)

    def _deliver_to(self, id: str, event: Event | Exception) -> None:
        if (inbox := self._inboxes.get(id)) is not None:  # else cancelled, and the engine did not know yet
            inbox.put_nowait(event)

    def _fail(self, error: Exception) -> None:
        self._failure = error
        for inbox in self._inboxes.values():
            inbox.put_nowait(EngineError(f"the engine died: {error!r}"))
