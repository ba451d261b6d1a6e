"""A cache on this machine for the files of remote artifacts, shared by its processes and bounded in size.

    objects/3f/3f9a…      whole, verified content under its SHA-256: two stores that share a shard share the copy
    partial/…             what is being downloaded, in its full size from the start, flocked by whoever writes it
    locks/3f9             flocked while a file is downloaded, so that one process does it and the others wait
    lock                  flocked while room is made: what there is is counted anew each time, so nothing can be out of step

`kill -9` at any moment leaves at most a partial file, which is deleted with the next download, since nobody holds its lock.
Evicting a file unlinks it; who has it open or mapped keeps it, and its disk space, until it is closed.
"""

import errno
import fcntl
import hashlib
import os
import queue
import re
import shutil
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, NamedTuple

from moxin import storage

MAX_BYTES = 200 * 10**9
N_PREFETCHERS = 4
"""Downloads in the background per process: each gets some 100 MB/s from S3 and holds some 30 MB of memory."""
_BLOCK = 4 * 2**20
_TOUCHED_S = 1.0
"""A file's time of last use is at most this old."""


def cache_folder() -> Path:
    """Where caches of this user's token stores are."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moxin" / "tokens"


class _Wanted(NamedTuple):
    file: str
    n_bytes: int
    sha256: str


class ShardCache:
    """Local copies of files below `url`.

    `max_bytes` bounds what all processes keep in `folder` together, downloads included (though each of them goes on where
    nothing is left to evict); the default is 200 GB, or half of what the cache has and could have on its disk where that is
    less. Threads may share one.
    """

    def __init__(self, url: str, folder: Path | None = None, max_bytes: int | None = None) -> None:
        self.url, self.folder = url, folder or cache_folder()
        self._max_bytes = max_bytes
        self._objects, self._partial = self.folder / "objects", self.folder / "partial"
        self._guard = threading.Lock()
        self._pending: dict[str, tuple[Future[Path], int]] = {}
        self._queue: queue.SimpleQueue[tuple[Future[Path], _Wanted] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._closed = threading.Event()

    def get(self, file: str, n_bytes: int, sha256: str) -> Path:
        """The path of a whole copy of `url/file`, verified when it was downloaded.

        What is there already costs a stat; only its size is looked at again. A process that keeps more files in use than
        `max_bytes` may find the path gone before it opens it: `open` cannot.

        Raises `ValueError` where the source is missing or not what `sha256` says, or is larger than `max_bytes`, `OSError`
        where the network fails or the disk is full.
        """
        wanted = _Wanted(file, n_bytes, sha256)
        path = self._path(wanted)
        if _is_whole(path, n_bytes):
            return path
        with self._guard:
            pending = self._pending.pop(sha256, None)
        if pending is not None and not pending[0].cancel():
            with suppress(CancelledError):
                pending[0].result()  # its error, if it failed; its path may be evicted by now
        return self._fetch(wanted)

    def open(self, file: str, n_bytes: int, sha256: str) -> IO[bytes]:
        """Like `get`, opened for reading: what is open stays readable whatever is evicted."""
        while True:
            with suppress(FileNotFoundError):  # evicted by another process since
                return open(self.get(file, n_bytes, sha256), "rb")

    def prefetch(self, files: Sequence[tuple[str, int, str]]) -> None:
        """Begins to download files in background threads, in this order; `get` waits for them and raises their errors.

        A hint: what would make the downloads that are under way or wait larger than half of `max_bytes` is left to `get`.
        """
        with self._guard:
            self._pending = {
                sha256: (future, n_bytes)
                for sha256, (future, n_bytes) in self._pending.items()
                if not future.done() or future.cancelled() or future.exception()
            }
            room = self.max_bytes // 2 - sum(n for future, n in self._pending.values() if not future.done())
            for wanted in (_Wanted(*file) for file in files):
                if wanted.sha256 in self._pending or _is_whole(self._path(wanted), wanted.n_bytes):
                    continue
                room -= wanted.n_bytes
                if room < 0 or self._closed.is_set():
                    return
                future: Future[Path] = Future()
                self._pending[wanted.sha256] = future, wanted.n_bytes
                self._queue.put((future, wanted))
                if len(self._threads) < N_PREFETCHERS:
                    # Daemons: a process that ends waits for no download, and what is left of it is swept.
                    self._threads.append(threading.Thread(target=self._work, daemon=True))
                    self._threads[-1].start()

    def close(self) -> None:
        """Ends the downloads in the background. What is in the cache stays."""
        self._closed.set()
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join(10)  # one may just wait for the network

    @property
    def max_bytes(self) -> int:
        """The bound in bytes."""
        if self._max_bytes is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            # Of what is free and what the cache holds already: free space alone would shrink the bound as it fills.
            held = sum(size for _, size, _ in self._contents())
            self._max_bytes = min(MAX_BYTES, (shutil.disk_usage(self.folder).free + held) // 2)
        return self._max_bytes

    def _path(self, wanted: _Wanted) -> Path:
        if not re.fullmatch("[0-9a-f]{64}", wanted.sha256):
            raise ValueError(f"{storage.join(self.url, wanted.file)}: {wanted.sha256!r} is no SHA-256")
        return self._objects / wanted.sha256[:2] / wanted.sha256

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            future, wanted = item
            if self._closed.is_set():
                future.cancel()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(self._fetch(wanted, background=True))
            except BaseException as error:
                future.set_exception(error)

    def _fetch(self, wanted: _Wanted, background: bool = False) -> Path:
        if wanted.n_bytes > self.max_bytes:
            raise ValueError(
                f"{storage.join(self.url, wanted.file)} has {wanted.n_bytes:,} bytes, the cache of remote token shards "
                f"in {self.folder} may have {self.max_bytes:,}; allow it more (max_bytes), or write smaller shards"
            )
        path = self._path(wanted)
        # One of 4,096 locks, so that the download of another file is seldom waited for.
        with _locked(self.folder / "locks" / wanted.sha256[:3]):
            if _is_whole(path, wanted.n_bytes):
                return path
            path.unlink(missing_ok=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            for _ in range(2):  # what is wrong may have been altered at the source, or just on its way
                if not (problem := self._download(wanted, path, background)):
                    return path
            raise self._altered(wanted, problem)

    def _download(self, wanted: _Wanted, path: Path, background: bool) -> str:
        """Puts the source's content at `path`, or says what is wrong with it. Evicts what it takes on a full disk."""
        while True:
            with suppress(_DiskFullError):
                return self._download_once(wanted, path, background)
            with _locked(self.folder / "lock"):
                freed = self._evict(wanted.n_bytes)
            if not freed:
                raise OSError(  # without an error number, by which the run's own disk would be blamed
                    f"{storage.join(self.url, wanted.file)}: its {wanted.n_bytes:,} bytes do not fit on the disk of the "
                    f"cache {self.folder}: {shutil.disk_usage(self.folder).free:,} bytes are free, nothing is left to "
                    "evict; free some, or put the cache on another disk with XDG_CACHE_HOME"
                )

    def _download_once(self, wanted: _Wanted, path: Path, background: bool) -> str:
        with self._reserved(wanted) as sink:
            digest, n_bytes = hashlib.sha256(), 0
            try:
                with storage.open_read(storage.join(self.url, wanted.file)) as source:
                    while block := source.read(_BLOCK):
                        if background and self._closed.is_set():
                            raise CancelledError
                        n_bytes += len(block)
                        digest.update(block)
                        if n_bytes <= wanted.n_bytes:  # what is too long is only measured
                            _write(sink, block)
            except FileNotFoundError:
                raise self._altered(wanted, "it is missing") from None
            if (n_bytes, digest.hexdigest()) != (wanted.n_bytes, wanted.sha256):
                return f"it has {n_bytes:,} bytes with the SHA-256 {digest.hexdigest()}"
            with _full_disk():
                os.fsync(sink.fileno())
            os.replace(sink.name, path)
            return ""

    def _altered(self, wanted: _Wanted, problem: str) -> ValueError:
        return ValueError(
            f"{storage.join(self.url, wanted.file)}: a damaged token shard, {problem}; expected were "
            f"{wanted.n_bytes:,} bytes with the SHA-256 {wanted.sha256}; run jobs/tokenize.py again"
        )

    @contextmanager
    def _reserved(self, wanted: _Wanted) -> Iterator[IO[bytes]]:
        """A partial file for which there is room below the bound, and which counts in its whole size from now on."""
        partial = self._partial / f"{wanted.sha256[:16]}-{uuid.uuid4().hex}"
        with _locked(self.folder / "lock"):  # a sweep must not see it before it is flocked
            in_flight = self._sweep()
            held = sum(size for _, size, _ in self._contents())
            self._evict(held + in_flight + wanted.n_bytes - self.max_bytes)
            self._partial.mkdir(exist_ok=True)
            sink = open(partial, "xb", buffering=0)  # noqa: SIM115
            fcntl.flock(sink, fcntl.LOCK_EX)
            sink.truncate(wanted.n_bytes)
        try:
            yield sink
        finally:
            partial.unlink(missing_ok=True)
            sink.close()

    def _sweep(self) -> int:
        """Deletes partial files whose writers are dead; bytes of the others."""
        in_flight = 0
        for partial in self._partial.glob("*"):
            with suppress(FileNotFoundError), open(partial, "rb") as handle:  # one may become whole meanwhile
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    in_flight += os.fstat(handle.fileno()).st_size
                else:
                    partial.unlink()
        return in_flight

    def _contents(self) -> Iterator[tuple[float, int, Path]]:
        """When it was used, bytes and path of every file."""
        for path in self._objects.glob("*/*"):
            with suppress(FileNotFoundError):
                found = path.stat()
                yield found.st_mtime, found.st_size, path

    def _evict(self, n_bytes: int) -> int:
        """Unlinks the least recently used files until `n_bytes` are free or nothing is left; bytes that were freed."""
        freed = 0
        for _, size, path in sorted(self._contents()) if n_bytes > 0 else ():
            if freed >= n_bytes:
                break
            path.unlink(missing_ok=True)
            freed += size
        return freed


class _DiskFullError(Exception):
    """No space on the cache's disk, or the quota is used up."""


@contextmanager
def _full_disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _DiskFullError from error
        raise


def _write(sink: IO[bytes], block: bytes) -> None:
    view = memoryview(block)
    with _full_disk():
        while view:
            view = view[sink.write(view) :]


def _is_whole(path: Path, n_bytes: int) -> bool:
    """Whether the file is there in its size; if so, it counts as used now."""
    try:
        found = path.stat()
        if found.st_size == n_bytes and time.time() - found.st_mtime > _TOUCHED_S:
            os.utime(path)
    except FileNotFoundError:
        return False
    return found.st_size == n_bytes


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
