"""The token store: flat little-endian shards that are memory-mapped, with the offsets of the documents beside them.

    store.json                     dtype, vocabulary, control ids, the tokenizer's fingerprint, and per source its shards
    shards/prose-00000.bin         token ids, uint16 or uint32, one document after another
    shards/prose-00000.idx         uint64[documents + 1]: where each document begins, and the end

The sequence length is chosen when it is read, and so are mixture, order and packing. Every document is `<s> text </s>`, or
`text <|endoftext|>` where the tokenizer has one token for both.
"""

import hashlib
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import IO, Any, NamedTuple

import numpy as np

from kernels import tokens as kernels
from moxin import storage
from moxin.config import nearest
from moxin.recipe import Selection
from moxin.tokens.files import FileOf, Files, Mapped

OFFSETS = np.dtype("<u8")
MAX_OPEN = 1024
"""Files of a store that one process keeps mapped; Linux allows 65,530 maps."""


def dtype_for(vocab_size: int) -> np.dtype:
    """The smallest type that holds every id: uint16 up to 65,536 of them, else uint32."""
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


@dataclass(frozen=True)
class Shard:
    """What `store.json` says of one shard; `file` is the path of its `.bin` in the store."""

    file: str
    documents: int
    tokens: int
    sha256: str
    index_sha256: str
    """Of the file of offsets beside it."""
    longer: tuple[int, ...] = ()
    """Item k: tokens in documents of at least 2^k tokens."""

    @classmethod
    def of(cls, described: Mapping[str, Any]) -> "Shard":
        """The shard that JSON describes."""
        return cls(**{**described, "longer": tuple(described["longer"])})

    @property
    def index(self) -> str:
        return self.file.removesuffix(".bin") + ".idx"

    def tokens_of(self, chosen: Selection) -> int:
        """Tokens in the documents that a selection takes."""
        return self._from(chosen.least) - self._from(chosen.below)

    def _from(self, least: int) -> int:
        power = (least - 1).bit_length()
        return self.longer[power] if power < len(self.longer) else 0


def tokens_by_length(lengths: np.ndarray) -> tuple[int, ...]:
    """`Shard.longer` of documents of these lengths."""
    if not len(lengths):
        return ()
    powers = 2 ** np.arange(int(lengths.max()).bit_length())
    return tuple(int(lengths[lengths >= power].sum()) for power in powers)


class ShardWriter:
    """Takes documents in batches; see `writing`."""

    def __init__(self, file: str, handle: IO[bytes], dtype: np.dtype) -> None:
        self.file, self._handle, self._dtype = file, handle, dtype
        self._digest, self._lengths = hashlib.sha256(), [np.zeros(1, np.int64)]

    def append(self, ids: np.ndarray, lengths: np.ndarray) -> None:
        """Documents one after another, control tokens included; each has at least one id. Ids must fit the store's type."""
        assert not len(lengths) or lengths.min() > 0, "a document without tokens would make offsets ambiguous"
        assert len(ids) == lengths.sum(), (len(ids), lengths.sum())
        if len(ids) and int(ids.max()) > np.iinfo(self._dtype).max:
            raise OverflowError(f"{self.file}: the id {int(ids.max()):,} does not fit {self._dtype}")
        data = np.ascontiguousarray(ids, self._dtype).view(np.uint8).data
        self._handle.write(data)
        self._digest.update(data)
        self._lengths.append(np.asarray(lengths, np.int64))

    def finish(self) -> tuple[Shard, bytes]:
        """What was written, and the content of the file of offsets."""
        lengths = np.concatenate(self._lengths)
        offsets = np.cumsum(lengths).astype(OFFSETS).tobytes()
        return (
            Shard(
                self.file,
                len(lengths) - 1,
                int(lengths.sum()),
                self._digest.hexdigest(),
                hashlib.sha256(offsets).hexdigest(),
                tokens_by_length(lengths[1:]),
            ),
            offsets,
        )


@contextmanager
def writing(url: str, file: str, dtype: np.dtype) -> Iterator[tuple[ShardWriter, list[Shard]]]:
    """A writer for the shard `file` (`shards/….bin`) of the store at `url`, and a list that holds the shard when the block
    has ended. Both of its files appear then."""
    finished: list[Shard] = []
    with storage.open_atomic(storage.join(url, file)) as handle:
        writer = ShardWriter(file, handle, dtype)
        yield writer, finished
        shard, offsets = writer.finish()
        storage.write_bytes(storage.join(url, shard.index), offsets)
    finished.append(shard)


