"""The intermediate files of the near-duplicate search: items in groups, of which any run is read with one ranged read.

    header   magic, kind, tag, groups, items, documents, bytes per item, CRC-32 of all this       64 bytes
    index    per group where it begins (items, uint64) and the CRC-32 of its bytes (uint32)       16 bytes each, and the end
    items    group after group, little-endian

The tag is a hash of all that decides the content, so that a file of other settings is not taken for a finished one. A file
is written atomically; what is read of it is checked against its CRC, hence a file that was cut or altered is named by
`ValueError` and never changes a result.
"""

import itertools
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moxin import storage

_HEADER = struct.Struct("<8s8sQQQQII8x")
_MAGIC = b"moxinFZ1"
_ENTRY = np.dtype([("start", "<u8"), ("crc", "<u4"), ("zero", "<u4")])
_GAP = 1 << 16
"""Bytes: two pieces of a file that are nearer than this are read as one."""

KEYS = np.dtype([("key", "<u8"), ("signature", "<u4"), ("row", "<u4")])
LARGE = np.dtype([("document", "<u8"), ("key", "<u8"), ("signature", "<u4")])
PAIRS = np.dtype([("smaller", "<u8"), ("larger", "<u8")])
ALIKE = np.dtype([("smaller", "<u8"), ("larger", "<u8"), ("similarity", "<f8")])
NUMBERS = np.dtype("<u8")
VERDICTS = np.dtype([("kept", "<u8"), ("similarity", "<f8")])
KINDS = {
    "keys": KEYS,
    "large": LARGE,
    "pairs": PAIRS,
    "members": NUMBERS,
    "sets": NUMBERS,
    "alike": ALIKE,
    "verdicts": VERDICTS,
}


class Header(NamedTuple):
    """What the first 64 bytes say."""

    kind: str
    tag: int
    n_groups: int
    n_items: int
    n_documents: int
    """Documents of the unit, or whatever the kind counts."""


def write(
    url: str, kind: str, tag: int, items: np.ndarray, starts: NDArray[np.int64], n_documents: int = 0
) -> None:
    """Writes `items`, whose group g begins at `starts[g]`: int64[n_groups + 1]."""
    assert items.dtype == KINDS[kind], (kind, items.dtype)
    assert starts[0] == 0, starts[0]
    assert starts[-1] == len(items), (starts[-1], len(items))
    data = memoryview(items.tobytes())
    index = np.zeros(len(starts), _ENTRY)
    index["start"] = starts
    ends = (np.asarray(starts) * items.itemsize).tolist()
    index["crc"][:-1] = [zlib.crc32(data[a:b]) for a, b in itertools.pairwise(ends)]
    with storage.open_atomic(url) as handle:
        handle.write(_pack(Header(kind, tag, len(starts) - 1, len(items), n_documents), items.itemsize))
        handle.write(index.tobytes())
        handle.write(data)


def _pack(header: Header, itemsize: int) -> bytes:
    fields = (_MAGIC, header.kind.encode(), *header[1:], itemsize)
    return _HEADER.pack(*fields, zlib.crc32(_HEADER.pack(*fields, 0)))


def finished(url: str, kind: str, tag: int) -> bool:
    """Whether the file is there. Raises `ValueError` where it is one of other settings, or damaged."""
    if not storage.exists(url):
        return False
    Reader(url, kind, tag)
    return True


