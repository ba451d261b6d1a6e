"""What became of every document of a unit, and what is counted of it: the last decision before the shards are written."""

from collections import Counter
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from moxin import storage
from moxin.curate import fuzzy, near
from moxin.curate.edit import DROPPED, EDITED, repeats_of
from moxin.curate.judge import EXAMPLE_CHARS, EXAMPLES
from moxin.curate.work import Work, alive_ids, groups, read_arrow, write_arrow

TALLY = "tally.json"
MAX_NAMED = 2048
"""Units up to which a duplicate's original is told by its id, which lies in another unit's file."""


def tally_unit(work: Work, number: int, search: fuzzy.Search | None) -> dict[str, Any]:
    """Writes `final.arrow`, every alive document that goes; last `tally.json`: what stays, by row group, and what went."""
    done = work.file(number, TALLY)
    if storage.exists(done):
        return storage.read_json(done)  # type: ignore[no-any-return]
    dropped = read_arrow(work.file(number, "dropped.arrow"))
    details = [
        detail if unit == -1 else f"of {_named(work, unit, row)}"
        for detail, unit, row in zip(
            *(dropped[name].to_pylist() for name in ("detail", "of_unit", "of_row")), strict=True
        )
    ]
    dropped = dropped.set_column(3, "detail", pa.array(details, pa.string()))
    through = read_arrow(work.file(number, "passed.arrow"))
    rows, sizes = through["row"].to_numpy(), through["bytes"].to_numpy()
    stays = np.ones(len(rows), bool)
    pairs: list[dict[str, Any]] = []
    if search is not None:
        kept, similarity, first = near.verdicts(search, number)
        again = np.flatnonzero(kept != np.arange(len(kept)) + first)
        stays[again], near_rows = False, rows[again]
        named = [_named(work, *_place(work, search, int(of))) for of in kept[again]]
        said = [
            f"of {name}, Jaccard {value:.3f}" for name, value in zip(named, similarity[again], strict=True)
        ]
        columns = {
            "row": near_rows,
            "step": ["near dedup"] * len(again),
            "reason": ["near_duplicate"] * len(again),
            "detail": said,
            "bytes": sizes[again],
            "of_unit": [-1] * len(again),
            "of_row": [-1] * len(again),
        }
        dropped = pa.concat_tables([dropped, pa.table(columns, schema=DROPPED)]).sort_by("row")
        if number in work.examples:
            pairs = _pairs(work, number, search, near_rows, kept[again], similarity[again])
    write_arrow(work.file(number, "final.arrow"), dropped)
    kept_in_group, first = [], 0
    for n in storage.read_json(work.file(number, EDITED))["groups"]:
        here = slice(first, first + n)
        kept_in_group.append([int(stays[here].sum()), int(sizes[here][stays[here]].sum())])
        first += n
    removed: Counter[tuple[str, str]] = Counter()
    removed_bytes: Counter[tuple[str, str]] = Counter()
    for step, reason, size in zip(
        *(dropped[name].to_pylist() for name in ("step", "reason", "bytes")), strict=True
    ):
        removed[step, reason] += 1
        removed_bytes[step, reason] += size
    value = {
        "groups": kept_in_group,
        "removed": [[*key, n, removed_bytes[key]] for key, n in sorted(removed.items())],
        "renamed": len(repeats_of(work, "ids", number).place),
        "pairs": pairs,
    }
    storage.write_json(done, value)
    return value


def _named(work: Work, number: int, row: int) -> str:
    """An alive document by its id."""
    if number == -2:
        return "a document of an earlier corpus"
    if len(work.units) > MAX_NAMED:
        return f"document {row:,} of unit {number:,}"
    return str(alive_ids(work, number)[row].as_py())


def _place(work: Work, search: fuzzy.Search, document: int) -> tuple[int, int]:
    """Unit and number among its alive of a document of the search; unit -2 for one of an earlier corpus."""
    place, row = search.unit_of(document)
    unit = search.units[place]
    if unit.generation < work.generation:
        return -2, row
    return unit.number, int(_passed_rows(work.file(unit.number, "passed.arrow"))[row])


@lru_cache(maxsize=64)
def _passed_rows(url: str) -> Any:
    return read_arrow(url)["row"].to_numpy()


def _pairs(
    work: Work, number: int, search: fuzzy.Search, rows: Any, of: Any, similarity: Any
) -> list[dict[str, Any]]:
    """Near-duplicates that were removed with the least similarity, beside what they repeat."""
    out = []
    for k in np.argsort(similarity, kind="stable")[:EXAMPLES]:
        other, other_row = _place(work, search, int(of[k]))
        if other == -2:
            continue
        out.append(
            {
                "kind": "near",
                "id": _named(work, number, int(rows[k])),
                "of": _named(work, other, other_row),
                "similarity": float(similarity[k]),
                "text": _text(work, number, int(rows[k])),
                "of_text": _text(work, other, other_row),
            }
        )
    return out


def _text(work: Work, number: int, row: int) -> str:
    """The beginning of an alive document."""
    for group, table in enumerate(groups(work, number, ("reason",))):
        alive = np.flatnonzero(pc.equal(table["reason"], "").to_numpy())
        if row < len(alive):
            [found] = groups(work, number, ("text",), only=group)
            return (found["text"][int(alive[row])].as_py() or "")[:EXAMPLE_CHARS]
        row -= len(alive)
    raise AssertionError("no such row")