def write_description(
    url: str,
    vocab_size: int,
    tokenizer: str,
    special: Mapping[str, int | None],
    sources: Mapping[str, Mapping[str, Any]],
) -> None:
    """`store.json`: `tokenizer` is its fingerprint; a source has `documents`, `tokens`, `bytes` and `shards`."""
    described = {
        "dtype": dtype_for(vocab_size).name,
        "vocab_size": vocab_size,
        "tokenizer": tokenizer,
        "special": special,
        "sources": {
            name: {**source, "shards": [asdict(shard) for shard in source["shards"]]}
            for name, source in sources.items()
        },
    }
    storage.write_json(storage.join(url, "store.json"), described)


class Opened(NamedTuple):
    """A shard in memory: its ids, and the documents that a stream takes of it as `kernels.tokens` wants them."""

    ids: Mapped
    cum: np.ndarray
    """uint64[documents + 1]: where each begins in the stream of those taken."""
    where: np.ndarray
    """uint64[documents]: where each begins in `ids`."""


class Stream:
    """The documents of a source, all or those of a selection, one after another through all shards.

    Positions count from 0 to `tokens`. Safe to use from several threads.
    """

    def __init__(self, store: "Store", chosen: Selection) -> None:
        self.shards = store.sources[chosen.source]
        self._store, self._chosen = store, chosen
        sizes = [shard.tokens_of(chosen) for shard in self.shards]
        self.starts: list[int] = np.cumsum([0, *sizes]).tolist()
        self.tokens = self.starts[-1]
        self._opened: OrderedDict[int, Opened] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, start: int, tokens: np.ndarray, targets: np.ndarray, segments: np.ndarray) -> None:
        """Fills a row with the positions from `start` on: `tokens`, `targets` int64[n], `segments` int32[n].

        A target is the next token of the same document, `IGNORE` at its end; documents are numbered from 0.
        """
        n = len(tokens)
        assert 0 <= start <= self.tokens - n, (self._chosen, start, n, self.tokens)
        done = segment = 0
        number = bisect_right(self.starts, start) - 1
        while done < n:
            at = start + done - self.starts[number]
            here = min(n - done, self.starts[number + 1] - start - done)
            segment = self.read_piece(
                number,
                at,
                segment,
                tokens[done : done + here],
                targets[done : done + here],
                segments[done : done + here],
            )
            done, number = done + here, number + 1

    def read_piece(
        self,
        number: int,
        at: int,
        segment: int,
        tokens: np.ndarray,
        targets: np.ndarray,
        segments: np.ndarray,
    ) -> int:
        """`read` within shard `number`, whose documents are numbered from `segment`; returns the next free number."""
        ids, cum, where = self.opened(number)
        segment, largest = kernels.read(
            ids.array, cum, where, at, len(tokens), segment, tokens, targets, segments
        )
        if largest >= self._store.vocab_size:
            problem = f"it holds the id {largest:,}, the vocabulary ends at {self._store.vocab_size:,}"
            raise self._store.files.damaged(self.shards[number].file, problem)
        return segment

    def opened(self, number: int) -> Opened:
        """Shard `number`; the least recently used ones are closed."""
        with self._lock:
            if number in self._opened:
                self._opened.move_to_end(number)
                return self._opened[number]
            opened = self._open(self.shards[number])
            self._opened[number] = opened
            if len(self._opened) > MAX_OPEN // 2:
                self._opened.popitem(last=False)
            return opened

    def _open(self, shard: Shard) -> Opened:
        ids, offsets = self._store.shard(shard)
        if self._chosen.everything:
            ids.read_at_random()
            return Opened(ids, offsets, offsets[:-1])
        taken = kernels.select(offsets, self._chosen.least, self._chosen.below)
        lengths = np.diff(offsets)[taken]
        cum = np.concatenate([np.zeros(1, OFFSETS), np.cumsum(lengths, dtype=OFFSETS)])
        assert int(cum[-1]) == shard.tokens_of(self._chosen), (shard, self._chosen)
        return Opened(ids, cum, offsets[taken])

    def will_need(self, start: int, n: int) -> None:
        """Begins to read the positions `start` to `start + n` from the disk, where they are not in memory yet."""
        if not self._chosen.everything:
            return  # its documents lie apart
        number = bisect_right(self.starts, start) - 1
        at = start - self.starts[number]
        self.opened(number).ids.will_need(at, min(n, self.starts[number + 1] - start))

    def prefetch(self, starts: np.ndarray, n: int) -> None:
        """Begins to fetch the shards of the positions from each of `starts` on, `n` of them."""
        edges = np.stack([starts, starts + n - 1])
        first, last = np.searchsorted(np.array(self.starts), edges, "right") - 1
        numbers = {
            number
            for pair in set(zip(first.tolist(), last.tolist(), strict=True))
            for number in range(pair[0], pair[1] + 1)
        }
        self._store.files.prefetch(
            [file for number in sorted(numbers) for file in self._store.files_of(self.shards[number])]
        )

    def documents_at(self, start: int, n: int) -> list[tuple[str, int, int]]:
        """The documents that the positions `start` to `start + n` are in: shard file, document number in it, first token."""
        found = []
        number, end = bisect_right(self.starts, start) - 1, start + n
        while start < end:
            opened, base = self.opened(number), self.starts[number]
            doc = int(np.searchsorted(opened.cum, np.uint64(start - base), side="right")) - 1
            taken = doc
            if not self._chosen.everything:
                _, offsets = self._store.shard(self.shards[number])
                taken = int(np.searchsorted(offsets, opened.where[doc]))
            found.append((self.shards[number].file, taken, start - base - int(opened.cum[doc])))
            start = base + int(opened.cum[doc + 1])
            while number + 1 < len(self.starts) - 1 and start >= self.starts[number + 1]:
                number += 1
        return found


