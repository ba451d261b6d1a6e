"""What a person sees while curation runs: by source what came and stayed and why the rest went, and how fast it goes.

funnel = Funnel(["web", "code"])
with funnel.step("read and measure", total_bytes):
    funnel.add("web", 1_000_000, 400, 1_200_000, [("language", "other_language", 31, 90_000)])
funnel.show()
"""

import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from moxin import console

REASONS = 3
"""Reasons named in a line."""
FRAME_ROWS = 5
"""Lines of the display that are not sources: its head, the rest in one, an empty one, the progress, and the cursor's."""
REFRESH_HZ = 4


@dataclass
class _Source:
    documents: int = 0
    n_bytes: int = 0
    removed: Counter[tuple[str, str]] = field(default_factory=Counter)
    removed_bytes: Counter[tuple[str, str]] = field(default_factory=Counter)

    @property
    def kept(self) -> int:
        return self.documents - self.removed.total()

    def merge(self, other: "_Source") -> None:
        self.documents += other.documents
        self.n_bytes += other.n_bytes
        self.removed.update(other.removed)
        self.removed_bytes.update(other.removed_bytes)


class _Step:
    """The step that runs: bytes done of those that are to be done, and since when."""

    def __init__(self, title: str, total: float, start: float) -> None:
        self.title, self.total, self.start, self.done = title, total, start, start
        self.began = time.monotonic()

    @property
    def seconds(self) -> float:
        return max(time.monotonic() - self.began, 1e-9)

    @property
    def rate(self) -> float:
        """Bytes per second, of what this process did."""
        return (self.done - self.start) / self.seconds

    def says(self) -> str:
        parts = [f"{min(self.done / self.total, 1):4.0%}"] if self.total else []
        if self.done > self.start:
            parts.append(f"{_rate(self.rate)}")
            if self.total > self.done:
                parts.append(f"ETA {console.format_seconds((self.total - self.done) / self.rate)}")
        return "  ".join(parts)


