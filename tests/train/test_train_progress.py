"""The line of a run: its width, what it leaves out first, and what reaches a terminal and a pipe."""

import functools
import io
import math
import threading
import time

import pytest
import train_cases
from rich.console import Console
from train_cases import small_job

from moxin import console, storage
from moxin.train import progress
from moxin.train.line import WIDTH, line, short
from moxin.train.progress import Recent, Reporter

USUAL = {
    "step": 123_456,
    "tokens": 517_000_000_000,
    "loss": 2.34567,
    "lr": 2.9e-4,
    "grad_norm": 0.5234,
    "seconds": 3.5,
    "tokens_per_second": 1_234_567.0,
}
EVERYTHING = {
    **USUAL,
    "mfu": 0.4123,
    "dollars": 123_456.78,
    "eta_seconds": 400_000.0,
    "recent": {"rate": 1.2e6, "data": 0.05, "checkpoint": 0.031, "spikes": 12, "skipped": 3},
}


def shown(row, width=WIDTH, unit="tokens", name="pretrain-phase1"):
    return line(name, row, total=2_000_000_000_000, n_steps=476_837, unit=unit, width=width)


def test_a_wide_line_says_everything_that_is_known():
    told = shown(USUAL)
    assert told == (
        "pretrain-phase1 25%  123,456/476,837  loss 2.346  1.23M tok/s  lr 2.90e-04  grad 0.52  ETA 333h 40m"
    )
    full = shown(EVERYTHING, width=200)
    for part in (
        "MFU 41.2%",
        "$123,456.78",
        "ETA 111h 06m",
        "data 5%",
        "ckpt 3%",
        "12 spikes",
        "3 skipped",
        "1.20M",
    ):
        assert part in full


@pytest.mark.parametrize("width", [40, 60, 77, 80, 100, WIDTH, 140])
@pytest.mark.parametrize("row", [USUAL, EVERYTHING], ids=["usual", "everything"])
def test_no_line_is_wider_than_it_may_be(row, width):
    assert len(shown(row, width)) <= width


def test_what_matters_stays_when_room_is_short():
    narrow = shown(EVERYTHING, width=77)
    for part in ("123,456/476,837", "loss 2.346", "1.20M tok/s", "12 spikes"):
        assert part in narrow
    assert "grad" not in narrow
    assert "3 skipped" in shown(EVERYTHING)


def test_waits_and_events_are_silent_where_there_are_none():
    quiet = {
        **EVERYTHING,
        "recent": {"rate": 1.2e6, "data": 0.019, "checkpoint": 0.0, "spikes": 0, "skipped": 0},
    }
    told = shown(quiet)
    assert not any(word in told for word in ("data", "ckpt", "spike", "skipped"))
    assert "1 spike " in shown({**quiet, "recent": {**quiet["recent"], "spikes": 1}}) + " "


def test_other_units_and_a_loss_that_is_not_finite():
    row = {
        "step": 1,
        "pairs": 16,
        "loss": math.nan,
        "lr": 0.0,
        "grad_norm": math.inf,
        "pairs_per_second": 3.21,
    }
    told = line("dpo", row, total=32, n_steps=2, unit="pairs")
    assert told.startswith("dpo 50%  1/2  loss nan  3.21 pairs/s")
    assert "ETA 5.0s" in told


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0.00"),
        (3.21, "3.21"),
        (42.4, "42"),
        (987, "987"),
        (999.7, "1.00k"),
        (12345, "12.3k"),
        (1.234567e6, "1.23M"),
    ],
)
def test_rates_have_three_digits(value, text):
    assert short(value) == text


def test_the_first_step_of_a_process_counts_in_no_rate():
    recent = Recent("tokens")
    recent.add({"seconds": 90.0, "tokens_per_second": 1.0, "spike": True})
    assert (recent.told()["rate"], recent.told()["spikes"]) == (0.0, 1)
    recent.add({"seconds": 1.0, "tokens_per_second": 50.0})
    assert recent.told()["rate"] == pytest.approx(50.0)


def test_recent_weighs_what_is_new_and_a_single_checkpoint_is_a_small_share():
    recent = Recent("tokens")
    for step in range(100):
        row = {
            "seconds": 1.0,
            "tokens_per_second": 10.0,
            "data_seconds": 0.1,
            "spike": step == 5,
            "skipped": False,
        }
        recent.add({**row, "seconds": 11.0, "checkpoint_seconds": 10.0} if step == 50 else row)
    told = recent.told()
    assert told["rate"] == pytest.approx(10.0)
    assert told["data"] == pytest.approx(0.1, abs=0.02)
    assert 0.02 < told["checkpoint"] < 0.15
    assert (told["spikes"], told["skipped"]) == (1, 0)
    for _ in range(1000):
        recent.add({"seconds": 1.0, "tokens_per_second": 99.0})
    assert recent.told()["rate"] == pytest.approx(99.0, rel=0.01)
    assert recent.told()["checkpoint"] < 1e-3


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(progress, "INTERVAL_S", 0.02)
    monkeypatch.setattr(console, "PLAIN_INTERVAL_S", 0.0)


def watched(tmp_path, monkeypatch, terminal):
    """What a person sees of three rows, of which the last comes from another process."""
    output = io.StringIO()
    screen = Console(file=output, force_terminal=terminal, width=80, highlight=False, soft_wrap=True)
    monkeypatch.setattr(console, "console", screen)
    url = str(tmp_path / "progress.json")
    job = small_job(batches=functools.partial(train_cases.CountingBatches, n_steps=100))
    with progress.shown(url, job, job.batches()):
        for step, host in ((1, "a"), (2, "a"), (2, "b")):
            monkeypatch.setattr(progress.socket, "gethostname", lambda host=host: host)
            rate = {"tokens_per_second": 64.0, "lr": 1e-3, "grad_norm": 0.5, "seconds": 2.0}
            Reporter(url, "tokens")({"step": step, "tokens": 128 * step, "loss": 4.0 - step, **rate})
            until = time.monotonic() + 5
            while f"{step}/100" not in output.getvalue() and time.monotonic() < until:
                time.sleep(0.02)
        time.sleep(0.2)
    return output.getvalue()


def test_a_pipe_gets_plain_lines_and_the_word_about_a_lost_worker(tmp_path, monkeypatch, quick):
    lines = watched(tmp_path, monkeypatch, terminal=False).splitlines()
    assert lines[0] == "  small 1%  1/100  loss 3.000  64 tok/s  lr 1.00e-03  grad 0.50  ETA 3m 18s"
    assert "warning: small: a worker was lost; training goes on from step 2" in lines
    assert "\x1b" not in "".join(lines)


def test_a_terminal_gets_one_line_that_is_replaced(tmp_path, monkeypatch, quick):
    told = watched(tmp_path, monkeypatch, terminal=True)
    assert "2/100  loss 2.000" in told
    assert "\x1b[2K" in told
    assert "a worker was lost" in told
    assert threading.active_count() < 20


def test_the_reporter_keeps_its_interval(tmp_path, monkeypatch):
    url = str(tmp_path / "progress.json")
    reporter = Reporter(url, "tokens")
    row = {"tokens": 1, "tokens_per_second": 1.0, "seconds": 0.001}
    for step in (1, 2, 3):
        reporter({"step": step, **row})
    assert storage.read_json(url)["step"] == 1
    reporter.written = float("-inf")
    reporter({"step": 4, **row})
    assert storage.read_json(url)["step"] == 4