class Store:
    """An opened token store. `sources` are the shards by source, in the order in which they are read."""

    def __init__(self, files: Files, described: Mapping[str, Any]) -> None:
        self.url, self.files = files.url, files
        self.vocab_size: int = described["vocab_size"]
        self.tokenizer: str = described["tokenizer"]
        self.special: Mapping[str, int | None] = described["special"]
        self.dtype = np.dtype(described["dtype"]).newbyteorder("<")
        self.sources = {
            name: [Shard.of(shard) for shard in source["shards"]]
            for name, source in described["sources"].items()
        }

    @classmethod
    def open(cls, url: str, *, verify: bool = True, cache_bytes: int | None = None) -> "Store":
        """The store at `url`; shards are mapped and checked when they are first read (see `Files`).

        Raises `ValueError` where there is no store.
        """
        if not storage.exists(storage.join(url, "store.json")):
            raise ValueError(f"{url}: no token store (store.json) there; make one with jobs/tokenize.py")
        remedy = f"delete {url} and run jobs/tokenize.py again"
        files = Files(url, remedy, verify=verify, cache_bytes=cache_bytes)
        return cls(files, storage.read_json(storage.join(url, "store.json")))

    def stream(self, chosen: Selection) -> Stream:
        """The documents that a selection takes. Raises `ValueError` for a source that the store does not have."""
        if chosen.source not in self.sources:
            hint = nearest(chosen.source, self.sources)
            raise ValueError(f"{self.url}: the token store has nothing of {chosen.source!r}; {hint}")
        return Stream(self, chosen)

    def check(self, fingerprint: str, where: str) -> None:
        """Raises `ValueError` where a tokenizer with another fingerprint has made the store."""
        if fingerprint != self.tokenizer:
            raise ValueError(
                f"{where}: this tokenizer ({fingerprint[:12]}) is not the one that made {self.url} "
                f"({self.tokenizer[:12]}), so its ids mean other texts; use {storage.join(self.url, 'tokenizer')}"
            )

    def files_of(self, shard: Shard) -> tuple[FileOf, FileOf]:
        """The files of a shard: ids and offsets."""
        return (
            FileOf(shard.file, shard.tokens * self.dtype.itemsize, shard.sha256),
            FileOf(shard.index, (shard.documents + 1) * OFFSETS.itemsize, shard.index_sha256),
        )

    def shard(self, shard: Shard) -> tuple[Mapped, np.ndarray]:
        """Ids and offsets of a shard, mapped. Raises `ValueError` for files that are not what store.json says."""
        file, index = self.files_of(shard)
        ids, offsets = self.files.map(file, self.dtype), self.files.map(index, OFFSETS).array
        # A wrong offset would make the kernels read beyond the shard.
        if offsets[0] or int(offsets[-1]) != shard.tokens or not (offsets[1:] > offsets[:-1]).all():
            raise self.files.damaged(shard.index, f"the offsets do not rise from 0 to {shard.tokens:,}")
        return ids, offsets
