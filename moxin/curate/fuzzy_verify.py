"""The third step of the near-duplicate search: true Jaccard similarity of the candidates, from files of shingle sets."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from kernels import minhash
from moxin import storage
from moxin.curate import fuzzy_files as files
from moxin.curate import fuzzy_shingles
from moxin.curate.fuzzy_keys import LEVELS, Search, Texts, Unit

BUDGET = 256 * 2**20
"""Bytes of shingle sets that `verify` holds of either side."""
_FLUSH = 1 << 23
"""Pairs that are gathered before their repeats are dropped: 64 MiB."""


def write_sets(search: Search, place: int, texts: Callable[[Unit], Texts], *, lasting: bool = False) -> None:
    """Writes the sorted shingle sets of a unit's candidates, or with `lasting` of all of its documents.

    Memory: 8 bytes per shingle that is written (a word, or a character of the text), twice, and what a batch needs.
    """
    unit, tag = search.units[place], search.params.sets_tag if lasting else search.tag
    url = unit.url("sets")
    if storage.exists(url) and files.Reader(url, "sets", None).header.tag == search.params.sets_tag:
        return  # sets of all documents hold those of any
    if files.finished(url, "sets", tag):
        return
    wanted = np.full(unit.documents, lasting)
    if not lasting:
        for members in range_files(search, "members"):
            wanted[(members.read(place, place + 1) - np.uint64(search.starts[place])).astype(np.int64)] = True
    values, sizes, row = [np.empty(0, np.uint64)], np.zeros(unit.documents + 1, np.int64), 0
    for text in texts(unit) if wanted.any() else ():
        rows = np.flatnonzero(wanted[row : row + len(text)])
        if len(rows):
            sets, starts = fuzzy_shingles.sets(text.take(rows), search.params)
            values.append(sets)
            sizes[row + rows + 1] = np.diff(starts)
        row += len(text)
    if wanted.any() and row != unit.documents:
        raise ValueError(f"{url}: {row:,} texts were read, expected {unit.documents:,}")
    files.write(url, "sets", tag, np.concatenate(values), np.cumsum(sizes), int(wanted.sum()))


def range_files(
    search: Search, kind: str, levels: Sequence[int] = range(1, LEVELS + 1)
) -> Iterator[files.Reader]:
    for level in levels:
        for range_ in range(search.n_ranges):
            yield files.Reader(search.range_url(kind, level, range_), kind, search.ranges_tag)


def verify(search: Search, place: int, budget: int = BUDGET) -> None:
    """Compares the candidate pairs whose larger document is the unit's: `alike/`, those that reach the threshold.

    Memory: 24 bytes per candidate pair of the unit, two times `budget` for sets (or one document's set, if that is more).
    """
    unit = search.units[place]
    url = unit.url("alike", search.folder)
    if files.finished(url, "alike", search.tag):
        return
    n, parts, gathered = np.uint64(search.n), [np.empty(0, np.uint64)], 0
    for reader in range_files(search, "pairs"):
        items = reader.read(place, place + 1)
        parts.append(items["larger"] * n + items["smaller"])
        gathered += len(items)
        if gathered > _FLUSH:
            parts, gathered = [np.unique(np.concatenate(parts))], 0
    coded = np.unique(np.concatenate(parts))
    pairs = np.stack([coded % n, coded // n], axis=1).astype(np.int64)
    similarity = compare(search, place, pairs, budget)
    write_alike(url, search.tag, pairs[similarity >= 0], similarity[similarity >= 0])


def write_alike(url: str, tag: int, pairs: NDArray[np.int64], similarity: NDArray[np.float64]) -> None:
    items = np.empty(len(pairs), files.ALIKE)
    items["smaller"], items["larger"], items["similarity"] = pairs[:, 0], pairs[:, 1], similarity
    files.write(url, "alike", tag, items, np.array([0, len(items)]))


def compare(search: Search, place: int, pairs: NDArray[np.int64], budget: int) -> NDArray[np.float64]:
    """True Jaccard similarity of pairs (smaller, larger), sorted by the larger, which the unit holds; -1 below the
    threshold.

    The unit's own sets are taken a block at a time, and for each the others unit by unit, a block at a time: every read is a
    run of a file, and no more than twice the budget is held.
    """
    out = np.full(len(pairs), -1.0)
    own = _Sets(search, place)
    for rows in own.blocks(np.unique(pairs[:, 1]) - search.starts[place], budget):
        numbers = rows + search.starts[place]
        begin, end = np.searchsorted(pairs[:, 1], [numbers[0], numbers[-1] + 1])
        left = own.take(rows)
        by_smaller = begin + np.argsort(pairs[begin:end, 0], kind="stable")
        smaller = pairs[by_smaller, 0]
        bounds = np.searchsorted(smaller, search.starts)
        for other in np.flatnonzero(np.diff(bounds)).tolist():
            theirs = _Sets(search, other)
            start = search.starts[other]
            for block in theirs.blocks(np.unique(smaller[bounds[other] : bounds[other + 1]]) - start, budget):
                low, high = np.searchsorted(smaller, [block[0] + start, block[-1] + start + 1])
                chosen = by_smaller[low:high]
                local = np.stack(
                    [
                        np.searchsorted(numbers, pairs[chosen, 1]),
                        np.searchsorted(block + start, pairs[chosen, 0]),
                    ],
                    axis=1,
                )
                out[chosen] = minhash.jaccard_from(*left, *theirs.take(block), local, search.params.threshold)
    return out


class _Sets:
    """The shingle sets of one unit."""

    def __init__(self, search: Search, place: int) -> None:
        self._reader = files.Reader(search.units[place].url("sets"), "sets", None)
        if self._reader.header.tag not in (search.params.sets_tag, search.tag):
            raise ValueError(
                f"{self._reader.url}: written with other settings, or for candidates of other units only; "
                "an earlier corpus must be run with lasting=True"
            )

    def blocks(self, rows: NDArray[np.int64], budget: int) -> Iterator[NDArray[np.int64]]:
        """Sorted rows in runs whose sets take at most `budget` bytes."""
        if not len(rows):
            return
        lengths = self._reader.lengths(rows)
        if not lengths.all():
            row = rows[int(np.flatnonzero(lengths == 0)[0])]
            raise self._reader.damaged(f"no shingles of document {row}, which is a candidate")
        ends, begin = np.cumsum(lengths) * 8, 0
        while begin < len(rows):
            used = ends[begin - 1] if begin else 0
            stop = max(int(np.searchsorted(ends, used + budget, "right")), begin + 1)
            yield rows[begin:stop]
            begin = stop

    def take(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        return self._reader.take(rows)
