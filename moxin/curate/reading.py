"""Units of work to Arrow batches of documents. What cannot be read is put into quarantine, and reading goes on.

A quarantine row says which file, where in it, and what was wrong. Good rows of a bad file are kept, also those before the
point where a compressed file breaks off. A store that cannot be reached is no fault of the file: that ends the unit with the
store's own error, and the unit is read again later.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import groupby
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc

from moxin import storage
from moxin.curate import installed, jsonl, licenses, parquet, trees, warc
from moxin.curate.documents import SCHEMA
from moxin.curate.jsonl import DOCUMENT_BYTES, Bad, Row
from moxin.curate.sources import ONE_DOCUMENT, Item, Unit
from moxin.recipe import SourceConfig

BATCH_BYTES = 4 << 20
"""Text per batch: what a task holds in memory at a time, a document that is larger apart."""
QUARANTINE_ROWS = 1000
"""Of one file or part: a last row has the `count` of all that follow."""
FETCHED = 64
"""Small files that are fetched from a store together."""

Quarantine = list[dict[str, Any]]


class StoreError(Exception):
    """The store failed, not the file; its argument is its own error."""


def read(unit: Unit, source: SourceConfig, quarantine: Quarantine) -> Iterator[pa.Table]:
    """Batches with `SCHEMA`, in the order of the files. Rows of bad input are appended to `quarantine`.

    A row stands for one thing that is wrong, or for as many as its `count` says. Raises `OSError` or `ValueError` where a
    store cannot be read.
    """
    try:
        yield from _read(unit, source, quarantine)
    except StoreError as error:
        raise error.args[0] from None


def _read(unit: Unit, source: SourceConfig, quarantine: Quarantine) -> Iterator[pa.Table]:
    rows: list[Row] = []
    size = 0
    for item, data in _fetched(unit.items, source):
        bad = _collector(item, quarantine)
        if item.path.endswith(".parquet"):
            # Parquet stays in columns; what has gathered in rows goes first, to keep the order.
            if rows:
                yield _table(rows)
            rows, size = [], 0
            yield from _limited_tables(_read_parquet(item, source, bad), item.limit)
            continue
        known = {name: getattr(item, name) for name in ("id", "license", "url", "lang", "meta")}
        known["source"] = source.name
        for row in _limited(_read_rows(item, data, source, bad), item.limit):
            rows.append(known | row)
            size += len(row["text"])
            if size >= BATCH_BYTES:
                yield _table(rows)
                rows, size = [], 0
    if rows:
        yield _table(rows)


def _table(rows: list[Row]) -> pa.Table:
    columns = [pa.array([row[name] for row in rows], pa.string()) for name in SCHEMA.names]
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def _collector(item: Item, quarantine: Quarantine) -> Bad:
    """Puts what is wrong with a file into quarantine; of a file that is wrong in every line, not every line."""
    n = 0

    def bad(position: int | str, error: Exception) -> None:
        nonlocal n
        n += 1
        if n <= QUARANTINE_ROWS + 1:
            row = {"file": item.id, "position": position, "error": f"{type(error).__name__}: {error}"}
            quarantine.append(row if n <= QUARANTINE_ROWS else {**row, "count": 1})
        else:
            quarantine[-1]["count"] += 1

    return bad


def _limited(rows: Iterable[Row], limit: int) -> Iterator[Row]:
    total = 0
    for row in rows:
        if limit:
            total += len(row["text"].encode())
            if total > limit:
                return
        yield row


def _limited_tables(tables: Iterable[pa.Table], limit: int) -> Iterator[pa.Table]:
    total = 0
    for table in tables:
        if not limit:
            yield table
            continue
        sizes = pc.add(pc.cumulative_sum(pc.cast(pc.binary_length(table["text"]), pa.int64())), total)
        fits = pc.sum(pc.less_equal(sizes, limit)).as_py() or 0
        if fits:
            yield table.slice(0, fits)
        if fits < len(table):
            return
        total = sizes[-1].as_py()


def _fetched(items: Iterable[Item], source: SourceConfig) -> Iterator[tuple[Item, bytes | Exception | None]]:
    """The items, and of files of one document what is in them, or the error. A store is asked for several at a time."""

    def together(item: Item) -> bool:
        return _is_one(item, source) and not storage.is_local(item.path)

    for several, group in groupby(items, together):
        waiting: list[Item] = []
        for item in group:
            if not several:
                yield item, _content(item) if _is_one(item, source) else None
                continue
            waiting.append(item)
            if len(waiting) == FETCHED or sum(one.size for one in waiting) > BATCH_BYTES:
                yield from zip(waiting, storage.in_threads(_content, waiting), strict=True)
                waiting = []
        yield from zip(waiting, storage.in_threads(_content, waiting), strict=True)


def _is_one(item: Item, source: SourceConfig) -> bool:
    return not item.root and (source.kind == "tree" or item.path.endswith(ONE_DOCUMENT))


def _content(item: Item) -> bytes | Exception:
    if item.size > DOCUMENT_BYTES:
        return ValueError(f"a document of {item.size:,} bytes; more than {DOCUMENT_BYTES:,} are not read")
    try:
        return storage.read_bytes(item.path)
    except FileNotFoundError as error:
        return error
    except (OSError, ValueError) as error:
        if storage.is_local(item.path) and isinstance(error, OSError):
            return error
        raise StoreError(error) from error


def _read_rows(item: Item, data: bytes | Exception | None, source: SourceConfig, bad: Bad) -> Iterator[Row]:
    try:
        if item.root == "pydoc":
            yield {"text": installed.topics()[item.path]}
        elif item.root:
            yield {"text": installed.read(item.root, item.path)}
        elif isinstance(data, Exception):
            raise data
        elif not item.size:
            raise ValueError("the file is empty")
        elif data is not None:
            yield _one(item, data, source)
        else:
            with _opened(item.path) as handle:
                if item.path.endswith((".warc", ".warc.gz", ".warc.wet.gz")):
                    yield from warc.read(handle, item.path, bad, item.id)
                else:
                    yield from jsonl.read(
                        handle, item.path, item.first, item.stop, source.text_field, bad, item.id
                    )
    except (OSError, ValueError) as error:
        bad(getattr(error, "start", 0), error)


def _one(item: Item, data: bytes, source: SourceConfig) -> Row:
    """A file that is one document. Raises `ValueError` where it is no text."""
    if source.kind != "tree":
        return {"text": data.decode("utf-8-sig")}
    text = trees.decoded(data)
    own = licenses.of_header(text)
    return {"text": text, "license": own} if own else {"text": text}


def _read_parquet(item: Item, source: SourceConfig, bad: Bad) -> Iterator[pa.Table]:
    only = "" if source.kind == "folder" else source.kind
    known = {name: getattr(item, name) for name in ("id", "license", "url", "lang", "meta")}
    known["source"] = source.name
    try:
        with _opened(item.path) as handle:
            yield from parquet.read(
                handle, item.first, item.stop, source.text_field, BATCH_BYTES, known, only, bad
            )
    except OSError as error:
        bad(0, error)


class _Remote:
    """A file of a store whose failures are `StoreError`."""

    def __init__(self, handle: IO[bytes]) -> None:
        self._handle = handle

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)

    def read(self, size: int = -1) -> bytes:
        try:
            return self._handle.read(size)
        except (OSError, ValueError) as error:
            raise StoreError(error) from error


@contextmanager
def _opened(url: str) -> Iterator[IO[bytes]]:
    """Raises `OSError` for a local file that cannot be opened, and `FileNotFoundError`, else `StoreError`."""
    if storage.is_local(url):
        with storage.open_read(url) as handle:
            yield handle
        return
    opening = storage.open_read(url)
    try:
        handle = opening.__enter__()
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise StoreError(error) from error
    try:
        yield _Remote(handle)  # type: ignore[misc]
    finally:
        opening.__exit__(None, None, None)
