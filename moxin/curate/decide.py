"""Which documents repeat others, decided in the driver on arrays of hashes; text is read only of candidates."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from moxin import storage
from moxin.curate import dedup
from moxin.curate.annotate import shingle_sets
from moxin.curate.shards import VERDICT, part, read_table, write_table
from moxin.recipe import Recipe


@dataclass(frozen=True)
class Decided:
    """All documents, shard by shard and unit by unit: `id`, `source`, `step`, `reason`, `detail`."""

    rows: pa.Table
    near: dedup.NearDuplicates


def decide(folders: Sequence[str], recipe: Recipe, scratch: str) -> Decided:
    """Finds the duplicates among documents that passed, and writes the verdicts next to the annotated shards."""
    urls = [storage.join(folder, part(shard)) for shard in range(recipe.shards) for folder in folders]
    tables = [read_table(url, ("id", "source", *VERDICT, "exact", "bands")) for url in urls]
    first_row = np.cumsum([0] + [len(table) for table in tables])
    rows = pa.concat_tables(tables).combine_chunks()
    order = _priority(rows, [source.name for source in recipe.sources])
    verdict = {name: rows[name].to_numpy().copy() for name in VERDICT}

    def remove(which: NDArray[np.int64], of: NDArray[np.int64], kind: str, details: Sequence[str]) -> None:
        ids = rows["id"].take(of).to_pylist()
        for row, id_, detail in zip(which, ids, details, strict=True):
            verdict["step"][row] = f"{kind} dedup"
            verdict["reason"][row] = f"{kind}_duplicate"
            verdict["detail"][row] = f"of {id_}{detail}"

    hashes = _numbers(rows["exact"], order)
    stands_for = order[dedup.exact(hashes)]
    again = order != stands_for
    remove(order[again], stands_for[again], "exact", [""] * int(again.sum()))

    order = order[~again]

    def sets(members: NDArray[np.int64]) -> dedup.Sets:
        return _shingle_sets(urls, first_row, order[members])

    bands = _numbers(rows["bands"], order)
    near = dedup.near(bands, recipe.curate.near_duplicate_jaccard, sets)
    again = near.kept != np.arange(len(order))
    details = [f", Jaccard {value:.3f}" for value in near.similarity[again]]
    remove(order[again], order[near.kept[again]], "near", details)

    rows = rows.select(("id", "source")).append_column("step", pa.array(verdict["step"], pa.string()))
    for name in ("reason", "detail"):
        rows = rows.append_column(name, pa.array(verdict[name], pa.string()))
    for shard in range(recipe.shards):
        start, stop = first_row[shard * len(folders)], first_row[(shard + 1) * len(folders)]
        write_table(
            storage.join(scratch, "verdicts", part(shard)), rows.slice(start, stop - start).select(VERDICT)
        )
    return Decided(rows, near)


def _priority(rows: pa.Table, sources: list[str]) -> NDArray[np.int64]:
    """Rows that passed all rules, best first: by the source's place in the recipe, then id."""
    place = pc.index_in(rows["source"], pa.array(sources))
    table = pa.table({"place": place, "id": rows["id"], "row": pa.array(np.arange(len(rows)))})
    table = table.filter(pc.equal(rows["step"], ""))
    return table.sort_by([(name, "ascending") for name in ("place", "id", "row")])["row"].to_numpy().copy()


def _numbers(column: pa.ChunkedArray, rows: NDArray[np.int64]) -> NDArray[np.uint64]:
    """A column of fixed-size binary values as uint64 at these rows: uint64[len(rows), bytes / 8]."""
    array = column.combine_chunks()
    values = np.frombuffer(array.buffers()[1] or b"", "<u8").reshape(-1, array.type.byte_width // 8)
    return values[array.offset :][rows]


def _shingle_sets(urls: Sequence[str], first_row: NDArray[np.int64], wanted: NDArray[np.int64]) -> dedup.Sets:
    """Shingle sets of the wanted rows, in their order; text is read one file at a time."""
    in_file = np.searchsorted(first_row, wanted, "right") - 1
    values, sizes = [np.empty(0, np.uint64)], np.zeros(len(wanted), np.int64)
    by_file = np.argsort(in_file, kind="stable")
    for file in np.unique(in_file):
        places = by_file[np.searchsorted(in_file[by_file], file) :][: np.count_nonzero(in_file == file)]
        text = read_table(urls[file], ["text"])["text"].take(wanted[places] - first_row[file])
        sets, starts = shingle_sets(text)
        values.append(sets)
        sizes[places] = np.diff(starts)
    flat = np.concatenate(values)
    # The sets lie in the order of the files; what is asked for is the order of `wanted`.
    start_by_file = np.concatenate([[0], np.cumsum(sizes[by_file])])[:-1]
    start_of = np.empty(len(wanted), np.int64)
    start_of[by_file] = start_by_file
    starts = np.concatenate([[0], np.cumsum(sizes)])
    take = np.repeat(start_of - starts[:-1], sizes) + np.arange(starts[-1])
    return flat[take], starts
