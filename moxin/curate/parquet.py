"""Parquet in columns: whole files or some of their row groups, in batches of bounded size.

A document without an id of its own is named by its row in the file, which the footer tells for every row group.
"""

import json
from collections.abc import Iterator, Sequence
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from moxin.curate.documents import SCHEMA
from moxin.curate.jsonl import DOCUMENT_BYTES, TEXT_FIELDS, Bad, Row

BATCH_ROWS = 2048
"""At most, for the text of a column that repeats itself is larger than its pages."""
BUFFERED_BYTES = 64 << 20
"""Of a column in a row group, compressed: more is not read at once but in pieces of 16 MiB."""
_TEXT = (
    *(pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view),
    *(pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view),
)


def text_column(schema: pa.Schema, text_field: str) -> str:
    """Raises `ValueError` where there is none."""
    wanted = (text_field,) if text_field else TEXT_FIELDS
    found = next((name for name in wanted if name in schema.names), None)
    if found is None:
        raise ValueError(f"no column {', '.join(wanted)}; found {', '.join(schema.names)}"[:500])
    kind = schema.field(found).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not any(is_(kind) for is_ in _TEXT):
        raise ValueError(f"column {found} holds {kind}, no strings")
    return found


def groups(handle: IO[bytes], text_field: str) -> list[int]:
    """Bytes of text in every row group, uncompressed as they are encoded. Raises `ValueError` or `OSError` for a file that
    cannot be read."""
    file = pq.ParquetFile(handle)
    name = text_column(file.schema_arrow, text_field)
    return [
        _column(file.metadata, group, name).total_uncompressed_size for group in range(file.num_row_groups)
    ]


def _column(metadata: pq.FileMetaData, group: int, name: str) -> Any:
    columns = (metadata.row_group(group).column(i) for i in range(metadata.num_columns))
    return next(column for column in columns if column.path_in_schema.split(".")[0] == name)


def read(
    handle: IO[bytes],
    first: int,
    stop: int,
    text_field: str,
    batch_bytes: int,
    known: Row,
    only_source: str,
    bad: Bad,
) -> Iterator[pa.Table]:
    """Batches of about `batch_bytes` of text with `SCHEMA` from row groups `first` to `stop` (0: to the last).

    `known` has the columns' values where the file has none, `id` is what the ids of rows without one begin with. Of a file
    with a column `source`, only the rows of `only_source` are read unless that is empty. What cannot be read of a row group
    goes to `bad` as a range of rows, a row without text by its number.
    """
    try:
        metadata = pq.read_metadata(handle)
        text = text_column(metadata.schema.to_arrow_schema(), text_field)
        wanted = range(first, stop or metadata.num_row_groups)
        large = any(_column(metadata, group, text).total_compressed_size > BUFFERED_BYTES for group in wanted)
        file = pq.ParquetFile(
            handle,
            metadata=metadata,
            page_checksum_verification=True,
            buffer_size=BUFFERED_BYTES // 4 if large else 0,
        )
        names = file.schema_arrow.names
        columns = list(dict.fromkeys((text, *(name for name in SCHEMA.names if name in names))))
        row = sum(metadata.row_group(group).num_rows for group in range(first))
        for group in wanted:
            n_rows = metadata.row_group(group).num_rows
            size = _column(metadata, group, text).total_uncompressed_size
            rows = min(max(batch_bytes * n_rows // max(size, 1), 1), BATCH_ROWS)
            at = row
            try:
                for batch in file.iter_batches(rows, row_groups=[group], columns=columns):
                    table = pa.Table.from_batches([batch])
                    yield from _slices(_documents(table, text, at, known, only_source, bad), batch_bytes)
                    at += len(batch)
            except (OSError, pa.ArrowException) as error:
                bad(f"rows {at} to {row + n_rows - 1}", error)
            row += n_rows
    except (OSError, ValueError, pa.ArrowException) as error:
        bad(0, error)


def _slices(table: pa.Table, batch_bytes: int) -> Iterator[pa.Table]:
    if not len(table):
        return
    which = np.cumsum(pc.binary_length(table["text"]).to_numpy()) // batch_bytes
    cuts = np.flatnonzero(np.diff(which)) + 1
    for start, stop in zip([0, *cuts], [*cuts, len(table)], strict=True):
        yield table.slice(int(start), int(stop - start))


def _documents(
    table: pa.Table, text_name: str, first: int, known: Row, only_source: str, bad: Bad
) -> pa.Table:
    """The table with `SCHEMA`, what is missing filled in; rows without text, with broken UTF-8 or too long go to `bad`."""
    given = {name: _utf8(table[name]) for name in SCHEMA.names if name in table.column_names}
    text = _utf8(table[text_name])
    long = pc.fill_null(pc.greater(pc.binary_length(text), DOCUMENT_BYTES), False)
    keep = pc.and_(pc.is_valid(text), pc.invert(long))
    for row in np.flatnonzero(~keep.to_numpy()):
        what = (
            f"more than {DOCUMENT_BYTES:,} bytes of text are not read"
            if long[int(row)].as_py()
            else "the text is null or not UTF-8"
        )
        bad(f"row {first + int(row)}", ValueError(what))
    position = pa.array(np.arange(first, first + len(table)))
    numbered = pc.binary_join_element_wise(known["id"], pc.cast(position, pa.string()), ":")
    columns = {"text": text, "id": pc.coalesce(given["id"], numbered) if "id" in given else numbered}
    for name in ("source", "license", "url", "lang", "meta"):
        own = given.get(name) if name != "source" else None
        value = known[name]
        columns[name] = (
            pa.array([value] * len(table), pa.string()) if own is None else pc.coalesce(own, value)
        )
    if only_source:  # the world holds several sources in one file
        keep = pc.and_(keep, pc.equal(table["source"], only_source))
    return pa.table(columns).select(SCHEMA.names).cast(SCHEMA).filter(keep)


def _utf8(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column as strings, with null in place of what is not UTF-8; what is no string is written as JSON."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_nested(column.type):
        return _strings(
            None if value is None else json.dumps(value, default=str, ensure_ascii=True)
            for value in column.to_pylist()
        )
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = column.cast(pa.large_binary())
    try:
        return column.cast(pa.string())
    except pa.ArrowInvalid:
        values: Sequence[bytes] = [
            value.as_buffer().to_pybytes() if value.is_valid else b"\xff" for value in column
        ]
        return _strings(_decoded(value) for value in values)


def _strings(values: Iterator[str | None]) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(values, pa.string())])


def _decoded(value: bytes) -> str | None:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return None
