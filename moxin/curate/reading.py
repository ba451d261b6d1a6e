"""Units of work to Arrow batches of documents. What cannot be read is put into quarantine, and reading goes on.

A quarantine row says which file, where in it, and what was wrong. Good rows of a bad file are kept, also those before the
point where a compressed file breaks off.
"""

import json
import zlib
from collections.abc import Iterable, Iterator
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import zstandard

from moxin import storage
from moxin.curate import installed
from moxin.curate.documents import SCHEMA
from moxin.curate.sources import Item, Unit
from moxin.recipe import SourceConfig

TEXT_FIELDS = ("text", "content", "body")
BATCH_BYTES = 4 << 20
"""Text per batch: what a task holds in memory at a time, a document that is larger apart."""
BLOCK_BYTES = 1 << 14
"""Compressed bytes given to a decoder at once; all that a broken block holds is lost."""

Quarantine = list[dict[str, Any]]
Row = dict[str, str]


def read(unit: Unit, source: SourceConfig, quarantine: Quarantine) -> Iterator[pa.Table]:
    """Batches with `SCHEMA`, in the order of the files. Rows of bad input are appended to `quarantine`."""
    rows: list[Row] = []
    size = 0
    for item in unit.items:
        if item.path.endswith(".parquet"):
            # Parquet stays in columns; what has gathered in rows goes first, to keep the order.
            if rows:
                yield pa.Table.from_pylist(rows, SCHEMA)
            rows, size = [], 0
            yield from _read_parquet(item, source, quarantine)
            continue
        for row in _limited(_read_rows(item, source.name, quarantine), item.limit):
            rows.append(row)
            size += len(row["text"])
            if size >= BATCH_BYTES:
                yield pa.Table.from_pylist(rows, SCHEMA)
                rows, size = [], 0
    if rows:
        yield pa.Table.from_pylist(rows, SCHEMA)


def _limited(rows: Iterable[Row], limit: int) -> Iterator[Row]:
    total = 0
    for row in rows:
        total += len(row["text"].encode())
        if limit and total > limit:
            return
        yield row


def _read_rows(item: Item, source: str, quarantine: Quarantine) -> Iterator[Row]:
    row = {
        "id": item.id,
        "source": source,
        "license": item.license,
        "url": item.url,
        "lang": "",
        "meta": item.meta,
    }
    try:
        if item.root == "pydoc":
            yield {**row, "text": installed.topics()[item.path]}
        elif item.root:
            yield {**row, "text": installed.read(item.root, item.path)}
        elif item.path.endswith((".txt", ".md")):
            yield {**row, "text": storage.read_bytes(item.path).decode("utf-8-sig")}
        else:
            yield from _read_jsonl(item, row, quarantine)
    except (OSError, UnicodeDecodeError) as error:
        quarantine.append(_trouble(item, getattr(error, "start", 0), error))


def _trouble(item: Item, position: int | str, error: Exception) -> dict[str, Any]:
    return {"file": item.id, "position": position, "error": f"{type(error).__name__}: {error}"}


def _read_jsonl(item: Item, row: Row, quarantine: Quarantine) -> Iterator[Row]:
    with storage.open_read(item.path) as handle:
        lines = _lines(_decompressed(handle, item.path))
        number = 0
        while True:
            number += 1
            try:
                line = next(lines, None)
            except (EOFError, zlib.error, zstandard.ZstdError) as error:
                quarantine.append(_trouble(item, f"line {number}", error))
                return
            if line is None:
                return
            if not line.strip():
                continue
            try:
                yield {**row, "id": f"{item.id}:{number}", **_parse(line)}
            except (ValueError, RecursionError) as error:  # JSON or Unicode that is none, or not a document
                quarantine.append(_trouble(item, f"line {number}", error))


def _parse(line: bytes) -> Row:
    """The fields of a document that a JSON line has. Raises `ValueError` where it has no text."""
    record = json.loads(line.decode("utf-8"))
    if not isinstance(record, dict):
        raise ValueError(f"expected an object, found {type(record).__name__}")
    text = next((record[name] for name in TEXT_FIELDS if isinstance(record.get(name), str)), None)
    if text is None:
        raise ValueError(f"no string in any of {', '.join(TEXT_FIELDS)}; found {', '.join(record)}"[:500])
    row = {"text": text}
    if isinstance(record.get("id"), (str, int)):
        row["id"] = str(record["id"])
    row |= {name: record[name] for name in ("license", "url") if isinstance(record.get(name), str)}
    for value in row.values():
        value.encode()  # half a surrogate pair is JSON, but no text
    return row


