"""What a person sees: lines, tables and progress, through `rich`; plain lines where the output is not a terminal."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

PIPE_WIDTH = 120
"""Columns of tables that go to a file or a pipe."""
console = Console(highlight=False, soft_wrap=True)
if not console.is_terminal:
    console = Console(highlight=False, soft_wrap=True, width=PIPE_WIDTH)
PLAIN_INTERVAL_S = 10.0
"""Seconds between progress lines where the output is a file."""


def say(message: str, style: str = "") -> None:
    console.print(message, style=style or None, markup=False)


def heading(message: str) -> None:
    console.print()
    console.print(message, style="bold", markup=False)


def warn(message: str) -> None:
    console.print(f"warning: {message}", style="yellow", markup=False)


def fail(message: str) -> None:
    console.print(f"error: {message}", style="bold red", markup=False)


def visible(text: str) -> str:
    """Text of strangers for a terminal: control characters, which could steer it, as pictures; line ends and tabs stay."""
    return text.translate(_PICTURES)


_PICTURES = {code: chr(0x2400 + code) for code in range(32) if code not in (9, 10)} | {127: "␡"}
_PICTURES |= dict.fromkeys(range(0x80, 0xA0), "�")


def table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[str] = ()
) -> None:
    """A table: columns of numbers, and those named in `right`, are set to the right; only the last column may wrap."""
    grid = Table(
        title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0)
    )
    for position, column in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[position], (int, float)) for row in rows)
        last = position == len(columns) - 1
        grid.add_column(
            column,
            justify="right" if numeric or column in right else "left",
            header_style="dim",
            no_wrap=not last,
        )
    for row in rows:
        grid.add_row(
            *(Text(format_number(cell) if isinstance(cell, (int, float)) else str(cell)) for cell in row)
        )
    console.print()
    console.print(grid)


def format_number(value: float) -> str:
    """`1234567` as `1,234,567`, `0.81234` as `0.812`."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) < 0.1 else f"{value:,.3f}"


def format_seconds(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours}h {minutes:02d}m" if hours else f"{minutes}m {rest:02d}s" if minutes else f"{seconds:.1f}s"
    )


class Bar:
    """One running progress display: `update(done, "loss 2.31")`. Rates are measured from this process's first update."""

    def __init__(
        self, title: str, total: float | None, unit: str, start: float, progress: Progress | None
    ) -> None:
        self.title, self.total, self.unit, self.done = title, total, unit, start
        self._progress, self._start, self._began = progress, start, time.monotonic()
        self._printed = self._began
        self._task = (
            progress.add_task(title, total=total, completed=int(start), note="") if progress else None
        )

    @property
    def rate(self) -> float:
        return (self.done - self._start) / max(time.monotonic() - self._began, 1e-9)

    def update(self, done: float, note: str = "") -> None:
        self.done = done
        rate = self.rate
        shown = f"{rate:,.0f} {self.unit}/s" if rate >= 10 else f"{rate:.2g} {self.unit}/s"
        note = f"{shown}  {note}" if done > self._start else note
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, note=note)
        elif time.monotonic() - self._printed >= PLAIN_INTERVAL_S:
            self._printed = time.monotonic()
            share, eta = "", ""
            if self.total:
                share = f" {100 * done / self.total:3.0f}%"
                eta = f"  ETA {format_seconds((self.total - done) / rate)}" if rate > 0 else ""
            say(f"  {self.title}{share}  {note}{eta}")

    def advance(self, amount: float = 1, note: str = "") -> None:
        self.update(self.done + amount, note)


@contextmanager
def progress(title: str, total: float | None, unit: str, start: float = 0) -> Iterator[Bar]:
    """A progress display for anything that takes more than a few seconds, with rate and time left."""
    if not console.is_terminal:
        yield Bar(title, total, unit, start, None)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[note]}", style="dim"),
        TimeElapsedColumn(),
        TextColumn("ETA", style="dim"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as display:
        yield Bar(title, total, unit, start, display)
