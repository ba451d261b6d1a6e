"""Parquet files between the steps: a folder per unit with a file per output shard, and the output shards themselves."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from moxin import storage
from moxin.curate.documents import SCHEMA

DONE = "done.json"
"""Written last into a unit's folder: without it the unit does not count."""
VERDICT = ("step", "reason", "detail")
REMOVED = ("id", "source", "reason", "detail", "text")
ROWS_PER_GROUP = 4096


def part(shard: int) -> str:
    return f"part-{shard:05d}.parquet"


def read_table(url: str, columns: Sequence[str]) -> pa.Table:
    with storage.open_read(url) as handle:
        return pq.read_table(handle, columns=list(columns))


def write_table(url: str, table: pa.Table) -> None:
    """Bytes depend on the rows alone, not on how they came in chunks."""
    with storage.open_atomic(url) as handle:
        pq.write_table(table.combine_chunks(), handle, compression="zstd", row_group_size=ROWS_PER_GROUP)


def write_shard(scratch: str, folders: Sequence[str], url: str, row: dict[str, Any]) -> dict[str, Any]:
    """Writes `documents/part-…` and `removed/part-…` of one shard, sorted by id, then source."""
    name = part(row["shard"])
    table = pa.concat_tables(read_table(storage.join(folder, name), SCHEMA.names) for folder in folders)
    verdicts = read_table(storage.join(scratch, "verdicts", name), VERDICT)
    for column in VERDICT:
        table = table.append_column(column, verdicts[column])
    table = table.sort_by([("id", "ascending"), ("source", "ascending")])
    kept = pc.equal(table["step"], "")
    write_table(storage.join(url, "documents", name), table.filter(kept).select(SCHEMA.names))
    write_table(storage.join(url, "removed", name), table.filter(pc.invert(kept)).select(REMOVED))
    return row