class Reader:
    """One file; `tag` is what it must have been written with, `None` where that does not matter."""

    def __init__(self, url: str, kind: str, tag: int | None) -> None:
        self.url, self.dtype = url, KINDS[kind]
        self._fs, self._path = storage.filesystem(url)
        try:
            size = int(self._fs.size(self._path))
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{url}: missing; run the step that writes it") from error
        head = self._read(0, _HEADER.size)
        magic, found, *numbers, itemsize, _ = _HEADER.unpack(head)
        self.header = Header(found.rstrip(b"\0").decode("ascii", "replace"), *numbers)
        if magic != _MAGIC or head != _pack(self.header, itemsize):
            raise self.damaged("its header is not what was written")
        if self.header.kind != kind or itemsize != self.dtype.itemsize:
            raise ValueError(f"{url}: holds {self.header.kind}, expected {kind}")
        if tag is not None and self.header.tag != tag:
            raise ValueError(f"{url}: written with other settings or for other units; use another folder")
        self._items_at = _HEADER.size + (self.header.n_groups + 1) * _ENTRY.itemsize
        expected = self._items_at + self.header.n_items * itemsize
        if size != expected:
            raise self.damaged(f"{size:,} bytes, expected {expected:,}")

    def damaged(self, problem: str) -> ValueError:
        return ValueError(f"{self.url}: a damaged file, {problem}; delete it and run the step that writes it")

    def _read(self, start: int, n_bytes: int) -> bytes:
        data = bytes(self._fs.cat_file(self._path, start=start, end=start + n_bytes)) if n_bytes else b""
        if len(data) != n_bytes:
            raise self.damaged(f"it ends {n_bytes - len(data):,} bytes early")
        return data

    def index(self, first: int, stop: int) -> np.ndarray:
        """Entries of the groups `first` to `stop`, and the one behind them."""
        data = self._read(_HEADER.size + first * _ENTRY.itemsize, (stop - first + 1) * _ENTRY.itemsize)
        entries = np.frombuffer(data, _ENTRY)
        starts = entries["start"].astype(np.int64)
        if starts[-1] > self.header.n_items or (np.diff(starts) < 0).any():
            raise self.damaged(f"the index of groups {first} to {stop} is not what was written")
        return entries

    def read(self, first: int = 0, stop: int | None = None) -> np.ndarray:
        """The items of the groups `first` to `stop`, without `stop`; all by default."""
        stop = self.header.n_groups if stop is None else stop
        entries = self.index(first, stop)
        return self._items(entries, first)

    def _items(self, entries: np.ndarray, first: int) -> np.ndarray:
        ends = ((entries["start"] - entries["start"][0]) * self.dtype.itemsize).tolist()
        start = self._items_at + int(entries["start"][0]) * self.dtype.itemsize
        data = memoryview(self._read(start, ends[-1]))
        for group, crc in enumerate(entries["crc"][:-1].tolist()):
            if zlib.crc32(data[ends[group] : ends[group + 1]]) != crc:
                raise self.damaged(f"the checksum of group {first + group} is wrong")
        return np.frombuffer(data, self.dtype)

    def lengths(self, groups: NDArray[np.int64]) -> NDArray[np.int64]:
        """Items of each of these sorted groups: int64[len(groups)]."""
        out = np.empty(len(groups), np.int64)
        for a, b in _runs(groups * _ENTRY.itemsize, (groups + 1) * _ENTRY.itemsize):
            starts = self.index(int(groups[a]), int(groups[b - 1]) + 1)["start"].astype(np.int64)
            out[a:b] = np.diff(starts)[groups[a:b] - groups[a]]
        return out

    def take(self, groups: NDArray[np.int64]) -> tuple[np.ndarray, NDArray[np.int64]]:
        """The items of these sorted groups, one after another, and where each group's begin: int64[len(groups) + 1]."""
        parts, lengths = [np.empty(0, self.dtype)], np.zeros(len(groups) + 1, np.int64)
        for a, b in _runs(groups * _ENTRY.itemsize, (groups + 1) * _ENTRY.itemsize):
            base = int(groups[a])
            entries = self.index(base, int(groups[b - 1]) + 1)
            starts = entries["start"].astype(np.int64)
            own = groups[a:b] - base
            lengths[a + 1 : b + 1] = starts[own + 1] - starts[own]
            size = self.dtype.itemsize
            for c, d in _runs(starts[own] * size, starts[own + 1] * size):
                low, high = int(own[c]), int(own[d - 1]) + 1
                items = self._items(entries[low : high + 1], base + low)
                wanted = np.zeros(high - low, bool)
                wanted[own[c:d] - low] = True
                parts.append(items[np.repeat(wanted, np.diff(starts[low : high + 1]))])
        return np.concatenate(parts), np.cumsum(lengths)


def _runs(starts: NDArray[np.int64], ends: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Runs [a, b) of sorted pieces of a file that one read is to take together."""
    if not len(starts):
        return
    cuts = np.flatnonzero(starts[1:] - ends[:-1] > _GAP) + 1
    bounds = [0, *cuts.tolist(), len(starts)]
    yield from itertools.pairwise(bounds)


def concatenated(parts: Sequence[Any], dtype: np.dtype) -> np.ndarray:
    """`np.concatenate` that knows the type of nothing."""
    return np.concatenate([np.empty(0, dtype), *parts])
