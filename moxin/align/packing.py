"""Several sequences in one row: best-fit decreasing bin packing, with a document number per token.

A row of `context` positions is filled with whole sequences; attention and positions restart in each (`segments`), so a
packed row gives every sequence the loss it would have on its own.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moxin.train.objective import IGNORE


@dataclass(frozen=True)
class Example:
    """One sequence shifted by one: `targets[t]` follows `tokens[t]`; `IGNORE` where the loss does not count it. int64[n]."""

    tokens: np.ndarray
    targets: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)


def example(ids: Sequence[int], mask: Sequence[bool]) -> Example:
    """The sequence `ids` with a loss on those tokens whose `mask` is True. The first token is never predicted."""
    tokens = np.asarray(ids, np.int64)
    return Example(tokens[:-1], np.where(np.asarray(mask, bool)[1:], tokens[1:], IGNORE))


def best_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Bins of indices whose lengths sum to at most `capacity`; every index is in exactly one bin.

    Longest first, each into the fullest bin that still holds it; equal lengths keep their order. Uses at most 11/9 of the
    fewest possible bins, plus one (Johnson, 1973). The number of bins does not depend on the order of `lengths`. Every
    length must be at most `capacity`.
    """
    bins: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (free positions, bin), sorted
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        assert lengths[index] <= capacity, (lengths[index], capacity)
        where = bisect_left(free, (lengths[index], -1))
        if where == len(free):
            bins.append([])
            room, number = capacity, len(bins) - 1
        else:
            room, number = free.pop(where)
        bins[number].append(index)
        insort(free, (room - lengths[index], number))
    return bins


def row(examples: Sequence[Example], context: int, pad_id: int) -> dict[str, np.ndarray]:
    """Examples side by side in one row: `tokens`, `targets` int64[context] and `segments` int32[context], -1 on padding."""
    tokens = np.full(context, pad_id, np.int64)
    targets = np.full(context, IGNORE, np.int64)
    segments = np.full(context, -1, np.int32)
    start = 0
    for number, item in enumerate(examples):
        end = start + len(item)
        tokens[start:end], targets[start:end], segments[start:end] = item.tokens, item.targets, number
        start = end
    return {"tokens": tokens, "targets": targets, "segments": segments}


def stack(rows: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Rows of one width as a micro-batch: every array gains a leading batch dimension."""
    return {name: np.stack([item[name] for item in rows]) for name in rows[0]}
