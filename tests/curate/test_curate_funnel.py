"""What the terminal shows while curation runs: a display that fits, or a line now and then, and a table at the end."""

import io
import re

import pytest
from rich.console import Console

from moxin import console
from moxin.curate import funnel as module
from moxin.curate.funnel import Funnel


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def opened(monkeypatch: pytest.MonkeyPatch, terminal: bool, height: int = 24) -> io.StringIO:
    out = io.StringIO()
    made = Console(
        file=out,
        force_terminal=terminal,
        width=100,
        height=height,
        highlight=False,
        soft_wrap=True,
        _environ={},
    )
    monkeypatch.setattr(console, "console", made)
    return out


def run(funnel: Funnel, clock: Clock, n: int = 30) -> None:
    with funnel.step("read and measure", n * 50_000_000):
        for _ in range(n):
            clock.now += 2
            gone = [("quality", "gopher_short_doc", 120, 40_000), ("url", "url_blocked", 7, 70_000)]
            gone += [("quality", "symbols", 3, 1_000), ("quality", "bullets", 1, 1_000)]
            funnel.add("web", 40_000_000, 1000, 40_000_000, gone)
            funnel.add("code", 10_000_000, 10, 10_000_000)
    with funnel.step("decide", 1_000_000, start=400_000):
        clock.now += 3
        funnel.add("web", 600_000, removed=[("near dedup", "near_duplicate", 30, 900_000)])


def test_a_file_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    out = opened(monkeypatch, terminal=False)
    run(Funnel(["web", "code"]), clock)
    lines = out.getvalue().splitlines()
    assert len(lines) == 8, lines  # 63 seconds are six lines; and one for every step
    assert lines[0] == (
        "  read and measure  16%  24 MB/s  ETA 52.5s  5,040 documents, 87.0% kept: gopher_short_doc 600, url_blocked 35, "
        "symbols 15"
    )
    assert lines[6:] == [
        "  read and measure: 1,500.0 MB in 1m 00s, 25 MB/s",
        "  decide: 0.6 MB in 3.0s, 0.2 MB/s",
    ]
    assert "\x1b" not in out.getvalue()


def test_the_table_adds_up(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    out = opened(monkeypatch, terminal=False)
    funnel = Funnel(["web", "code"])
    run(funnel, clock)
    funnel.show()
    rows = [re.split(r"\s{2,}", line.strip()) for line in out.getvalue().splitlines()]
    assert ["web", "read", "30,000", "1,200.0", "99.0%"] in rows
    assert ["− quality: gopher_short_doc", "3,600", "1.2", "11.9%"] in rows
    assert ["− near dedup: near_duplicate", "30", "0.9", "0.1%"] in rows
    assert ["= kept", "26,040", "1,195.7", "85.9%"] in rows
    assert ["all", "read", "30,300", "1,500.0", "100.0%"] in rows
    assert "24 MB/s over all steps, 1m 03s" in out.getvalue()


@pytest.mark.parametrize(("height", "n_sources"), [(24, 2), (24, 60), (8, 60), (5, 60), (2, 3)])
def test_a_terminal_shows_a_row_per_source_and_never_more_than_fit(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, height: int, n_sources: int
) -> None:
    out = opened(monkeypatch, terminal=True, height=height)
    names = ["web", "code", *(f"source-{i}" for i in range(n_sources - 2))]
    funnel = Funnel(names)
    with funnel.step("read and measure", 100_000_000):
        clock.now += 1
        gone = [("a", f"reason_{k}", 9 - k, 9) for k in range(8)]
        funnel.add("code", 10_000_000, 100, 12_000_000, gone)
        for name in names:
            funnel.add(name, 1_000, 10, 2_000)
        shown = io.StringIO()
        Console(file=shown, width=100, _environ={}).print(funnel._display())
        lines = shown.getvalue().splitlines()
        assert len(lines) < max(height, 2)
        assert max(map(len, lines)) <= 100
        assert "read and measure" in lines[-1]
        assert re.search(r"10%  10 MB/s  ETA (8.9|9.0)s", lines[-1]), lines[-1]
        if height >= 8:
            row = next(line for line in lines if line.startswith("  code"))
            assert re.split(r"\s{2,}", row.strip()) == [
                "code", "110", "66", "60.0%", "reason_0 9, reason_1 8, reason_2 7",
            ]  # fmt: skip
        if n_sources == 60 and height >= 8:
            assert re.match(r"  \d+ more", lines[-3])
    seen = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    assert "MB in 1.0s" in seen.splitlines()[-1]
    assert len(seen.splitlines()) < 3 * height + 6


def test_what_fails_is_not_called_done(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    out = opened(monkeypatch, terminal=False)
    funnel = Funnel(["web"])
    with pytest.raises(KeyError), funnel.step("read", 10):
        funnel.add("wbe", 10)
    assert out.getvalue() == ""
    with funnel.step("count", 0):
        clock.now += 2
    assert out.getvalue() == "  count: 2.0s\n"
