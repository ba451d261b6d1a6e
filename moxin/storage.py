"""Local disk and S3 behind one set of functions: every path is an fsspec URL, `s3://…` or a plain local path.

Writes of whole files are atomic: a reader sees the old file, or the new one, or none. Faults of an object store are outlived
or explained, see `moxin/s3.py`: `ValueError` for a wrong bucket or key, `FileNotFoundError`, else `OSError`.
"""

import hashlib
import io
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TypeVar

import fsspec

N_TRANSFERS = 8
"""Files that are copied or hashed at a time: one connection to S3 carries some 100 MB/s, a network card more."""
_BLOCK = 4 * 2**20
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def is_local(url: str) -> bool:
    return "://" not in url or url.startswith("file://")


def local_path(url: str) -> Path:
    assert is_local(url), url
    return Path(url.removeprefix("file://")).absolute()


def absolute(url: str) -> str:
    """The URL as other machines and working directories must name it."""
    return str(local_path(url)) if is_local(url) else url.rstrip("/")


def join(url: str, *parts: str) -> str:
    return "/".join([url.rstrip("/"), *parts])


def filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The fsspec file system and the path in it. Raises `ValueError` where the protocol is not known."""
    if url.startswith("s3://"):
        from moxin.s3 import S3  # takes a second to import

        return S3.here(), url.removeprefix("s3://").rstrip("/")
    try:
        fs, path = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise ValueError(f"{url}: {error}; use a local folder or s3://bucket/path") from error
    fs.invalidate_cache()
    return fs, path


def exists(url: str) -> bool:
    fs, path = filesystem(url)
    return bool(fs.exists(path))


def makedirs(url: str) -> None:
    """Makes a folder; on S3, which has none, raises `ValueError` where the bucket is not there or must not be used."""
    fs, path = filesystem(url)
    fs.makedirs(path, exist_ok=True)


def remove(url: str) -> None:
    """Deletes a file or a folder; nothing happens where there is none."""
    fs, path = filesystem(url)
    if fs.exists(path):
        # Another process may delete the same at the same time, and a request whose answer was lost is made again.
        with suppress(FileNotFoundError):
            fs.rm(path, recursive=True)


def sizes_under(url: str) -> dict[str, int]:
    """Relative path and bytes of every file below a folder, in the paths' order; empty where it does not exist.

    On S3 one listing (a request per 1,000 files) tells both. A `url` that is a file is listed as "".
    """
    if is_local(url):
        return dict(sorted(_local_sizes(local_path(url))))
    fs, path = filesystem(url)
    prefix = path.rstrip("/") + "/"
    found = {str(name): int(info["size"]) for name, info in fs.find(path, detail=True).items()}
    # A name that ends with a slash and an empty object of the folder's own name are how some programs keep a folder.
    return {
        name[len(prefix) :]: size
        for name, size in sorted(found.items())
        if not name.endswith("/") and (size or name != path)
    }


def _local_sizes(path: Path) -> Iterator[tuple[str, int]]:
    if path.is_file():
        yield "", path.stat().st_size
    for folder, _, names in os.walk(path, followlinks=True):
        for name in names:
            file = Path(folder, name)
            with suppress(
                FileNotFoundError
            ):  # a partial file of a running process that has just got its name
                yield file.relative_to(path).as_posix(), file.stat().st_size


def files_under(url: str) -> list[str]:
    """Relative paths of all files below a folder, sorted; none where it does not exist."""
    return list(sizes_under(url))


@contextmanager
def open_atomic(url: str, mode: str = "wb") -> Iterator[IO[Any]]:
    """Opens a file for writing that appears under its name only when the block ends without an exception."""
    if not is_local(url):
        with _open_remote(url) as raw:
            yield raw if "b" in mode else io.TextIOWrapper(raw, "utf-8", write_through=True)
        return
    target = local_path(url)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        with open(partial, mode, encoding=None if "b" in mode else "utf-8") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _open_remote(url: str) -> Iterator[Any]:
    """An object store shows an object only once its upload is complete; one that is not must never be completed.

    The parts of a process that was killed stay in the bucket unseen, until a lifecycle rule for incomplete multipart uploads
    deletes them.
    """
    fs, path = filesystem(url)
    handle = fs.open(path, "wb")
    try:
        yield handle
        handle.close()
    except BaseException:
        with suppress(OSError):  # the network may be what failed: the first error is the one to be seen
            handle.discard()
        handle.closed = True  # else the garbage collector would close it, and with that complete the upload
        raise


@contextmanager
def open_read(url: str, mode: str = "rb") -> Iterator[IO[Any]]:
    fs, path = filesystem(url)
    with fs.open(path, mode, encoding=None if "b" in mode else "utf-8") as handle:
        yield handle


def write_bytes(url: str, data: bytes) -> None:
    with open_atomic(url) as handle:
        handle.write(data)


def read_bytes(url: str) -> bytes:
    if not is_local(url):
        fs, path = filesystem(url)
        return bytes(fs.cat_file(path))
    with open_read(url) as handle:
        return bytes(handle.read())


def write_text(url: str, text: str) -> None:
    write_bytes(url, text.encode())


def read_text(url: str) -> str:
    return read_bytes(url).decode()


def write_json(url: str, value: Any) -> None:
    write_text(url, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(url: str) -> Any:
    return json.loads(read_bytes(url))


def write_jsonl(url: str, rows: Any) -> None:
    write_text(url, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_jsonl(url: str) -> list[Any]:
    return [json.loads(line) for line in read_text(url).splitlines() if line.strip()]


def sha256(url: str) -> str:
    total = hashlib.sha256()
    with open_read(url) as handle:
        while block := handle.read(_BLOCK):
            total.update(block)
    return total.hexdigest()


def get_file(url: str, target: Path) -> None:
    """Copies one file to a local path, where it appears when it is whole."""
    with open_read(url) as source, open_atomic(str(target)) as sink:
        shutil.copyfileobj(source, sink, _BLOCK)


def put_file(source: Path, url: str) -> None:
    """Copies one local file to `url`, where it appears when it is whole; a large one goes to S3 in parallel parts."""
    if is_local(url):
        with open(source, "rb") as handle, open_atomic(url) as sink:
            shutil.copyfileobj(handle, sink, _BLOCK)
        return
    fs, path = filesystem(url)
    fs.put_file(str(source), path)


def download(url: str, folder: Path) -> Path:
    """A local folder with what is at `url`: the folder itself where it is local already, else a copy in `folder`."""
    if is_local(url):
        return local_path(url)
    in_threads(lambda name: get_file(join(url, name), folder / name), files_under(url))
    return folder


def upload(folder: Path, url: str) -> None:
    """Copies every file below a local folder to `url`."""
    sources = [source for source in sorted(folder.rglob("*")) if source.is_file()]
    in_threads(lambda source: put_file(source, join(url, source.relative_to(folder).as_posix())), sources)


def in_threads(work: Callable[[_Item], _Result], items: Iterable[_Item]) -> list[_Result]:
    """`work` of every item, in order, `N_TRANSFERS` at a time. The first error is raised and what has not begun is left."""
    pool = ThreadPoolExecutor(N_TRANSFERS)
    try:
        return list(pool.map(work, items))
    finally:
        pool.shutdown(cancel_futures=True)