def _decompressed(handle: IO[bytes], path: str) -> Iterator[bytes]:
    """Blocks of the file's content, as far as it can be had. Raises where it breaks off or is corrupt."""

    if not path.endswith((".gz", ".zst")):
        while block := handle.read(BLOCK_BYTES):
            yield block
        return
    decoder, begun = _decoder(path), False
    while block := handle.read(BLOCK_BYTES):
        while block:
            begun = True
            yield decoder.decompress(block)
            block = b""
            if decoder.eof:  # both formats may hold several streams, one after the other
                block, decoder, begun = decoder.unused_data.lstrip(b"\0"), _decoder(path), False
    if begun:
        raise EOFError("the compressed file breaks off")


def _decoder(path: str) -> Any:
    if path.endswith(".gz"):
        return zlib.decompressobj(wbits=31)
    return zstandard.ZstdDecompressor().decompressobj()


def _lines(blocks: Iterable[bytes]) -> Iterator[bytes]:
    pieces: list[bytes] = []  # of a line that goes over several blocks
    for block in blocks:
        head, *more = block.split(b"\n")
        pieces.append(head)
        if more:
            yield b"".join(pieces)
            yield from more[:-1]
            pieces = more[-1:]
    yield b"".join(pieces)


def _read_parquet(item: Item, source: SourceConfig, quarantine: Quarantine) -> Iterator[pa.Table]:
    """Batches from a Parquet file, a row group at a time; a broken group costs only itself."""
    taken = 0
    try:
        with storage.open_read(item.path) as handle:
            file = pq.ParquetFile(handle, page_checksum_verification=True)
            names = file.schema_arrow.names
            text = next((name for name in TEXT_FIELDS if name in names), None)
            if text is None:
                raise ValueError(f"no column {', '.join(TEXT_FIELDS)}; found {', '.join(names)}")
            columns = list(dict.fromkeys((text, *(name for name in SCHEMA.names if name in names))))
            first = 0
            for group in range(file.num_row_groups):
                n_rows = file.metadata.row_group(group).num_rows
                try:
                    table = file.read_row_group(group, columns=columns)
                except (OSError, pa.ArrowException) as error:
                    quarantine.append(_trouble(item, f"rows {first} to {first + n_rows - 1}", error))
                else:
                    table = _documents(table.rename_columns({text: "text"}), first, item, source, quarantine)
                    for batch in _slices(table):
                        sizes = np.cumsum(pc.binary_length(batch["text"]).to_numpy()) + taken
                        fits = int(np.searchsorted(sizes, item.limit, "right")) if item.limit else len(batch)
                        if fits:
                            yield batch.slice(0, fits)
                        if fits < len(batch):
                            return
                        taken = int(sizes[-1])
                first += n_rows
    except (OSError, ValueError, pa.ArrowException) as error:
        quarantine.append(_trouble(item, 0, error))


def _slices(table: pa.Table) -> Iterator[pa.Table]:
    """The table in slices of about `BATCH_BYTES` of text."""
    if not len(table):
        return
    which = np.cumsum(pc.binary_length(table["text"]).to_numpy()) // BATCH_BYTES
    cuts = np.flatnonzero(np.diff(which)) + 1
    for start, stop in zip([0, *cuts], [*cuts, len(table)], strict=True):
        yield table.slice(int(start), int(stop - start))


def _utf8(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column as strings, with null in place of what is not UTF-8."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = column.cast(pa.large_binary())
    try:
        return column.cast(pa.string())
    except pa.ArrowInvalid:
        values = (value.as_buffer().to_pybytes() if value.is_valid else b"\xff" for value in column)
        return pa.chunked_array([pa.array([_decoded(value) for value in values], pa.string())])


def _decoded(value: bytes) -> str | None:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return None


def _documents(
    table: pa.Table, first: int, item: Item, source: SourceConfig, quarantine: Quarantine
) -> pa.Table:
    """The table with `SCHEMA`, what is missing filled in; rows without text or with broken UTF-8 go into quarantine."""
    text = _utf8(table["text"])
    position = pc.add(pa.array(np.arange(len(table))), first)
    for row in np.flatnonzero(pc.is_null(text).to_numpy()):
        error = ValueError("the text is null or not UTF-8")
        quarantine.append(_trouble(item, f"row {first + int(row)}", error))

    numbered = pc.binary_join_element_wise(item.id, pc.cast(position, pa.string()), ":")
    columns = {
        "id": pc.coalesce(_utf8(table["id"]), numbered) if "id" in table.column_names else numbered,
        "text": text,
        "source": pa.array([source.name] * len(table), pa.string()),
    }
    for name in ("license", "url", "lang", "meta"):
        default = {"license": item.license, "meta": item.meta}.get(name, "")
        given = _utf8(table[name]) if name in table.column_names else pa.nulls(len(table), pa.string())
        columns[name] = pc.coalesce(given, default)
    keep = pc.is_valid(text)
    if source.kind != "folder":  # the world holds several sources in one file
        keep = pc.and_(keep, pc.equal(table["source"], source.kind))
    return pa.table(columns, schema=SCHEMA).filter(keep)
