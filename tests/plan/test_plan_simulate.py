"""Failures: Daly's formulas against simulated runs and a minimiser, and what a curve says."""

import math
import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from moxin import recipes
from moxin.plan import cluster, simulate
from moxin.plan.simulate import Reliability, best_interval, expected_seconds
from moxin.report import scaling

HOUR = 3600.0


@pytest.mark.parametrize(
    ("write", "between"), [(10, 50 * HOUR), (60, 12 * HOUR), (300, 2 * HOUR), (600, HOUR), (1200, HOUR)]
)
def test_the_best_interval_is_where_the_expected_time_is_least(write: float, between: float) -> None:
    found = minimize_scalar(
        lambda interval: expected_seconds(100 * HOUR, interval, write, 300, between),
        bounds=(1, 20 * HOUR),
        method="bounded",
        options={"xatol": 0.1},
    )
    best = best_interval(write, between)
    assert best == pytest.approx(found.x, rel=0.03)
    assert expected_seconds(100 * HOUR, best, write, 300, between) == pytest.approx(found.fun, rel=1e-4)


@pytest.mark.parametrize(("write", "between"), [(30, 8 * HOUR), (120, 2 * HOUR), (300, HOUR)])
def test_simulated_runs_take_what_the_formula_expects(write: float, between: float) -> None:
    interval = best_interval(write, between)
    work = 200 * HOUR
    took = simulate.simulate(work, interval, write, 600, between, runs=4000)
    error = 4 * took.std() / math.sqrt(len(took))
    expected = expected_seconds(work, interval, write, 600, between)
    # The formula lets the first stretch begin with a restart and the last end with a checkpoint.
    assert took.mean() == pytest.approx(expected, abs=error + 600 + write)
    other = simulate.simulate(work, interval, write, 600, between, runs=4000)
    assert np.array_equal(took, other)  # the same seed


def test_without_failures_a_run_is_work_and_checkpoints() -> None:
    took = simulate.simulate(1000, 100, 5, 600, 1e15, runs=3)
    assert took == pytest.approx([1000 + 9 * 5] * 3)


def test_failures_that_come_too_fast_never_end() -> None:
    assert expected_seconds(HOUR, 10_000, 10_000, 10, 20) == math.inf
    assert best_interval(1000, 100) == 100


@pytest.fixture(scope="module")
def points() -> list[simulate.Point]:
    offer = cluster.of_accelerator("H100-80GB", 2.5)
    counts = (64, 1024, 4096)
    return simulate.curve(recipes.load("moxin_7b"), offer, counts, Reliability(), runs=100)


def test_more_gpus_are_faster_dearer_and_lose_more(points: list[simulate.Point]) -> None:
    assert [point.n_gpus for point in points] == [64, 1024, 4096]
    assert [point.batch_factor for point in points] == [1, 1, 4]  # 1024 rows of 4096 tokens
    for before, after in pairwise(points):
        assert after.expected < before.expected
        assert after.dollars > before.dollars
        assert after.goodput < before.goodput
        assert after.computing < before.computing
    for point in points:
        assert point.low <= point.expected <= point.high * 1.01
        assert point.between_failures == pytest.approx(50_000 * HOUR / point.n_gpus)
        assert point.cost.hours * HOUR < point.expected


def test_the_shares_of_a_bar_add_up(points: list[simulate.Point]) -> None:
    for point in points:
        assert sum(scaling.split(point)) == pytest.approx(1)
        assert min(scaling.split(point)) >= 0


def test_the_page_is_wellformed_and_loads_nothing(points: list[simulate.Point]) -> None:
    offer = cluster.of_accelerator("H100-80GB", 2.5)
    for drawn in (points, points[:1]):
        text = scaling.page("a<b", offer, drawn, Reliability())
        assert "a&lt;b" in text
        assert not re.search(r"\b(nan|inf)\b", re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL))
        assert "<script" not in text
        assert not re.search(r"(src|href)=|https?:", text)


def test_a_run_that_never_ends_has_no_curve(points: list[simulate.Point]) -> None:
    never = replace(points[0], expected=math.inf, low=math.inf, high=math.inf)
    assert "no run would ever end" in scaling.days([never], 1000)
    assert "never" in scaling.page("a", cluster.of_accelerator("H100-80GB"), [never], Reliability())
