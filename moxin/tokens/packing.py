"""Best-fit packing of documents into rows, shard by shard: few documents are cut, at the price of some padding.

A document of n tokens is n - 1 positions with a target. What is longer than a row gives whole rows first; the rests and the
shorter documents are packed best-fit decreasing (Ding et al., arXiv 2404.10830). The rows of a shard depend on the lengths
of its documents and the context alone; they are kept in one small file per shard, which is memory-mapped:

    pack.json                      context, and per selection of the mix its shards, with how many rows and the checksum
    packs/books-00000.pack         int64: row r holds the pieces first[r] .. first[r + 1]; then their starts; their lengths
"""

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from kernels import tokens as kernels
from moxin import storage
from moxin.recipe import Selection
from moxin.tokens.files import FileOf, Files
from moxin.tokens.store import Store, Stream

INT64 = np.dtype("<i8")


class Rows(NamedTuple):
    """Packed rows: row r holds the pieces `first[r] .. first[r + 1]`; a piece is `length` positions from `start` on."""

    first: np.ndarray
    start: np.ndarray
    length: np.ndarray


def pack(cum: np.ndarray, context: int) -> Rows:
    """The rows of documents that begin at `cum` uint64[documents + 1] of a shard's stream."""
    begins = cum[:-1].astype(np.int64)
    positions = np.diff(cum.astype(np.int64)) - 1
    whole, rest = np.divmod(positions, context)
    # Document by document the whole rows, then what is left of each.
    owner = np.repeat(np.arange(len(begins)), whole)
    nth = np.arange(len(owner)) - np.repeat(np.cumsum(whole) - whole, whole)
    kept = np.flatnonzero(rest)
    bins, n_bins = kernels.best_fit(rest[kept], context)
    order = np.argsort(bins, kind="stable")
    start = np.concatenate([begins[owner] + nth * context, (begins + whole * context)[kept][order]])
    length = np.concatenate([np.full(len(owner), context), rest[kept][order]])
    per_row = np.concatenate([np.ones(len(owner), np.int64), np.bincount(bins, minlength=n_bins)])
    return Rows(np.concatenate([[0], np.cumsum(per_row)]), start, length)


def pack_shard(store_url: str, key: str, number: int, context: int, url: str) -> dict[str, Any]:
    """Packs shard `number` of a selection, writes its file below `url`, and returns what `pack.json` says of it."""
    stream = Store.open(store_url).stream(Selection.parse(key))
    opened = stream.opened(number)
    lengths = np.diff(opened.cum.astype(np.int64))
    rows = pack(opened.cum, context)
    data = np.concatenate(rows).astype(INT64).tobytes()
    file = file_of(key, number)
    storage.write_bytes(storage.join(url, file), data)
    return {
        "key": key,
        "number": number,
        "shard": stream.shards[number].file,
        "file": file,
        "rows": len(rows.first) - 1,
        "pieces": len(rows.start),
        "positions": int(rows.length.sum()),
        "documents": len(lengths),
        "cut": int((lengths - 1 > context).sum()),
        "longest": int(lengths.max(initial=0)),
        "sha256": hashlib.sha256(data).hexdigest(),
    }


def file_of(key: str, number: int) -> str:
    name = key.replace(">=", "-from-").replace("<", "-below-")
    return f"packs/{name}-{number:05d}.pack"


class PackedStream:
    """The packed rows of a selection through all shards, in place of a `Stream`: its positions are rows."""

    def __init__(self, stream: Stream, packs: "Packs", key: str) -> None:
        self.stream, self._packs, self._shards = stream, packs, packs.described["streams"][key]
        assert [shard["shard"] for shard in self._shards] == [shard.file for shard in stream.shards], key
        self._starts = np.cumsum([0, *(shard["rows"] for shard in self._shards)])
        self.rows = int(self._starts[-1])
        self._opened: dict[int, Rows] = {}

    def read(self, start: int, tokens: np.ndarray, targets: np.ndarray, segments: np.ndarray) -> None:
        """Fills a row with the pieces of row `start`; what is left is padding: target `IGNORE`, segment -1, token 0."""
        number, pieces = self._pieces(start)
        done = segment = 0
        for at, n in pieces:
            span = slice(done, done + n)
            segment = self.stream.read_piece(number, at, segment, tokens[span], targets[span], segments[span])
            done += n
        tokens[done:], targets[done:], segments[done:] = 0, kernels.IGNORE, -1

    def will_need(self, start: int, n: int) -> None:
        """Nothing: the pieces of a row lie apart."""

    def prefetch(self, starts: np.ndarray, n: int) -> None:
        """See `Stream.prefetch`; for rows."""
        numbers = np.unique(np.searchsorted(self._starts, starts, "right") - 1)
        self.stream.prefetch(np.array(self.stream.starts)[numbers], 1)

    def documents_at(self, start: int, n: int) -> list[tuple[str, int, int]]:
        """See `Stream.documents_at`."""
        number, pieces = self._pieces(start)
        base = self.stream.starts[number]
        return [document for at, _ in pieces for document in self.stream.documents_at(base + at, 1)]

    def _pieces(self, row: int) -> tuple[int, list[tuple[int, int]]]:
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        if number not in self._opened:
            self._opened[number] = self._packs.open(self._shards[number])
        rows = self._opened[number]
        at = row - int(self._starts[number])
        span = slice(rows.first[at], rows.first[at + 1])
        return number, list(zip(rows.start[span].tolist(), rows.length[span].tolist(), strict=True))


class Packs:
    """The packs of a phase, made by the stage `pack-PHASE`."""

    def __init__(self, url: str) -> None:
        self._files = Files(url, f"delete {url} and run jobs/pretrain.py again")
        self.described: Mapping[str, Any] = storage.read_json(storage.join(url, "pack.json"))
        self.context: int = self.described["context"]

    def open(self, shard: Mapping[str, Any]) -> Rows:
        """The rows of a shard that `pack.json` describes."""
        n_rows, n_pieces = shard["rows"], shard["pieces"]
        n_bytes = INT64.itemsize * (n_rows + 1 + 2 * n_pieces)
        data = self._files.map(FileOf(shard["file"], n_bytes, shard["sha256"]), INT64).array
        return Rows(
            data[: n_rows + 1], data[n_rows + 1 : n_rows + 1 + n_pieces], data[n_rows + 1 + n_pieces :]
        )
