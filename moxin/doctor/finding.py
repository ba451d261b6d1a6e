"""What a check found, as a person reads it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.table import Table
from rich.text import Text

from moxin import console

Level = Literal["ok", "warn", "refuse"]
STYLES: dict[Level, str] = {"ok": "green", "warn": "yellow", "refuse": "bold red"}
NAMED = 3
"""Nodes that are named before the rest is counted."""


@dataclass(frozen=True)
class Finding:
    """`refuse`: a run would fail or be spoilt. `warn`: it would run, but slower or less safely than it should."""

    check: str
    level: Level
    result: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.check}: {self.result}" + (f"; {self.fix}" if self.fix else "")


def refused(findings: Iterable[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.level == "refuse"]


def listed(nodes: Sequence[str]) -> str:
    """`a, b, c and 5 more`."""
    more = len(nodes) - NAMED
    return ", ".join(nodes[:NAMED]) + (f" and {more} more" if more > 0 else "")


def count(n: int, what: str) -> str:
    return f"{n:,} {what}" + ("" if n == 1 else "s")


def by_value(values: Mapping[str, str]) -> str:
    """Who has which value, the most common first: `2.60.0 on 7 nodes, 2.59.0 on b`."""
    nodes: dict[str, list[str]] = {}
    for node, value in values.items():
        nodes.setdefault(value, []).append(node)
    ranked = sorted(nodes.items(), key=lambda item: (-len(item[1]), item[0]))
    parts = [f"{value or 'none'} on {listed(names)}" for value, names in ranked]
    if len(ranked) > 1 and len(ranked[0][1]) > NAMED:
        parts[0] = f"{ranked[0][0] or 'none'} on {len(ranked[0][1])} nodes"
    return ", ".join(parts)


def size(n_bytes: float) -> str:
    """`1.5 GiB`."""
    power = min(max(int(n_bytes), 1).bit_length() - 1, 49) // 10
    value = n_bytes / 2 ** (10 * power)
    return f"{value:,.{0 if power < 2 or value >= 100 else 1}f} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


def show(findings: Sequence[Finding]) -> None:
    """One table: the check, what was found, what to do."""
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    grid.add_column("check", no_wrap=True)
    grid.add_column("", no_wrap=True)
    grid.add_column("result", ratio=3)
    grid.add_column("what to do", ratio=2)
    for finding in findings:
        level = Text(finding.level, style=STYLES[finding.level])
        grid.add_row(Text(finding.check), level, Text(finding.result), Text(finding.fix))
    console.console.print(grid, soft_wrap=False)
