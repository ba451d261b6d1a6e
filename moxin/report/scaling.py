"""The page of `moxin plan --simulate --out`: days and shares of the time over the number of GPUs. No script."""

import math
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from moxin.plan.cluster import Offer
from moxin.plan.simulate import RUNS, Point, Reliability
from moxin.report import charts

FOLDER = Path(__file__).parent
DAY = 86_400.0
PARTS = ("products and kernels", "waiting for the network", "checkpoints", "lost work and restarts")


def page(name: str, offer: Offer, points: Sequence[Point], reliability: Reliability) -> str:
    """The page as text; `points` by growing number of GPUs, at least one."""
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("scaling.jinja").render(
        name=name,
        offer=offer,
        points=points,
        reliability=reliability,
        runs=RUNS,
        css=Markup((FOLDER / "page.css").read_text()),
        tiles=_tiles(points),
        grown=any(point.batch_factor > 1 for point in points),
        days=charts.both(lambda width: days(points, width)),
        shares=charts.both(lambda width: shares(points, width)),
        parts=PARTS,
        rows=[_row(point) for point in points],
    )


def _tiles(points: Sequence[Point]) -> list[dict[str, str]]:
    own = [point for point in points if point.batch_factor == 1] or list(points)
    own = [point for point in own if math.isfinite(point.expected)]
    if not own:
        return []
    fastest = min(own, key=lambda each: each.expected)
    cheapest = min(own, key=lambda each: each.dollars or each.cost.gpu_hours)
    value, unit = (
        (f"${charts.short(cheapest.dollars)}", "")
        if cheapest.dollars
        else (charts.short(cheapest.cost.gpu_hours / cheapest.goodput), "GPU hours")
    )
    note = f"on {cheapest.n_gpus:,} GPUs in {cheapest.expected / DAY:,.0f} days"
    cost = f"${fastest.dollars:,.0f}" if fastest.dollars else f"{fastest.cost.gpu_hours:,.0f} GPU hours"
    return [
        {"value": value, "unit": unit, "label": "cheapest", "note": note},
        {
            "value": f"{fastest.expected / DAY:,.1f}",
            "unit": "days",
            "label": "fastest with the recipe's batch",
            "note": f"on {fastest.n_gpus:,} GPUs for {cost}",
        },
        {
            "value": f"{points[-1].goodput:.0%}",
            "unit": "",
            "label": f"of the time is kept at {points[-1].n_gpus:,} GPUs",
            "note": f"a failure every {points[-1].between_failures / 3600:,.1f} hours, a checkpoint every "
            f"{points[-1].interval / 60:,.0f} minutes",
        },
    ]


def _row(point: Point) -> list[str]:
    first = point.cost.phases[0]
    ends = math.isfinite(point.expected)
    return [
        f"{point.n_gpus:,}",
        f"×{point.batch_factor}" if point.batch_factor > 1 else "",
        f"{point.cost.scaling.zero_stage}, {point.cost.scaling.recompute}",
        f"{first.tokens_per_second:,.0f}",
        f"{first.mfu:.1%}",
        f"{point.expected / DAY:,.1f}" if ends else "never",
        f"{point.low / DAY:,.1f} to {point.high / DAY:,.1f}" if math.isfinite(point.high) else "",
        f"{point.between_failures / 3600:,.1f} h",
        f"{point.interval / 60:,.0f} min, {point.steps_between_checkpoints:,} steps",
        f"{point.goodput:.1%}",
        f"${point.dollars:,.0f}" if point.dollars and ends else "",
    ]


def split(point: Point) -> tuple[float, float, float, float]:
    """Shares of the wall-clock time, in the order of `PARTS`; they add up to 1."""
    kept = point.goodput
    writing = kept * point.checkpoint_seconds / point.interval
    lost = max(0.0, 1 - kept - writing)
    return kept * point.computing, kept * (1 - point.computing), 1 - kept - lost, lost


