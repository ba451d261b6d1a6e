"""What `moxin inspect documents` shows: documents of Parquet shards with their signals, filtered, sorted and in pages.

Which rows match is decided on the few columns that are asked about, one row group at a time, and row groups whose statistics
rule them out are not read; text is read of the row groups alone that hold what is shown.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import and_
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.fs as pafs
from rich.text import Text

from moxin import console, storage
from moxin.config import nearest
from moxin.curate.documents import SCHEMA

KEPT, REMOVED = "documents", "removed"
"""Folders of a curate artifact."""
VERDICT = ("step", "reason", "detail")
_SKIPPED = (*SCHEMA.names, *VERDICT)
_COMPARISONS = {
    "<=": pc.less_equal,
    ">=": pc.greater_equal,
    "!=": pc.not_equal,
    "=": pc.equal,
    "<": pc.less,
    ">": pc.greater,
}
_CONDITION = re.compile(r"\s*(.+?)\s*(<=|>=|!=|==|=|<|>)\s*(.*?)\s*", re.DOTALL)
_ORDER = "\0row"
_UNSEEN = {
    code: f"⟨U+{code:04X}⟩"
    for code in (0x061C, 0x200B, 0x200E, 0x200F, 0x2060, 0xFEFF)
    + (*range(0x202A, 0x202F), *range(0x2066, 0x206A), *range(0xD800, 0xE000), *range(0xE0000, 0xE0080))
}


def visible(text: str) -> str:
    """`console.visible`, and what turns the direction of text around, has no width, or is no character, by its number."""
    return console.visible(text).translate(_UNSEEN)


class Condition(NamedTuple):
    """`column op value`; values stay text until the column's type is known."""

    column: str
    op: str
    value: str

    @staticmethod
    def parse(text: str) -> "Condition":
        """`word_count>100`, `source=web`. Raises `ValueError` for what is no condition."""
        match = _CONDITION.fullmatch(text)
        if not match:
            raise ValueError(f"--where {text!r}: write COLUMN OP VALUE, such as word_count>100 or source=web")
        return Condition(match[1], "=" if match[2] == "==" else match[2], match[3])

    def can_hold(self, known: Mapping[str, Any] | None) -> bool:
        """Whether a row group whose column lies between `min` and `max` can hold such a row; nulls never match.

        pyarrow's own pruning gives up where a column has nulls, as the columns of signals have.
        """
        if known is None or self.op == "!=":
            return True
        low, high = known["min"], known["max"]
        if isinstance(low, str):
            return bool(low <= self.value <= high)
        if not isinstance(low, (int, float)) or isinstance(low, bool):
            return True
        value = float(self.value)
        if self.op == "=":
            # A float32 is not the number as it was written.
            slack = 1e-6 * abs(value)
            return low - slack <= value <= high + slack
        return low <= value if self.op in ("<", "<=") else high >= value

    def expression(self, field: pa.Field) -> pc.Expression:
        """The condition on a column of this type. Raises `ValueError` where the two do not go together."""
        kind, said = field.type, f"--where {self.column}{self.op}{self.value}"
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            if self.op not in ("=", "!="):
                raise ValueError(f"{said}: {self.column} is text, which can be compared with = and != only")
            return _COMPARISONS[self.op](pc.field(self.column), pa.scalar(self.value, kind))
        try:
            value = pa.scalar(float(self.value))
        except ValueError:
            raise ValueError(f"{said}: {self.column} is {kind}, and {self.value!r} is no number") from None
        # As the column stores it: 0.1 in float32 is another number than in float64.
        value = value.cast(kind) if pa.types.is_floating(kind) else value
        return _COMPARISONS[self.op](pc.field(self.column), value)


