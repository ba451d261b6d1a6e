"""The paged key/value cache (arXiv 2309.06180). Layers with one window form a group with pages of its own: in a windowed
layer (arXiv 2310.06825, §2) a sequence gives back the pages that it can no longer see, whatever the other layers need.

Letters of tensor names as in `kernels.paged_attention`.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from kernels.paged_attention import Pages, Queries
from moxin.infer.pages import PagePool, page_key
from moxin.recipe import ModelConfig

PAGE_SIZE = 16
"""Tokens of a page."""


class Group:
    """Layers that see equally far: their pages, and a table from each sequence's positions to them."""

    def __init__(self, window: int | None, n_layers: int, n_pages: int, n_rows: int, n_columns: int) -> None:
        self.window, self.n_layers = window, n_layers
        self.pool = PagePool(n_pages)
        self.table_RC = np.zeros((n_rows, n_columns), np.int32)

    def first_seen(self, position: int) -> int:
        """Index of the first page that a query at this position sees."""
        return 0 if self.window is None else max(0, position - self.window + 1) // PAGE_SIZE


@dataclass
class Held:
    """What a sequence has in the cache: for each group the pages from index `first` on."""

    row: int
    first: list[int]
    pages: list[deque[int]]
    n_known: list[int] = field(default_factory=list)
    """Pages whose tokens are remembered, in each group."""


