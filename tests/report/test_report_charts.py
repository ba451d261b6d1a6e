"""Charts from awkward numbers: they draw something true, and never a NaN."""

import itertools
import math
from xml.etree import ElementTree

import pytest

from moxin.report import charts
from moxin.report.charts import Curve, buckets, losses, scores, short, slopes, ticks


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (1.87, 7.6), (0, 3_400_000), (-0.2, 0.7), (3.001, 3.002), (5, 5)]
)
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 1 <= len(found) <= 8
    assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in found)
    assert found == sorted(set(found))


def test_buckets_keep_the_mean_and_the_extremes() -> None:
    values = [float(i % 7) for i in range(1000)]
    found = buckets(values, 50)
    assert len(found) == 50
    assert sum(mean for _, mean, _, _ in found) / 50 == pytest.approx(sum(values) / 1000)
    assert min(low for _, _, low, _ in found) == 0
    assert max(high for *_, high in found) == 6
    assert all(0 < position < 1 for position, *_ in found)


@pytest.mark.parametrize(
    "values",
    [[], [2.0], [2.0, 2.0], [3.0, math.nan, 1.0], [math.nan, math.inf], [1e-9, 1e9]],
    ids=["none", "one", "flat", "a NaN", "only NaN", "wide"],
)
def test_losses_of_any_kind_are_drawn_without_nan(values: list[float]) -> None:
    curves = [Curve("a", values, [1e-3] * len(values), 1000), Curve("b", [2.0, 1.0], [0.0, 0.0], 500)]
    for drawn in (losses("t", curves, "tokens", 400), losses("t", curves[:1], "tokens", 1000)):
        ElementTree.fromstring(drawn)
        assert "nan" not in drawn
        assert "inf" not in drawn.replace("finite", "")


def test_higher_scores_and_lower_losses_are_where_they_belong() -> None:
    bars = ElementTree.fromstring(scores("t", {"mc": [0.25, 1.0]}, ["a", "b"], 0.25, 400)).findall("rect")
    heights = [float(bar.get("height")) for bar in bars]
    assert heights[1] == pytest.approx(4 * heights[0])
    chance = ElementTree.fromstring(scores("t", {"mc": [0.25]}, ["a"], 0.25, 400)).find(
        "line[@class='chance']"
    )
    assert float(chance.get("y1")) == pytest.approx(float(bars[0].get("y")), abs=0.1)

    dots = ElementTree.fromstring(slopes("t", {"x": [2.0, 1.0]}, ["a", "b"], 400)).findall("circle")
    assert float(dots[0].get("cy")) < float(dots[1].get("cy"))


def test_labels_of_close_lines_do_not_overlap() -> None:
    series = {name: [1.0, 0.5 + 0.001 * i] for i, name in enumerate("abcde")}
    root = ElementTree.fromstring(slopes("t", series, ["p", "q"], 400))
    heights = sorted(float(label.get("y")) for label in root.findall("text") if label.text in series)
    assert all(below - above >= 15.9 for above, below in itertools.pairwise(heights))


def test_numbers_are_short() -> None:
    assert [short(value) for value in (1_400_000, 2048, 128, 0.0031, 2e12, 0)] == [
        "1.4M",
        "2.05K",
        "128",
        "0.0031",
        "2T",
        "0",
    ]
    assert charts.silhouette([1.0]) == ""
