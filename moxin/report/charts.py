"""Inline SVG charts, drawn by hand: no script, colours by class from the page's style sheet, words as escaped text.

Every chart is drawn twice, wide and narrow, and the style sheet shows one: text keeps its size on a phone.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDE, NARROW = 1000, 400
"""Widths in user units, which are CSS pixels at the size shown most."""


@dataclass(frozen=True)
class Curve:
    """One training run: the loss and learning rate of its steps, and how many units (tokens, pairs) it took in all."""

    name: str
    losses: Sequence[float]
    rates: Sequence[float]
    units: float


def both(draw: Callable[[int], Markup]) -> Markup:
    """The chart at both widths; assistive technology meets only the one that is displayed."""
    return Markup('<div class="wide">{}</div><div class="narrow">{}</div>').format(draw(WIDE), draw(NARROW))


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers (1, 2, 5 × 10ⁿ) within `low` to `high`, at least one."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(step * i, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)] or [low]


def buckets(values: Sequence[float], count: int) -> list[tuple[float, float, float, float]]:
    """Position (0 to 1), mean, lowest and highest of `count` equal stretches of the finite values."""
    finite = [(i, value) for i, value in enumerate(values) if math.isfinite(value)]
    size = max(1, math.ceil(len(finite) / count))
    found = []
    for start in range(0, len(finite), size):
        part = [value for _, value in finite[start : start + size]]
        middle = sum(i for i, _ in finite[start : start + size]) / len(part)
        found.append(((middle + 0.5) / len(values), sum(part) / len(part), min(part), max(part)))
    return found


def short(value: float) -> str:
    """`1_400_000` as `1.4M`, `2048` as `2K`, `0.0031` as `0.0031`."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def svg(width: float, height: float, title: str, body: Iterable[Markup]) -> Markup:
    return Markup(
        '<svg viewBox="0 0 {} {}" width="{}" height="{}" role="img" aria-label="{}"><title>{}</title>{}</svg>'
    ).format(f"{width:g}", f"{height:g}", f"{width:g}", f"{height:g}", title, title, Markup("").join(body))


def text(x: float, y: float, words: str, classes: str = "", anchor: str = "start") -> Markup:
    return Markup('<text x="{}" y="{}" class="{}" text-anchor="{}">{}</text>').format(
        f"{x:.1f}", f"{y:.1f}", classes, anchor, words
    )


def line(x1: float, y1: float, x2: float, y2: float, classes: str) -> Markup:
    return Markup('<line x1="{}" y1="{}" x2="{}" y2="{}" class="{}"/>').format(
        f"{x1:.1f}", f"{y1:.1f}", f"{x2:.1f}", f"{y2:.1f}", classes
    )


def rect(x: float, y: float, width: float, height: float, classes: str, title: str = "") -> Markup:
    inner = Markup("<title>{}</title>").format(title) if title else Markup("")
    return Markup('<rect x="{}" y="{}" width="{}" height="{}" rx="2" class="{}">{}</rect>').format(
        f"{x:.1f}", f"{y:.1f}", f"{max(width, 0):.1f}", f"{max(height, 0):.1f}", classes, inner
    )


def dot(x: float, y: float, classes: str, title: str) -> Markup:
    return Markup('<circle cx="{}" cy="{}" r="4" class="{}"><title>{}</title></circle>').format(
        f"{x:.1f}", f"{y:.1f}", classes, title
    )


def path(points: Sequence[tuple[float, float]], classes: str, closed: bool = False) -> Markup:
    drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return Markup('<{} points="{}" class="{}"/>').format("polygon" if closed else "polyline", drawn, classes)