@dataclass(frozen=True)
class Query:
    """Which documents, in which order, and how much of each."""

    where: Sequence[Condition] = ()
    sort: str = ""
    """A column by which the highest come first; rows without a value are left out."""
    lowest: bool = False
    """The lowest first."""
    n: int = 10
    page: int = 1
    chars: int = 1000

    def check(self) -> None:
        """Raises `ValueError` for numbers that cannot be."""
        for name, least in (("n", 1), ("page", 1), ("chars", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name} {getattr(self, name)}: must be at least {least}")


class _Place(NamedTuple):
    group: ds.ParquetFileFragment
    row: int


def shards(url: str, removed: bool = False) -> list[str]:
    """URLs of the Parquet files at `url`: a file, a folder of them, or a curate artifact with its two folders.

    Raises:
        ValueError: There are none.
    """
    sizes = storage.sizes_under(url)
    if "" in sizes:
        return [url]
    names = [name for name in sizes if name.endswith(".parquet")]
    for folder in (REMOVED,) if removed else (KEPT,):
        if inside := [name for name in names if name.startswith(f"{folder}/")]:
            return [storage.join(url, name) for name in inside]
    if not names:
        raise ValueError(f"{url}: no such file or folder, or no .parquet file in it")
    return [storage.join(url, name) for name in names]


def show(urls: Sequence[str], query: Query) -> None:
    """Prints one page of the documents that match.

    Raises:
        ValueError: A column that no shard has, a condition that does not fit it, no document, or a file that is not Parquet.
    """
    query.check()
    files = _Files(urls)
    asked = [condition.column for condition in query.where] + ([query.sort] if query.sort else [])
    for name in asked:
        files.check_column(name)
    first, stop = (query.page - 1) * query.n, query.page * query.n
    places, more = files.sorted_by(query, stop + 1) if query.sort else files.in_order(query, stop + 1)
    if not places:
        said = ", ".join(f"{each.column} {each.op} {each.value}" for each in query.where)
        raise ValueError(f"no document matches{f' {said}' if said else ''} in {_count(len(urls), 'shard')}")
    if len(places) <= first:
        raise ValueError(
            f"--page {query.page}: only {_count(len(places), 'document')} match, which are "
            f"{_count(-(-len(places) // query.n), 'page')} of {query.n}"
        )
    shown = places[first:stop]
    for number, (place, row) in enumerate(zip(shown, _rows(shown), strict=True), first + 1):
        _print(number, place, row, query.chars)
    rest = more or len(places) > stop
    tail = f"; --page {query.page + 1} shows more" if rest else ", and that is all"
    console.console.rule(style="dim")
    console.say(f"  documents {first + 1:,} to {first + len(shown):,}{tail}", style="dim")


class _Files:
    """The shards, each opened when it is its turn."""

    def __init__(self, urls: Sequence[str]) -> None:
        self.urls = list(urls)
        self.opened: dict[str, ds.ParquetFileFragment] = {}

    def __iter__(self) -> Iterator[ds.ParquetFileFragment]:
        return map(self.fragment, self.urls)

    def fragment(self, url: str) -> ds.ParquetFileFragment:
        if url not in self.opened:
            if storage.is_local(url):
                fs, path = pafs.LocalFileSystem(), str(storage.local_path(url))
            else:
                store, path = storage.filesystem(url)
                fs = pafs.PyFileSystem(pafs.FSSpecHandler(store))
            try:
                fragment = ds.ParquetFileFormat().make_fragment(path, fs)
                fragment.ensure_complete_metadata()
            except pa.ArrowInvalid as error:
                raise ValueError(f"{url}: not a Parquet file, or not a whole one ({error})") from None
            self.opened[url] = fragment
        return self.opened[url]

    def check_column(self, name: str) -> None:
        """Raises `ValueError` where no shard has the column."""
        names: dict[str, None] = {}
        for fragment in self:
            if name in fragment.physical_schema.names:
                return
            names |= dict.fromkeys(fragment.physical_schema.names)
        hint = " (of removed documents: --removed)" if name in VERDICT else ""
        raise ValueError(
            f"there is no column {name!r}{hint}; {nearest(name, names)} The columns are {', '.join(names)}"
        )

    def matching(self, query: Query) -> Iterator[tuple[ds.ParquetFileFragment, pa.Table]]:
        """By row group the numbers of the rows that match, and the column to sort by."""
        for fragment in self:
            schema = fragment.physical_schema
            wanted = [each.column for each in query.where] + ([query.sort] if query.sort else [])
            if not set(wanted) <= set(schema.names):
                continue
            parts = [each.expression(schema.field(each.column)) for each in query.where]
            expression = reduce(and_, parts) if parts else None
            for group in fragment.split_by_row_group():
                known = group.row_groups[0].statistics or {}
                if not all(each.can_hold(known.get(each.column)) for each in query.where):
                    continue
                if not wanted:
                    numbers = pa.array(np.arange(group.row_groups[0].num_rows))
                    yield group, pa.table({_ORDER: numbers})
                    continue
                table = group.to_table(columns=list(dict.fromkeys(wanted)), use_threads=False)
                table = table.append_column(_ORDER, pa.array(np.arange(len(table))))
                if expression is not None:
                    table = table.filter(expression)
                yield group, table

    def in_order(self, query: Query, most: int) -> tuple[list[_Place], bool]:
        """The first `most` that match, as they stand in the shards, and whether there may be more."""
        places: list[_Place] = []
        for group, table in self.matching(query):
            places += [_Place(group, row) for row in table[_ORDER][: most - len(places)].to_pylist()]
            if len(places) >= most:
                return places, True
        return places, False

    def sorted_by(self, query: Query, most: int) -> tuple[list[_Place], bool]:
        """The `most` with the highest values, or the lowest; equal ones as they stand in the shards."""
        best: list[tuple[Any, int, _Place]] = []
        order = 0
        for group, table in self.matching(query):
            column = table[query.sort]
            if pa.types.is_floating(column.type):
                column = pc.if_else(pc.is_nan(column), None, column)
            table = table.set_column(table.schema.get_field_index(query.sort), query.sort, column)
            table = table.filter(pc.is_valid(column))
            keys = [(query.sort, "ascending" if query.lowest else "descending"), (_ORDER, "ascending")]
            top = table.sort_by(keys).slice(0, most)
            for value, row in zip(top[query.sort].to_pylist(), top[_ORDER].to_pylist(), strict=True):
                best.append((value, order, _Place(group, row)))
                order += 1
            # A stable sort keeps equals in their order.
            best.sort(key=lambda one: one[0], reverse=not query.lowest)
            del best[most:]
        return [place for _, _, place in best], len(best) >= most


def _rows(places: Sequence[_Place]) -> Iterator[Mapping[str, Any]]:
    """The documents whole; a row group is read once, and one at a time."""
    found: dict[int, Mapping[str, Any]] = {}
    waiting: dict[int, list[int]] = {}
    for k, place in enumerate(places):
        waiting.setdefault(id(place.group), []).append(k)
    for numbers in waiting.values():
        table = places[numbers[0]].group.to_table(use_threads=False)
        rows = table.take(pa.array([places[k].row for k in numbers])).to_pylist()
        found |= zip(numbers, rows, strict=True)
    return (found[k] for k in range(len(places)))


def _print(number: int, place: _Place, row: Mapping[str, Any], most: int) -> None:
    terminal = console.console
    title = f" {number:,}: {visible(str(row.get('id', '')))} "
    terminal.rule(Text(title, style="bold cyan"), align="left", style="dim")
    origin = [
        (name, row.get(key))
        for name, key in (("source", "source"), ("licence", "license"), ("language", "lang"))
    ]
    origin = [*origin, ("url", row.get("url"))]
    facts(origin)
    detail = str(row.get("detail") or "")
    if row.get("reason"):
        said = f"  removed at {visible(str(row.get('step') or '?'))} for {visible(str(row['reason']))}"
        terminal.print(Text(said + (f": {visible(detail)}" if detail else ""), style="yellow"))
    signals = [(name, value) for name, value in row.items() if name not in _SKIPPED and value is not None]
    # The signals that decided are named in the detail.
    words = set(re.findall(r"\w+", f"{detail} {row.get('reason') or ''}"))
    facts(sorted(signals, key=lambda signal: signal[0] not in words))
    text = str(row.get("text") or "")
    terminal.print(Text(visible(text[:most])), soft_wrap=True)
    if len(text) > most:
        terminal.print(Text(f"… and {len(text) - most:,} more characters (--chars)", style="dim"))


def facts(pairs: Sequence[tuple[str, Any]]) -> None:
    """`name value` pairs, as many in a line as fit."""
    line, width = Text("  "), console.console.width
    for name, value in pairs:
        if value is None or value == "":
            continue
        said = console.format_number(value) if isinstance(value, (int, float)) else visible(str(value))
        piece = Text.assemble((f"{visible(name)} ", "dim"), said)
        if len(line) > 2 and line.cell_len + piece.cell_len + 3 > width:
            console.console.print(line)
            line = Text("  ")
        line.append("   " if len(line) > 2 else "").append_text(piece)
    if len(line) > 2:
        console.console.print(line)


def _count(n: int, thing: str) -> str:
    return f"{n:,} {thing}" if n == 1 else f"{n:,} {thing}s"
