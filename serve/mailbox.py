"""Between the engine and one reader: items gather until they are due, then are taken together."""

import asyncio
from typing import Generic, TypeVar

T = TypeVar("T")


class Mailbox(Generic[T]):
    """The first item is due at once, later ones `interval_s` after the last were taken, urgent ones always at once.

    An exception that is put is raised by the `take` that reaches it, behind what came before. For one event loop.
    """

    def __init__(self, interval_s: float = 0.0) -> None:
        self.interval_s = interval_s
        self._items: list[T] = []
        self._error: Exception | None = None
        self._ready = asyncio.Event()
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_empty(self) -> bool:
        return not self._items and self._error is None

    def put(self, item: T | Exception, urgent: bool = False) -> None:
        if isinstance(item, Exception):
            self._error = item
        else:
            self._items.append(item)
        if urgent or not self.interval_s:
            self._ready.set()
        elif self._timer is None:
            loop = asyncio.get_running_loop()
            if self._due <= loop.time():
                self._ready.set()
            else:
                self._timer = loop.call_at(self._due, self._ready.set)

    async def take(self) -> list[T]:
        """All that has come, at least one item."""
        await self._ready.wait()
        self.close()
        items, self._items = self._items, []
        if not items and self._error is not None:
            raise self._error
        if self._error is None:
            self._ready.clear()
        self._due = asyncio.get_running_loop().time() + self.interval_s
        return items

    def close(self) -> None:
        """Forgets the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