def losses(title: str, curves: Sequence[Curve], unit: str, width: int, height: int = 340) -> Markup:
    """Loss over units with the learning rate below; where there are several curves they follow each other."""
    left, right, top, bottom, rate_height = 46, 16, 30, 34, 46
    floor = height - bottom - rate_height - 22
    drawn = [buckets(curve.losses, max(40, width // 3 // len(curves))) for curve in curves]
    lows = [low for points in drawn for _, _, low, _ in points]
    highs = [high for points in drawn for _, _, _, high in points]
    if not lows:
        return svg(width, 60, title, [text(left, 36, f"{title}: no finite loss was recorded", "note")])
    y_low, y_high = min(lows), max(highs)
    margin = (y_high - y_low) * 0.06 or 0.1
    y_low, y_high = y_low - margin, y_high + margin
    total = sum(curve.units for curve in curves) or 1.0
    peak = max((rate for curve in curves for rate in curve.rates), default=0.0) or 1.0

    def x_of(units: float) -> float:
        return left + (width - left - right) * units / total

    def y_of(loss: float) -> float:
        return floor - (floor - top) * (loss - y_low) / (y_high - y_low)

    body = []
    for tick in ticks(y_low, y_high, 7):
        body += [
            line(left, y_of(tick), width - right, y_of(tick), "grid"),
            text(left - 8, y_of(tick) + 4, f"{tick:g}", "tick", "end"),
        ]
    for tick in ticks(0, total, 7 if width > NARROW else 4):
        body.append(text(x_of(tick), height - bottom + 18, short(tick), "tick", "middle"))
    body.append(text(width - right, height - 2, unit, "tick", "end"))
    base = height - bottom
    body.append(line(left, base, width - right, base, "axis"))
    body.append(text(left - 8, base - rate_height + 10, "lr", "tick", "end"))
    body.append(text(left - 8, base, "0", "tick", "end"))
    start = 0.0
    for number, (curve, points) in enumerate(zip(curves, drawn, strict=True)):
        begin, end = x_of(start), x_of(start + curve.units)
        if number:
            body.append(line(begin, 8, begin, base, "boundary"))
        if len(curves) > 1:
            body.append(text((begin + end) / 2, 18, curve.name, "label", "middle"))
        xs = [begin + (end - begin) * position for position, _, _, _ in points]
        lower = [(x, y_of(low)) for x, (_, _, low, _) in zip(xs, points, strict=True)]
        upper = [(x, y_of(high)) for x, (_, _, _, high) in zip(xs, points, strict=True)]
        body.append(path(lower + upper[::-1], "band", closed=True))
        body.append(path([(x, y_of(mean)) for x, (_, mean, _, _) in zip(xs, points, strict=True)], "curve"))
        rates = buckets(curve.rates, max(40, width // 3 // len(curves)))
        slope = [
            (begin + (end - begin) * position, base - rate_height * mean / peak)
            for position, mean, _, _ in rates
        ]
        if slope:
            body.append(path([(slope[0][0], base), *slope, (slope[-1][0], base)], "rate", closed=True))
        if points:
            words = f"{curve.name}: loss {points[0][1]:.3f} to {points[-1][1]:.3f} over {short(curve.units)} {unit}"
            body.append(dot(xs[-1], y_of(points[-1][1]), "end", words))
            above = min(y for x, y in upper if x >= xs[-1] - 44)  # clear of the curve's last peaks
            body.append(text(xs[-1] - 4, above - 8, f"{points[-1][1]:.2f}", "value", "end"))
        start += curve.units
    body.append(text(width - right, base - rate_height - 6, f"peak {peak:.2g}", "tick", "end"))
    return svg(width, height, title, body)


def scores(
    title: str, series: Mapping[str, Sequence[float]], names: Sequence[str], chance: float, width: int
) -> Markup:
    """Groups of bars, one group per name and one bar per series, on a scale of 0 to 1, with the chance line."""
    left, right, top, bottom, height = 46, 56, 24, 34, 300
    floor, group = height - bottom, (width - left - right) / len(names)
    bar = min(46.0, group * 0.8 / len(series))

    def y_of(score: float) -> float:
        return floor - (floor - top) * score

    body = []
    for tick in (0, 0.25, 0.5, 0.75, 1):
        body += [
            line(left, y_of(tick), width - right, y_of(tick), "axis" if tick == 0 else "grid"),
            text(left - 8, y_of(tick) + 4, f"{tick:.0%}", "tick", "end"),
        ]
    for number, name in enumerate(names):
        middle = left + group * (number + 0.5)
        body.append(text(middle, floor + 22, name, "label", "middle"))
        for place, (label, values) in enumerate(series.items()):
            x, value = middle + bar * (place - len(series) / 2), values[number]
            body.append(
                rect(
                    x + 2,
                    y_of(value),
                    bar - 4,
                    floor - y_of(value),
                    f"c{place + 1}",
                    f"{name}, {label}: {value:.1%}",
                )
            )
            body.append(text(x + bar / 2, y_of(value) - 6, f"{100 * value:.0f}", "value", "middle"))
    body.append(line(left, y_of(chance), width - right, y_of(chance), "chance"))
    body.append(text(width - right + 6, y_of(chance) + 4, "chance", "tick"))
    return svg(width, height, title, body)


def slopes(
    title: str, series: Mapping[str, Sequence[float]], names: Sequence[str], width: int, height: int = 300
) -> Markup:
    """One line per series over the names, labelled at its end; lower is better."""
    left, top, bottom = 46, 16, 34
    right = 14 + 8 * max(map(len, series))
    values = [value for line_ in series.values() for value in line_]
    low, high = min(values), max(values)
    margin = (high - low) * 0.1 or 0.1
    low, high = low - margin, high + margin
    floor = height - bottom

    def x_of(number: int) -> float:
        return left + 12 + (width - left - right - 24) * (number / (len(names) - 1) if len(names) > 1 else 1)

    def y_of(value: float) -> float:
        return floor - (floor - top) * (value - low) / (high - low)

    body = []
    for tick in ticks(low, high):
        body += [
            line(left, y_of(tick), width - right, y_of(tick), "grid"),
            text(left - 8, y_of(tick) + 4, f"{tick:g}", "tick", "end"),
        ]
    for number, name in enumerate(names):
        body.append(text(x_of(number), floor + 22, name, "label", "middle"))
    taken = floor + 100.0
    ordered = sorted(enumerate(series.items()), key=lambda item: item[1][1][-1])
    for place, (label, line_) in ordered:
        body.append(path([(x_of(i), y_of(value)) for i, value in enumerate(line_)], f"s{place + 1}"))
        body += [
            dot(x_of(i), y_of(value), f"c{place + 1}", f"{label}, {names[i]}: {value:.3f}")
            for i, value in enumerate(line_)
        ]
        taken = min(y_of(line_[-1]) + 4, taken - 16)  # labels never overlap: each stays above the one before
        body.append(text(width - right + 2, taken, label, f"value t{place + 1}"))
    return svg(width, height, title, body)


def silhouette(curve: Sequence[float]) -> Markup:
    """The outline of a falling loss, for decoration: stretched to its box, unseen by assistive technology."""
    points = buckets(curve, 120)
    if len(points) < 2:
        return Markup("")
    low, high = min(mean for _, mean, _, _ in points), max(mean for _, mean, _, _ in points)
    outline = [(1000 * x, 10 + 80 * (high - mean) / ((high - low) or 1)) for x, mean, _, _ in points]
    return Markup(
        '<svg viewBox="0 0 1000 100" preserveAspectRatio="none" aria-hidden="true">{}</svg>'
    ).format(
        path([(0, 100), (0, outline[0][1]), *outline, (1000, outline[-1][1]), (1000, 100)], "", closed=True)
    )
