"""The output: Parquet shards of a target size, and beside them what was removed, with its reason.

A shard holds documents of one source, in the order of its files: a run of row groups of one unit or several. Where a shard
begins follows from what is kept alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from moxin import storage
from moxin.curate.edit import repeats_of
from moxin.curate.repeats import Repeats
from moxin.curate.work import Work, edits, passed, read_arrow

NOT_REMOVED = ("license", "lang", "meta")
"""Columns that `removed/` goes without."""
GROUP_BYTES = 8 << 20
"""Text of a row group of a shard, at least."""


@dataclass(frozen=True)
class Slice:
    """Row groups of a unit."""

    unit: int
    first: int
    stop: int


def part(shard: int) -> str:
    return f"part-{shard:05d}.parquet"


def plan(work: Work, kept_bytes: Sequence[Sequence[int]], least: int) -> list[list[Slice]]:
    """The slices of every shard, from the text that is kept of each unit's row groups.

    A shard has `curate.shard_bytes` of text, or less where that would make fewer than `least` shards of all.
    """
    total = sum(sum(sizes) for sizes in kept_bytes)
    target = max(min(work.config.shard_bytes, -(-total // least)), 1)
    shards: list[list[Slice]] = []
    source, room = -1, 0
    for number, sizes in enumerate(kept_bytes):
        first = 0
        for group, size in enumerate(sizes):
            if (room <= 0 and size) or source != work.units[number].source:
                if group > first:
                    shards[-1].append(Slice(number, first, group))
                shards.append([])
                first, room, source = group, target, work.units[number].source
            room -= size
        if len(sizes) > first:
            shards[-1].append(Slice(number, first, len(sizes)))
    return shards


def write(work: Work, url: str, shard: int, slices: Sequence[Slice]) -> dict[str, Any]:
    """Writes `documents/part-…` and `removed/part-…` of one shard; returns its source and how many documents they have."""
    kept_url, removed_url = (storage.join(url, folder, part(shard)) for folder in ("documents", "removed"))
    with storage.open_atomic(kept_url) as kept_file, storage.open_atomic(removed_url) as removed_file:
        kept = _Writer(kept_file)
        removed = _Writer(removed_file)
        for one in slices:
            for documents, gone in _outcome(work, one):
                kept.add(documents)
                removed.add(gone)
        n_kept, n_removed = kept.close(), removed.close()
    return {"source": work.units[slices[0].unit].source, "kept": n_kept, "removed": n_removed}


class _Writer:
    """Writes tables in row groups of at least `GROUP_BYTES` of text, however they come."""

    def __init__(self, handle: Any) -> None:
        self.handle, self.n, self.size = handle, 0, 0
        self.waiting: list[pa.Table] = []
        self.writer: pq.ParquetWriter | None = None

    def add(self, table: pa.Table) -> None:
        self.waiting.append(table)
        self.size += pc.sum(pc.binary_length(table["text"])).as_py() or 0
        if self.size >= GROUP_BYTES:
            self._write()

    def _write(self) -> None:
        table = pa.concat_tables(self.waiting).combine_chunks()
        if self.writer is None:
            self.writer = pq.ParquetWriter(self.handle, table.schema, compression="zstd")
        if len(table):
            self.writer.write_table(table, row_group_size=len(table))
        self.n, self.size, self.waiting = self.n + len(table), 0, []

    def close(self) -> int:
        if self.waiting:
            self._write()
        assert self.writer is not None
        self.writer.close()
        return self.n


def _outcome(work: Work, one: Slice) -> Iterator[tuple[pa.Table, pa.Table]]:
    """By row group, the documents that are kept and those that are not."""
    number, profile = one.unit, work.profile(one.unit)
    final = read_arrow(work.file(number, "final.arrow"))
    gone_rows = final["row"].to_numpy()
    scored = read_arrow(work.file(number, "passed.arrow"))
    found = repeats_of(work, "ids", number)
    texts = passed(work, number) if edits(profile) else None
    first = 0
    with storage.open_read(work.file(number, "annotated.parquet")) as handle:
        file = pq.ParquetFile(handle)
        for group in range(one.stop):
            if group < one.first:  # of these only the number of documents is needed
                reasons = file.read_row_group(group, columns=["reason"])["reason"]
                first += pc.sum(pc.equal(reasons, "")).as_py() or 0
                if texts is not None:
                    next(texts)
                continue
            table = file.read_row_group(group)
            is_alive = pc.equal(table["reason"], "").to_numpy()
            alive = np.cumsum(is_alive) - 1 + first
            begin, stop = np.searchsorted(gone_rows, [first, first + int(is_alive.sum())])
            here = gone_rows[begin:stop]
            goes = is_alive & np.isin(alive, here)
            table = _named_apart(table, is_alive, alive, found)
            verdict = final.slice(begin, stop - begin)
            mask = pa.array(goes)
            removed = table.filter(pa.array(~is_alive | goes))
            for name in ("step", "reason", "detail"):
                # Both lists are in the order of the rows.
                column = pc.replace_with_mask(
                    table[name].combine_chunks(), mask, verdict[name].combine_chunks()
                )
                removed = removed.set_column(
                    removed.schema.get_field_index(name), name, column.filter(pa.array(~is_alive | goes))
                )
            heads = pc.utf8_slice_codeunits(removed["text"], 0, work.config.removed_chars)
            removed = removed.set_column(removed.schema.get_field_index("text"), "text", heads)
            stays = is_alive & ~goes
            kept = table.filter(pa.array(stays)).drop_columns(["step", "reason", "detail"])
            if "quality" in scored.schema.names:
                rows = np.searchsorted(scored["row"].to_numpy(), alive[stays])
                kept = kept.append_column("quality", scored["quality"].take(pa.array(rows)))
            if texts is not None:
                edited = next(texts)
                which = np.searchsorted(edited.alive, alive[stays])
                column = edited.text.take(pa.array(which)).cast(pa.string())
                kept = kept.set_column(kept.schema.get_field_index("text"), "text", column)
            yield kept, removed.drop_columns(list(NOT_REMOVED))
            first += int(is_alive.sum())


def _named_apart(table: pa.Table, is_alive: Any, alive: Any, found: Repeats) -> pa.Table:
    """The second document with an id `x` is called `x#2`, and so on; `found` are the repeats of ids."""
    again, at = found.find(np.where(is_alive, alive << 32, -1))
    if not again.any():
        return table
    names = [
        f"{name}#{nth}"
        for name, nth in zip(table["id"].filter(pa.array(again)).to_pylist(), found.nth[at], strict=True)
    ]
    column = pc.replace_with_mask(table["id"].combine_chunks(), pa.array(again), pa.array(names, pa.string()))
    return table.set_column(table.schema.get_field_index("id"), "id", column)