class PagedCache:
    """Keys and values of up to `n_rows` sequences of up to `max_len` tokens.

    `n_tokens` is the room in all, by default enough for all rows at their longest. A group without a window has pages for
    `n_tokens`; one with a window for no more than its rows can hold at once, where there are others. `dtype` is that of the
    numbers; int8 keeps a scale for each token and head. `chunk` is the most tokens written in one pass.

    Raises `ValueError` where one sequence of `max_len` would not fit, so that the last running one can always go on.
    """

    def __init__(
        self,
        config: ModelConfig,
        n_rows: int,
        max_len: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        n_tokens: int | None = None,
        chunk: int = 256,
    ) -> None:
        self.device, self.dtype, self.max_len = torch.device(device), dtype, max_len
        self.page_size = PAGE_SIZE
        windows = list(dict.fromkeys(config.windows))
        columns = [columns_of(window, max_len, chunk) for window in windows]
        if n_tokens is None:
            n_tokens = n_rows * max(columns) * PAGE_SIZE
        if n_tokens < max(columns) * PAGE_SIZE:
            raise ValueError(
                f"cache_tokens = {n_tokens}: one sequence of max_len = {max_len} needs {max(columns) * PAGE_SIZE} tokens of "
                "cache; give more, or lower max_len"
            )
        self.groups: list[Group] = []
        for window, n_columns in zip(windows, columns, strict=True):
            n_pages = n_tokens // PAGE_SIZE
            if len(windows) > 1 and window is not None:
                n_pages = min(n_pages, n_rows * n_columns)
            self.groups.append(Group(window, config.windows.count(window), n_pages, n_rows + 1, n_columns))
        self.place: list[tuple[int, int]] = []
        """Each layer's group and its number there."""
        counts = [0] * len(windows)
        for window in config.windows:
            g = windows.index(window)
            self.place.append((g, counts[g]))
            counts[g] += 1
        self._pages = [
            _tensors(group, config.n_kv_heads, config.head_dim, dtype, self.device) for group in self.groups
        ]
        self._free_rows = list(range(n_rows - 1, -1, -1))
        self.n_rows = n_rows
        self.n_queries = self.n_hits = 0
        """Tokens looked for among remembered pages, and found."""

    @property
    def n_free_rows(self) -> int:
        return len(self._free_rows)

    @property
    def n_bytes(self) -> int:
        return sum(
            x.numel() * x.itemsize
            for pages in self._pages
            for layer in pages
            for x in (layer.k, layer.v, *(layer.scales or ()))
        )

    def layer(self, layer: int) -> tuple[int, int | None, Pages]:
        """A layer's group, window and pages."""
        g, at = self.place[layer]
        return g, self.groups[g].window, self._pages[g][at]

    def pages_of(self, n_tokens: int) -> list[int]:
        """Pages that a sequence of this length takes at most at once, in each group."""
        needed = -(-n_tokens // PAGE_SIZE)
        return [min(needed, group.table_RC.shape[1]) for group in self.groups]

    def n_held(self, held: Held) -> list[int]:
        return [len(pages) for pages in held.pages]

    def match(self, keys: Sequence[bytes], n_tokens: int) -> int:
        """How many leading pages of a sequence need not be computed: at least one token of `n_tokens` is left to compute.

        In a windowed group only the pages that the next token sees have to be there.
        """
        longest = min(len(keys), (n_tokens - 1) // PAGE_SIZE)
        for group in self.groups:
            if group.window is None:
                longest = next((i for i in range(longest) if group.pool.find(keys[i]) is None), longest)
        for n in range(longest, 0, -1):
            if all(
                group.pool.find(keys[i]) is not None
                for group in self.groups
                if group.window is not None
                for i in range(n - 1, group.first_seen(n * PAGE_SIZE) - 1, -1)
            ):
                return n
        return 0

    def fits(self, keys: Sequence[bytes], n_hit: int, n_tokens: int, promised: Sequence[int]) -> bool:
        """Whether a row and pages are free for a sequence of `n_tokens` whose first `n_hit` pages are remembered, beside
        the pages `promised` to others in each group."""
        if not self._free_rows:
            return False
        for group, needed, others in zip(self.groups, self.pages_of(n_tokens), promised, strict=True):
            hits = range(group.first_seen(n_hit * PAGE_SIZE), n_hit)
            found = [group.pool.find(keys[i]) for i in hits]
            held = sum(page is not None and not group.pool.is_free(page) for page in found)
            if group.pool.n_free - others < needed - held:
                return False
        return True

    def open(self, keys: Sequence[bytes], n_hit: int) -> Held:
        """A row for a sequence that begins with `n_hit` remembered pages."""
        row = self._free_rows.pop()
        held = Held(row, [], [], [n_hit] * len(self.groups))
        for group in self.groups:
            first = group.first_seen(n_hit * PAGE_SIZE)
            pages: deque[int] = deque()
            for index in range(first, n_hit):
                page = group.pool.find(keys[index])
                assert page is not None
                group.pool.share(page)
                pages.append(page)
                group.table_RC[row, index % group.table_RC.shape[1]] = page
            held.first.append(first)
            held.pages.append(pages)
        return held

    def extend(self, held: Held, n_tokens: int) -> bool:
        """Sees to pages for the first `n_tokens` of a sequence. False, with nothing taken, where too few are free."""
        last = -(-n_tokens // PAGE_SIZE)
        missing = [last - first - len(pages) for first, pages in zip(held.first, held.pages, strict=True)]
        if any(n > group.pool.n_free for n, group in zip(missing, self.groups, strict=True)):
            return False
        for group, n, first, pages in zip(self.groups, missing, held.first, held.pages, strict=True):
            n_columns = group.table_RC.shape[1]
            for _ in range(n):
                page = group.pool.take()
                group.table_RC[held.row, (first + len(pages)) % n_columns] = page
                pages.append(page)
            assert len(pages) <= n_columns, (len(pages), n_columns)
        return True

    def commit(self, held: Held, keys: Sequence[bytes], n_tokens: int) -> None:
        """The first `n_tokens` are written: remembers full pages, and gives back what no later token sees."""
        for g, group in enumerate(self.groups):
            first, pages = held.first[g], held.pages[g]
            n_full = min(n_tokens // PAGE_SIZE, len(keys))
            for index in range(max(held.n_known[g], first), n_full):
                group.pool.remember(pages[index - first], keys[index])
            held.n_known[g] = max(held.n_known[g], n_full)
            while held.first[g] < group.first_seen(n_tokens) and pages:
                group.pool.release(pages.popleft())
                held.first[g] += 1

    def trim(self, held: Held, n_tokens: int) -> None:
        """Gives back pages beyond the first `n_tokens`: what was written there turned out to be wrong."""
        last = -(-n_tokens // PAGE_SIZE)
        for g, group in enumerate(self.groups):
            while held.first[g] + len(held.pages[g]) > last:
                group.pool.release(held.pages[g].pop())

    def close(self, held: Held) -> None:
        """Gives back everything. The end of a text goes first, as its beginning is what others may share."""
        for group, pages in zip(self.groups, held.pages, strict=True):
            while pages:
                group.pool.release(pages.pop())
        self._free_rows.append(held.row)

    def keys(self, known: list[bytes], tokens: Sequence[int], salt: str = "") -> list[bytes]:
        """`known` with the keys of all full pages of `tokens` appended."""
        while (len(known) + 1) * PAGE_SIZE <= len(tokens):
            start = len(known) * PAGE_SIZE
            before = known[-1] if known else salt.encode()
            known.append(page_key(before, tokens[start : start + PAGE_SIZE]))
        return known

    def queries(self, work: Sequence[tuple[Held, int, int]], longest: int | None = None) -> list[Queries]:
        """For each group what attention needs of (sequence, first position, number of tokens)."""
        rows = [held.row for held, _, n in work for _ in range(n)]
        positions = [position for _, start, n in work for position in range(start, start + n)]
        spans, at = [], 0
        for _, _, n in work:
            spans.append((at, n))
            at += n
        rows_N, positions_N = (torch.tensor(values, device=self.device) for values in (rows, positions))
        longest = longest or max(positions) + 1
        return [
            Queries(table_RC, rows_N, positions_N, tuple(spans), longest)
            for table_RC in (torch.from_numpy(group.table_RC).to(self.device) for group in self.groups)
        ]


def columns_of(window: int | None, max_len: int, chunk: int) -> int:
    """Most pages that a sequence holds at once in a layer: what the first token of a chunk sees and the chunk itself."""
    whole = -(-max_len // PAGE_SIZE)
    return whole if window is None else min(whole, -(-(window - 1 + chunk) // PAGE_SIZE) + 1)


def _tensors(
    group: Group, n_kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
) -> list[Pages]:
    shape = (group.n_layers, group.pool.n_pages + 1, PAGE_SIZE, n_kv_heads, head_dim)
    k, v = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
    if dtype != torch.int8:
        return [Pages(k[i], v[i]) for i in range(group.n_layers)]
    scales = [torch.zeros(shape[:-1], dtype=torch.float32, device=device) for _ in range(2)]
    return [Pages(k[i], v[i], (scales[0][i], scales[1][i])) for i in range(group.n_layers)]
