"""Pages of a cache: which are free, how many sequences hold each, and which hold tokens that may come again."""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

NOWHERE = 0
"""The page that no sequence holds: padding is written there."""


class PagePool:
    """`n_pages` pages, numbered from 1. A page that nobody holds keeps its tokens until it is taken again, the longest
    unused one first, so whoever asks for the same tokens before that has them for nothing."""

    def __init__(self, n_pages: int) -> None:
        self.n_pages = n_pages
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(1, n_pages + 1))
        self._holders = [0] * (n_pages + 1)
        self._page_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}

    @property
    def n_free(self) -> int:
        """Pages that can be taken, those with remembered tokens included."""
        return len(self._free)

    @property
    def n_remembered(self) -> int:
        """Pages whose tokens can be found by their key."""
        return len(self._page_of)

    def take(self) -> int:
        """A page of one's own. What it held is forgotten."""
        page, _ = self._free.popitem(last=False)
        if (key := self._key_of.pop(page, None)) is not None:
            del self._page_of[key]
        self._holders[page] = 1
        return page

    def find(self, key: bytes) -> int | None:
        """The page with the tokens of `key`, held or not."""
        return self._page_of.get(key)

    def is_free(self, page: int) -> bool:
        return self._holders[page] == 0

    def share(self, page: int) -> None:
        """One more holder of a page that was found."""
        if self._holders[page] == 0:
            del self._free[page]
        self._holders[page] += 1

    def release(self, page: int) -> None:
        """One holder fewer; the last one's leaving makes the page free."""
        assert self._holders[page] > 0, page
        self._holders[page] -= 1
        if self._holders[page] == 0:
            self._free[page] = None
            if page not in self._key_of:  # nothing is lost with it: taken first
                self._free.move_to_end(page, last=False)

    def remember(self, page: int, key: bytes) -> None:
        """Makes a full page's tokens known; where another page has them already, that one stays the known one."""
        if key not in self._page_of and page not in self._key_of:
            self._page_of[key] = page
            self._key_of[page] = key

    def forget(self) -> None:
        """Forgets all tokens: the model's weights have changed."""
        self._page_of.clear()
        self._key_of.clear()


def page_key(before: bytes, tokens: Sequence[int]) -> bytes:
    """The key of a page: SHA-256 of the key of the page before it and its tokens, so that it stands for the whole text up
    to here. A cryptographic hash, since prompts come from strangers and a collision would show one the other's text."""
    return hashlib.sha256(before + np.asarray(tokens, np.uint32).tobytes()).digest()
