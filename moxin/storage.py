"""Local disk and S3 behind one set of functions: every path is an fsspec URL, `s3://…` or a plain local path.

Writes of whole files are atomic: a reader sees the old file, or the new one, or none.
"""

import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import fsspec


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
    fs, path = filesystem(url)
    fs.makedirs(path, exist_ok=True)


def remove(url: str) -> None:
    """Deletes a file or a folder; nothing happens where there is none."""
    fs, path = filesystem(url)
    if fs.exists(path):
        fs.rm(path, recursive=True)


def files_under(url: str) -> list[str]:
    """Relative paths of all files below a folder, sorted; none where it does not exist."""
    fs, path = filesystem(url)
    if not fs.exists(path):
        return []
    prefix = path.rstrip("/") + "/"
    return sorted(str(found)[len(prefix) :] for found in fs.find(path))


@contextmanager
def open_atomic(url: str, mode: str = "wb") -> Iterator[IO[Any]]:
    """Opens a file for writing that appears under its name only when the block ends without an exception."""
    if not is_local(url):  # an object store shows an object only once its upload is complete
        fs, path = filesystem(url)
        handle = fs.open(path, mode)
        try:
            yield handle
        except BaseException:
            if hasattr(handle, "discard"):
                handle.discard()
            raise
        handle.close()
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
def open_read(url: str, mode: str = "rb") -> Iterator[IO[Any]]:
    fs, path = filesystem(url)
    with fs.open(path, mode, encoding=None if "b" in mode else "utf-8") as handle:
        yield handle


def write_bytes(url: str, data: bytes) -> None:
    with open_atomic(url) as handle:
        handle.write(data)


def read_bytes(url: str) -> bytes:
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
        while block := handle.read(1 << 20):
            total.update(block)
    return total.hexdigest()


def download(url: str, folder: Path) -> Path:
    """A local folder with what is at `url`: the folder itself where it is local already, else a copy in `folder`."""
    if is_local(url):
        return local_path(url)
    fs, path = filesystem(url)
    for name in files_under(url):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        fs.get_file(f"{path}/{name}", str(target))
    return folder


def upload(folder: Path, url: str) -> None:
    """Copies every file below a local folder to `url`."""
    fs, path = filesystem(url)
    for source in sorted(folder.rglob("*")):
        if source.is_file():
            target = f"{path}/{source.relative_to(folder).as_posix()}"
            fs.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
            fs.put_file(str(source), target)
