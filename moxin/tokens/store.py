"""The token store: flat little-endian shards that are memory-mapped, with the offsets of the documents beside them.

    store.json                     dtype, vocabulary, control ids, and per source its shards
    shards/prose-00000.bin         token ids, uint16 or uint32, one document after another
    shards/prose-00000.idx         uint64[documents + 1]: where each document begins, and the end

The sequence length is chosen when it is read. Every document is `<s> text </s>`.
"""

import fcntl
import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from moxin import storage

OFFSETS = np.dtype("<u8")


def dtype_for(vocab_size: int) -> np.dtype:
    """The smallest type that holds every id: uint16 up to 65,536 of them, else uint32."""
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


@dataclass(frozen=True)
class Shard:
    """What `store.json` says of one shard; `file` is the path of its `.bin` in the store, `sha256` that of its content."""

    file: str
    documents: int
    tokens: int
    sha256: str


def index_file(file: str) -> str:
    """The file of document offsets that belongs to a `.bin`."""
    return file.removesuffix(".bin") + ".idx"


class ShardWriter:
    """Takes documents one by one; see `writing`."""

    def __init__(self, file: str, handle: IO[bytes], dtype: np.dtype) -> None:
        self._file, self._handle, self._dtype = file, handle, dtype
        self._digest = hashlib.sha256()
        self.offsets = [0]

    def append(self, ids: Sequence[int]) -> None:
        """One document, control tokens included; at least one id."""
        assert len(ids), "a document without tokens would make offsets ambiguous"
        data = np.asarray(ids, self._dtype).tobytes()
        self._handle.write(data)
        self._digest.update(data)
        self.offsets.append(self.offsets[-1] + len(ids))

    @property
    def shard(self) -> Shard:
        """What was written so far."""
        return Shard(self._file, len(self.offsets) - 1, self.offsets[-1], self._digest.hexdigest())


@contextmanager
def writing(url: str, file: str, dtype: np.dtype) -> Iterator[ShardWriter]:
    """A writer for the shard `file` (`shards/….bin`) of the store at `url`. Both of its files appear when the block ends."""
    with storage.open_atomic(storage.join(url, file)) as handle:
        writer = ShardWriter(file, handle, dtype)
        yield writer
        offsets = np.asarray(writer.offsets, OFFSETS)
        storage.write_bytes(storage.join(url, index_file(file)), offsets.tobytes())


class Source:
    """All shards of one source as one stream of tokens. Raises `ValueError` for a shard that is not what it should be."""

    def __init__(
        self, folder: Path, name: str, shards: Sequence[Shard], dtype: np.dtype, vocab_size: int
    ) -> None:
        self.name, self._shards, self._vocab_size, self._folder = name, shards, vocab_size, folder
        self._starts = np.cumsum([0, *(shard.tokens for shard in shards)])
        self.tokens = int(self._starts[-1])
        self.documents = sum(shard.documents for shard in shards)
        self._ids = [_map(folder, shard.file, dtype, shard.tokens) for shard in shards]
        self._offsets = [
            _map(folder, index_file(shard.file), OFFSETS, shard.documents + 1) for shard in shards
        ]
        for shard, offsets in zip(shards, self._offsets, strict=True):
            if offsets[0] != 0 or offsets[-1] != shard.tokens:
                raise ValueError(_broken(folder, index_file(shard.file), "its offsets do not span the shard"))

    def read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens `start` to `stop` of the stream and the number of each one's document, from 0. int64[n], int32[n]."""
        assert 0 <= start < stop <= self.tokens, (self.name, start, stop, self.tokens)
        tokens = np.empty(stop - start, np.int64)
        begins = np.zeros(stop - start, np.int32)
        at = start
        number = int(np.searchsorted(self._starts, at, side="right")) - 1
        while at < stop:
            base = int(self._starts[number])
            end = min(stop, int(self._starts[number + 1]))
            tokens[at - start : end - start] = self._ids[number][at - base : end - base]
            offsets = self._offsets[number]
            # Both bounds as uint64: any other type would make NumPy convert the whole mapped file first.
            first, last = np.searchsorted(offsets, np.array([at - base, end - base], OFFSETS))
            begins[offsets[first:last].astype(np.int64) + (base - start)] = 1
            if tokens[at - start : end - start].max() >= self._vocab_size:
                raise ValueError(
                    _broken(self._folder, self._shards[number].file, "it holds ids beyond the vocabulary")
                )
            at, number = end, number + 1
        segments = np.cumsum(begins, dtype=np.int32)
        return tokens, segments - segments[0]


@dataclass(frozen=True)
class Store:
    """An opened token store: the vocabulary's size and the sources by name."""

    vocab_size: int
    sources: dict[str, Source]

    @classmethod
    def open(cls, url: str) -> "Store":
        """Maps the store at `url`, from a copy on this machine where `url` is not local.

        Raises `ValueError` where there is no store or a shard has the wrong size.
        """
        if not storage.exists(storage.join(url, "store.json")):
            raise ValueError(f"{url}: no token store (store.json) there; make one with jobs/tokenize.py")
        folder = local_copy(url)
        described = storage.read_json(str(folder / "store.json"))
        dtype, vocab_size = np.dtype(described["dtype"]).newbyteorder("<"), described["vocab_size"]
        sources = {
            name: Source(folder, name, [Shard(**shard) for shard in source["shards"]], dtype, vocab_size)
            for name, source in described["sources"].items()
        }
        return cls(vocab_size, sources)


def local_copy(url: str) -> Path:
    """The folder of a local store, or a copy of a remote one below `$XDG_CACHE_HOME/moxin`, made once per machine."""
    if storage.is_local(url):
        return storage.local_path(url)
    described = storage.read_bytes(storage.join(url, "store.json"))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moxin" / "tokens"
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / hashlib.sha256(url.encode() + described).hexdigest()[:16]
    with open(folder.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the workers of one machine: the first copies, the others wait
        if not folder.exists():
            os.replace(storage.download(url, folder.with_suffix(".partial")), folder)
    return folder


def _map(folder: Path, file: str, dtype: np.dtype, length: int) -> np.ndarray:
    path, expected = folder / file, length * dtype.itemsize
    if not path.exists():
        raise ValueError(_broken(folder, file, "it is missing"))
    if path.stat().st_size != expected:
        problem = f"it has {path.stat().st_size:,} bytes, store.json says {length:,} x {dtype} = {expected:,}"
        raise ValueError(_broken(folder, file, problem))
    return np.asarray(np.memmap(path, dtype, mode="r"))


def _broken(folder: Path, file: str, problem: str) -> str:
    return (
        f"{folder / file}: a damaged token shard, {problem}; delete {folder} and run jobs/tokenize.py again"
    )