def days(points: Sequence[Point], width: int, height: int = 380) -> Markup:
    """Days over GPUs, both logarithmic, with the band of the simulated runs and the line of perfect scaling."""
    left, right, top, bottom = 58, 26, 22, 40
    drawn = [point for point in points if math.isfinite(point.expected)]
    title = "Days over the number of GPUs"
    if not drawn:
        return charts.svg(width, 60, title, [charts.text(left, 36, "no run would ever end", "note")])
    ideal = [drawn[0].expected * drawn[0].n_gpus / point.n_gpus for point in drawn]
    finite = [value for point in drawn for value in (point.low, point.high) if math.isfinite(value)]
    seconds = [*ideal, *(point.expected for point in drawn), *finite]
    y_low, y_high = math.log10(min(seconds) / DAY * 0.85), math.log10(max(seconds) / DAY * 1.18)
    x_low, x_high = math.log2(drawn[0].n_gpus), math.log2(drawn[-1].n_gpus)

    def x_of(n_gpus: int) -> float:
        share = (math.log2(n_gpus) - x_low) / ((x_high - x_low) or 1)
        return left + 8 + (width - left - right - 16) * share

    def y_of(value: float) -> float:
        span = height - bottom - top
        return height - bottom - span * (math.log10(value / DAY) - y_low) / (y_high - y_low)

    body = []
    for tick in _log_ticks(y_low, y_high):
        body += [
            charts.line(left, y_of(tick * DAY), width - right, y_of(tick * DAY), "grid"),
            charts.text(left - 8, y_of(tick * DAY) + 4, f"{tick:g}", "tick", "end"),
        ]
    every = 1 if width > charts.NARROW else 2
    for number, point in enumerate(drawn):
        if number % every == 0:
            x = x_of(point.n_gpus)
            body.append(charts.text(x, height - bottom + 20, f"{point.n_gpus:,}", "tick", "middle"))
    body.append(charts.line(left, height - bottom, width - right, height - bottom, "axis"))
    body.append(charts.text(left - 8, 12, "days", "tick", "end"))
    body.append(charts.text(width - right, height - 4, "GPUs", "tick", "end"))
    banded = [point for point in drawn if math.isfinite(point.high)]
    lower = [(x_of(point.n_gpus), y_of(point.low)) for point in banded]
    upper = [(x_of(point.n_gpus), y_of(point.high)) for point in banded]
    body.append(charts.path(lower + upper[::-1], "band", closed=True))
    line = [(x_of(point.n_gpus), y_of(value)) for point, value in zip(drawn, ideal, strict=True)]
    body.append(charts.path(line, "curve boundary"))
    body.append(charts.path([(x_of(point.n_gpus), y_of(point.expected)) for point in drawn], "curve"))
    for number, point in enumerate(drawn):
        x, y = x_of(point.n_gpus), y_of(point.expected)
        words = f"{point.n_gpus:,} GPUs: {point.expected / DAY:,.1f} days, {point.goodput:.1%} kept"
        body.append(charts.dot(x, y, "end hollow" if point.batch_factor > 1 else "end", words))
        if number % every == 0:
            anchor = "start" if number == 0 else "end" if number == len(drawn) - 1 else "middle"
            body.append(charts.text(x, y - 12, f"{point.expected / DAY:,.3g}", "value halo", anchor))
    return charts.svg(width, height, title, body)


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5 times powers of ten within `low` to `high`, which are logarithms."""
    found = [
        factor * 10.0**power for power in range(math.floor(low), math.ceil(high) + 1) for factor in (1, 2, 5)
    ]
    return [tick for tick in found if low <= math.log10(tick) <= high]


def shares(points: Sequence[Point], width: int, height: int = 260) -> Markup:
    """A bar of shares for every number of GPUs, in the order of `PARTS`."""
    left, right, top, bottom = 46, 16, 16, 40
    floor, group = height - bottom, (width - left - right) / len(points)
    bar = min(64.0, group * 0.72)
    body = []
    for tick in (0, 0.25, 0.5, 0.75, 1):
        y = floor - (floor - top) * tick
        body += [
            charts.line(left, y, width - right, y, "axis" if tick == 0 else "grid"),
            charts.text(left - 8, y + 4, f"{tick:.0%}", "tick", "end"),
        ]
    every = 1 if width > charts.NARROW else 2
    for number, point in enumerate(points):
        x, y = left + group * (number + 0.5) - bar / 2, float(floor)
        for place, share in enumerate(split(point)):
            tall = (floor - top) * share
            y -= tall
            words = f"{point.n_gpus:,} GPUs, {PARTS[place]}: {share:.1%}"
            body.append(charts.rect(x, y, bar, tall, f"c{place + 1}", words))
        if number % every == 0:
            body.append(charts.text(x + bar / 2, floor + 20, f"{point.n_gpus:,}", "tick", "middle"))
    body.append(charts.text(width - right, height - 4, "GPUs", "tick", "end"))
    return charts.svg(width, height, "Shares of the time over the number of GPUs", body)
