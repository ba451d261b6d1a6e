"""Files of an artifact as memory-mapped arrays, checked against their sizes and checksums when they are first opened."""

import hashlib
import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from moxin import storage
from moxin.tokens.cache import ShardCache, cache_folder


class FileOf(NamedTuple):
    """A file below an artifact's URL, as the artifact's own description has it."""

    name: str
    n_bytes: int
    sha256: str


class Mapped(NamedTuple):
    """A file as an array, which is read-only, and the memory behind it; an empty file has none."""

    array: np.ndarray
    memory: mmap.mmap | None

    def read_at_random(self) -> None:
        """Tells the kernel to read no more than what is asked for: it would read 128 KiB around every 4 of a sample."""
        if self.memory:
            self.memory.madvise(mmap.MADV_RANDOM)

    def will_need(self, first: int, n: int) -> None:
        """Tells the kernel to begin to read the items `first` to `first + n`, in one piece; it does not wait for them."""
        if self.memory:
            itemsize = self.array.itemsize
            start = first * itemsize // mmap.PAGESIZE * mmap.PAGESIZE
            self.memory.madvise(mmap.MADV_WILLNEED, start, (first + n) * itemsize - start)


class Files:
    """The files below `url`; of a remote one through a local cache of at most `cache_bytes`.

    With `verify` local files are hashed when they are first opened, once on a machine until they change. What comes into the
    cache is hashed in any case. `remedy` says what to do about a damaged file.
    """

    def __init__(self, url: str, remedy: str, *, verify: bool = True, cache_bytes: int | None = None) -> None:
        self.url, self.remedy, self._verify = url, remedy, verify
        self._cache: ShardCache | None = None
        if not storage.is_local(url):
            self._cache = ShardCache(url, max_bytes=cache_bytes)

    def map(self, file: FileOf, dtype: np.dtype) -> Mapped:
        """The file as an array. Raises `ValueError` where it is missing, short or altered."""
        if self._cache:
            handle = self._cache.open(*file)
        else:
            path = storage.local_path(self.url) / file.name
            if problem := _problem(path, file, self._verify):
                raise self.damaged(file.name, problem)
            handle = open(path, "rb")  # noqa: SIM115
        with handle:
            if not file.n_bytes:
                return Mapped(np.empty(0, dtype), None)
            memory = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
        return Mapped(np.frombuffer(memory, dtype), memory)

    def prefetch(self, files: Sequence[FileOf]) -> None:
        """Begins to copy remote files to this machine."""
        if self._cache:
            self._cache.prefetch(files)

    def damaged(self, name: str, problem: str) -> ValueError:
        """The error to raise for a file that is not what it should be."""
        return ValueError(f"{storage.join(self.url, name)}: a damaged file, {problem}; {self.remedy}")


def _problem(path: Path, file: FileOf, verify: bool) -> str:
    """What is wrong with a local file; empty when nothing is."""
    if not path.exists():
        return f"it is missing (expected {file.n_bytes:,} bytes, SHA-256 {file.sha256})"
    found = path.stat()
    if found.st_size != file.n_bytes:
        return f"it has {found.st_size:,} bytes, expected {file.n_bytes:,}"
    if not verify:
        return ""
    known = f"{path.absolute()} {found.st_size} {found.st_mtime_ns} {found.st_ino} {file.sha256}"
    marker = cache_folder() / "verified" / hashlib.sha256(known.encode()).hexdigest()[:32]
    if marker.exists():
        return ""
    with open(path, "rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    if digest != file.sha256:
        return f"its SHA-256 is {digest}, expected {file.sha256}"
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.touch()
    return ""