class Funnel:
    """One row per source above the progress of the step that runs; plain lines where the output is not a terminal."""

    def __init__(self, sources: Sequence[str]) -> None:
        self.sources = {name: _Source() for name in sources}
        self.seconds: dict[str, float] = {}
        """Time of each step that is done."""
        self._step: _Step | None = None
        self._printed = time.monotonic()
        self._lock = threading.Lock()  # the display is drawn by a thread of its own

    @contextmanager
    def step(self, title: str, total_bytes: float, start: float = 0) -> Iterator[None]:
        """A step of the pipeline: `total_bytes` to do, of which `start` were done before this process."""
        assert self._step is None, f"{title}: a step runs already"
        step = self._step = _Step(title, total_bytes, start)
        try:
            if console.console.is_terminal:
                with Live(
                    console=console.console,
                    get_renderable=self._display,
                    refresh_per_second=REFRESH_HZ,
                    transient=True,
                ):
                    yield
            else:
                yield
        finally:
            self._step = None
        seconds = step.seconds
        self.seconds[title] = self.seconds.get(title, 0.0) + seconds
        done = step.done - step.start
        size = f"{done / 1e6:,.1f} MB in " if done else ""
        speed = f", {_rate(done / seconds)}" if done else ""
        console.say(f"  {title}: {size}{console.format_seconds(seconds)}{speed}")

    def add(
        self,
        source: str,
        n_bytes: int,
        documents: int = 0,
        text_bytes: int = 0,
        removed: Sequence[tuple[str, str, int, int]] = (),
    ) -> None:
        """A task of the step is done: `n_bytes` of it, what was read, and what went: (step, reason, documents, bytes)."""
        step = self._step
        assert step is not None, "no step runs"
        with self._lock:
            step.done += n_bytes
            row = self.sources[source]
            row.documents += documents
            row.n_bytes += text_bytes
            for where, reason, n, size in removed:
                row.removed[where, reason] += n
                row.removed_bytes[where, reason] += size
        if not console.console.is_terminal and time.monotonic() - self._printed >= console.PLAIN_INTERVAL_S:
            self._printed = time.monotonic()
            total = self._total()
            share = (
                f"  {total.documents:,} documents, {total.kept / total.documents:.1%} kept"
                if total.documents
                else ""
            )
            why = f": {_commonest(total)}" if total.removed else ""
            console.say(f"  {step.title} {step.says()}{share}{why}")

    def show(self) -> None:
        """The table of the whole funnel, by source and reason, and how fast it was."""
        total = self._total()
        rows: list[Sequence[str | int]] = []
        for name, source in self.sources.items():
            rows.append(self._row(name, "read", source.documents, source.n_bytes, total))
            for (step, reason), n in source.removed.items():
                size = source.removed_bytes[step, reason]
                rows.append(self._row("", f"− {step}: {reason}", n, size, total))
            left = source.n_bytes - source.removed_bytes.total()
            rows.append(self._row("", "= kept", source.kept, left, total))
        if len(self.sources) > 1:
            rows.append(self._row("all", "read", total.documents, total.n_bytes, total))
            left = total.n_bytes - total.removed_bytes.total()
            rows.append(self._row("", "= kept", total.kept, left, total))
        console.table("Funnel", ("source", "what", "documents", "        MB", "of all"), rows)
        seconds = sum(self.seconds.values())
        if total.n_bytes and seconds:
            console.say(
                f"  {_rate(total.n_bytes / seconds)} over all steps, {console.format_seconds(seconds)}"
            )

    @staticmethod
    def _row(source: str, what: str, documents: int, n_bytes: int, total: _Source) -> Sequence[str | int]:
        share = documents / total.documents if total.documents else 0.0
        return source, what, documents, f"{n_bytes / 1e6:>10,.1f}", f"{share:>6.1%}"

    def _total(self) -> _Source:
        total = _Source()
        for source in self.sources.values():
            total.merge(source)
        return total

    def _display(self) -> Group | Text:
        with self._lock:
            step = self._step
            if step is None:
                return Text("")
            width, height = console.console.size
            said = step.says()
            progress = Table.grid(padding=(0, 1, 0, 0))
            progress.add_row(
                Text(f"  {step.title}"),
                ProgressBar(total=step.total or None, completed=step.done, width=max(min(24, width // 4), 4)),
                Text(f"{said}  {console.format_seconds(step.seconds)}", no_wrap=True, overflow="ellipsis"),
            )
            if height <= FRAME_ROWS:
                return Group(progress)
            return Group(self._sources(height - FRAME_ROWS), Text(""), progress)

    def _sources(self, most: int) -> Table:
        """The largest sources, as many as there is room for, in their order, and one row for the rest."""
        grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), expand=True)
        grid.add_column("  source", header_style="dim", no_wrap=True, overflow="ellipsis", max_width=28)
        for name in ("read", "kept", "of it"):
            grid.add_column(name, header_style="dim", justify="right", no_wrap=True)
        grid.add_column("went for", header_style="dim", no_wrap=True, overflow="ellipsis", ratio=1)
        chosen = sorted(self.sources, key=lambda name: -self.sources[name].n_bytes)[:most]
        rows = [(name, row, "") for name, row in self.sources.items() if name in chosen]
        if rest := [row for name, row in self.sources.items() if name not in chosen]:
            other = _Source()
            for row in rest:
                other.merge(row)
            rows.append((f"{len(rest):,} more", other, "dim"))
        for name, row, style in rows:
            share = f"{row.kept / row.documents:.1%}" if row.documents else ""
            cells = (f"  {name}", f"{row.documents:,}", f"{row.kept:,}", share, _commonest(row))
            grid.add_row(*(Text(cell) for cell in cells), style=style)
        return grid


def _commonest(source: _Source) -> str:
    reasons: Counter[str] = Counter()
    for (_, reason), n in source.removed.items():
        reasons[reason] += n
    found = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))[:REASONS]
    return ", ".join(f"{reason} {n:,}" for reason, n in found)


def _rate(bytes_per_second: float) -> str:
    mb = bytes_per_second / 1e6
    return f"{mb:,.0f} MB/s" if mb >= 10 else f"{mb:.2g} MB/s"
