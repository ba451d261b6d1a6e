"""`report.html` of curation: what went, why, and what barely stayed, to be judged by eye. Nothing is loaded, nothing runs.

The look and the parts of charts are the run report's (`moxin.report`). Jinja escapes every text that comes from documents;
what would turn the direction of text around, or be unseen, is shown by its number.
"""

import difflib
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from moxin import storage
from moxin.curate.inspect import visible
from moxin.report import charts

FOLDER = Path(__file__).parent
STYLE = Path(charts.__file__).with_name("page.css")
COLOURED = 5
"""Steps with a colour of their own in the bars of sources: those that took most."""
LISTS = (
    "removed",
    "rules",
    "examples",
    "duplicates",
    "near",
    "benchmarks",
    "contamination",
    "quarantine",
    "plan",
)
Rows = Sequence[Mapping[str, Any]]


def write(result: Mapping[str, Any], url: str) -> None:
    """Writes the page of the content of a `report.json`; the same content gives the same bytes."""
    storage.write_text(url, page(result))


def page(result: Mapping[str, Any]) -> str:
    """The page as text."""
    result = {**{name: [] for name in LISTS}, "scrubbed": {}, "quarantined": 0, **result}
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    environment.filters |= {"short": charts.short, "size": size, "share": share, "number": number}
    total = {
        name: sum(source[name] for source in result["sources"].values())
        for name in ("documents_in", "documents_out", "bytes_in", "bytes_out")
    }
    cards = rules(result)
    steps = removed(result["removed"], total["documents_in"], cards)
    return environment.get_template("page.jinja").render(
        r=result,
        css=Markup(STYLE.read_text() + (FOLDER / "page.css").read_text()),
        total=total,
        tiles=tiles(result, total),
        outline=charts.silhouette([total["documents_in"], *(step["left"] for step in steps for _ in (0, 1))]),
        steps=steps,
        legend=legend(result["removed"]),
        sources=sources(result),
        profiles=profiles(cards, [step["step"] for step in steps]),
        pairs=pairs(result["duplicates"]),
        benchmarks=benchmarks(result),
    )


def size(n_bytes: float) -> str:
    """`1_536_000` as `1.5 MB`."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if n_bytes < 1000 or unit == "TB":
            break
        n_bytes /= 1000
    return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:,.1f} {unit}"


def share(part: float, whole: float) -> str:
    """`12 %`, `1.2 %`, `0.012 %`: never 0 for something, never 100 for less than all."""
    if not part or not whole:
        return "0 %"
    percent = 100 * part / whole
    if part != whole and percent >= 99.5:
        return f"{min(percent, 99.99):.2f} %"
    return (
        f"{percent:.0f} %"
        if percent >= 10
        else f"{percent:.1f} %"
        if percent >= 0.995
        else f"{percent:.2g} %"
    )


def number(value: Any) -> str:
    """`100000.0` as `100,000`, `0.018112` as `0.01811`; text as it is."""
    if not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,.0f}" if value == int(value) and abs(value) < 1e15 else f"{value:,.4g}"


def tiles(result: Mapping[str, Any], total: Mapping[str, int]) -> list[dict[str, Any]]:
    """The headline numbers: value, what it is, a note, and a share (0 to 1) where the number is one."""
    whole = total["documents_in"]
    found: list[dict[str, Any]] = []
    for name, label in (("documents", "of the documents stay"), ("bytes", "of the text stays")):
        out, came = total[f"{name}_out"], total[f"{name}_in"]
        said = [f"{value:,}" if name == "documents" else size(value) for value in (out, came)]
        note = f"{said[0]} of {said[1]}"
        found.append(
            {"value": share(out, came), "label": label, "note": note, "share": out / came if came else 0}
        )
    reasons: Counter[str] = Counter()
    for row in result["removed"]:
        reasons[row["reason"]] += row["documents"]
    if reasons:
        reason, n = max(reasons.items(), key=lambda item: (item[1], item[0]))
        note = f"{n:,} documents; {len(reasons)} reasons in all"
        found.append({"value": share(n, whole), "label": f"went for {words(reason)}", "note": note})
    if again := sum(row["documents"] for row in result["removed"] if "dedup" in row["step"]):
        note = f"{again:,} documents, exact and near"
        found.append({"value": share(again, whole), "label": "were duplicates", "note": note})
    if forbidden := [row for row in result["benchmarks"] if not row["allowed"]]:
        n, of = (sum(row[name] for row in forbidden) for name in ("found", "items"))
        label = "evaluation items found" if n != 1 else "evaluation item found"
        found.append({"value": f"{n:,}", "label": label, "note": f"of {of:,} that no document may hold"})
    if result["quarantined"]:
        note = "in quarantine.jsonl, with their errors"
        found.append({"value": f"{result['quarantined']:,}", "label": "could not be read", "note": note})
    return found


def words(name: str) -> str:
    return name.replace("_", " ")


def legend(rows: Rows) -> dict[str, str]:
    """The steps in their order, with the class of their colour."""
    taken: Counter[str] = Counter()
    for row in rows:
        taken[row["step"]] += row["documents"]
    largest = sorted(taken, key=lambda step: -taken[step])[:COLOURED]
    coloured = [step for step in taken if step in largest]
    return {step: f"c{coloured.index(step) + 2}" if step in coloured else "rest" for step in taken}


def sources(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row per source, with the segments of its bar: what stays, and what each step took."""
    colours = legend(result["removed"])
    found = []
    for name, source in result["sources"].items():
        came = source["documents_in"] or 1
        taken: Counter[str] = Counter()
        for row in result["removed"]:
            if row["source"] == name:
                taken[row["step"]] += row["documents"]
        parts = [
            {
                "class": "c1",
                "share": source["documents_out"] / came,
                "title": _part("kept", source["documents_out"], came),
            }
        ]
        parts += [
            {"class": colours[step], "share": n / came, "title": _part(step, n, came)}
            for step, n in taken.items()
            if n
        ]
        found.append({"name": name, "parts": parts, **source})
    return found


def _part(name: str, n: int, whole: int) -> str:
    return f"{name}: {n:,} documents, {share(n, whole)}"


def removed(rows: Rows, whole: int, cards: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The steps in their order: what was left after each, and its reasons, the commonest first."""
    anchors: dict[tuple[str, str], str] = {}
    for card in cards:
        anchors.setdefault((card["step"], card["reason"]), card["anchor"])
    many = len({row["source"] for row in rows}) > 1
    left, found = whole, []
    for step in dict.fromkeys(row["step"] for row in rows):
        reasons: dict[str, dict[str, Any]] = {}
        for row in rows:
            if row["step"] != step:
                continue
            one = reasons.setdefault(row["reason"], {"documents": 0, "bytes": 0, "sources": []})
            one["documents"] += row["documents"]
            one["bytes"] += row["bytes"]
            one["sources"] += [(row["source"], row["documents"])] if many and row["documents"] else []
        n = sum(one["documents"] for one in reasons.values())
        left -= n
        ordered = sorted(reasons.items(), key=lambda item: -item[1]["documents"])
        found.append(
            {
                "step": step,
                "documents": n,
                "bytes": sum(one["bytes"] for one in reasons.values()),
                "left": left,
                "reasons": [
                    {"reason": name, "anchor": anchors.get((step, name)), **one} for name, one in ordered
                ],
            }
        )
    return found


def rules(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A card per rule that saw documents, and per other reason that there are examples of; profile by profile."""
    examples = {(row["profile"], row["step"], row["reason"]): row for row in result["examples"]}
    cards: list[dict[str, Any]] = []
    for rule in result["rules"]:
        key = (rule["profile"], rule["step"], rule["reason"])
        if seen := sum(rule["counts"]):
            cards.append(
                {**rule, "seen": seen, "chart": histogram(rule), "examples": examples.pop(key, None)}
            )
    for (profile, step, reason), row in examples.items():
        n = sum(
            gone["documents"]
            for gone in result["removed"]
            if (gone["step"], gone["reason"]) == (step, reason)
            and result["sources"].get(gone["source"], {}).get("profile") == profile
        )
        plain = {"profile": profile, "step": step, "reason": reason, "seen": 0, "origin": "", "chart": ""}
        cards.append({**plain, "removed": n, "examples": row})
    place = {name: k for k, name in enumerate(dict.fromkeys(card["profile"] for card in cards))}
    cards.sort(key=lambda card: place[card["profile"]])
    for k, card in enumerate(cards):
        card["anchor"] = f"rule-{k + 1}"
        card["idle"] = bool(card["seen"]) and not card["removed"]
        if card["examples"] and not (card["examples"]["removed"] or card["examples"]["kept"]):
            card["examples"] = None
    return cards


def profiles(cards: Rows, order: Sequence[str]) -> list[dict[str, Any]]:
    """The cards by profile and step, in the order of the funnel's steps; those of rules that removed nothing apart."""
    found = []
    for name in dict.fromkeys(card["profile"] for card in cards):
        own = [card for card in cards if card["profile"] == name]
        steps: dict[str, list[Mapping[str, Any]]] = {}
        for card in own:
            if not card["idle"]:
                steps.setdefault(card["step"], []).append(card)
        idle = [card for card in own if card["idle"]]
        ordered = sorted(
            steps.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order)
        )
        found.append({"name": name, "steps": ordered, "idle": idle})
    return found


def histogram(rule: Mapping[str, Any]) -> Markup:
    """Documents by their signal, both sides of the threshold; counts on a logarithmic axis, so that few are seen by many."""
    edges, counts, threshold, op = rule["edges"], rule["counts"], rule["threshold"], rule["op"]
    width, height, left, right, top, bottom = 460, 176, 40, 16, 28, 24
    floor, scale = height - bottom, _scale(edges)
    units, gap = [scale(edge) for edge in edges], 0.4
    # Bin k lies between the edges k - 1 and k; the outer ones, open to one side, stand a little apart.
    spans = [(units[0] - 1 - gap, units[0] - gap)]
    spans += list(pairwise(units))
    spans.append((units[-1] + gap, units[-1] + 1 + gap))
    cut = scale(threshold) if threshold >= edges[0] else units[0] - gap / 2
    cut = min(cut, units[-1] + (gap / 2 if threshold <= edges[-1] else 1 + gap))
    if threshold == edges[-1]:
        cut = units[-1] + gap / 2
    used = [k for k, count in enumerate(counts) if count]
    at = next((k for k, (_, end) in enumerate(spans) if cut <= end), len(spans) - 1)
    # A bin of margin on either side; the outer ones only where there is something in them.
    inner = len(edges) - 1
    first = min(used[0], max(min(used[0], at) - 1, 1))
    last = max(used[-1], min(max(used[-1], at) + 1, inner))
    low, high, most = spans[first][0], spans[last][1], max(counts)
    cut = min(max(cut, low), high)

    def x_of(unit: float) -> float:
        return left + (width - left - right) * (unit - low) / (high - low)

    def y_of(count: float) -> float:
        return floor - (floor - top) * (math.log10(count) + 0.4) / (math.log10(max(most, 10)) + 0.4)

    powers = range(math.floor(math.log10(max(most, 10))) + 1)
    body = []
    for power in powers[:: max(1, math.ceil(len(powers) / 4))]:
        body += [
            charts.line(left, y_of(10**power), width - right, y_of(10**power), "grid"),
            charts.text(left - 6, y_of(10**power) + 4, charts.short(10**power), "tick", "end"),
        ]
    for k in range(first, last + 1):
        if counts[k]:
            begin, end = spans[k]
            title = f"{_between(edges, k)}: {counts[k]:,}"
            # Of "> 0" the bin that begins with 0 holds what is 0, and stays.
            split = end if op == ">" and threshold == 0 and begin <= cut < end else min(max(cut, begin), end)
            for a, b, below in ((begin, split, True), (split, end, False)):
                if b > a:
                    gone = below == (op == "<")
                    y = y_of(counts[k])
                    said = f"{title}, {'removed' if gone else 'stays'}"
                    colour = "c2" if gone else "c1"
                    body.append(
                        charts.rect(x_of(a) + 0.6, y, x_of(b) - x_of(a) - 1.2, floor - y, colour, said)
                    )
    body.append(charts.line(left, floor, width - right, floor, "axis"))
    body += _ticks(edges, scale, first, last, spans, x_of, floor + 17)
    x = x_of(cut)
    body.append(charts.line(x, top - 8, x, floor, "cut"))
    side = ("left", f"← removed below {number(threshold)}"), ("right", f"removed above {number(threshold)} →")
    _, said = side[op == ">"]
    if x < width * 0.4:
        body.append(charts.text(max(x - 2, 2), top - 13, said, "gone", "start"))
    elif x > width * 0.6:
        body.append(charts.text(min(x + 2, width - 2), top - 13, said, "gone", "end"))
    else:
        body.append(charts.text(x, top - 13, said, "gone", "middle"))
    return charts.svg(width, height, visible(f"{rule['signal']} of {sum(counts):,} documents"), body)


def _is_factor(edges: Sequence[float]) -> bool:
    """Whether the edges are spaced by a factor."""
    if len(edges) < 3 or edges[0] <= 0:
        return False
    factors = [b / a for a, b in pairwise(edges)]
    steps = [b - a for a, b in pairwise(edges)]
    return max(factors) / min(factors) < max(steps) / min(steps)


def _scale(edges: Sequence[float]) -> Any:
    """The axis in bins: logarithmic where the edges are spaced by a factor."""
    n = max(len(edges) - 1, 1)
    if _is_factor(edges):
        wide = math.log(edges[-1] / edges[0]) / n
        return lambda value: math.log(value / edges[0]) / wide
    wide = (edges[-1] - edges[0]) / n or 1.0
    return lambda value: (value - edges[0]) / wide


def _between(edges: Sequence[float], k: int) -> str:
    if k == 0:
        return f"below {number(edges[0])}"
    return (
        f"{number(edges[k - 1])} to {number(edges[k])}" if k < len(edges) else f"{number(edges[-1])} and more"
    )


def _ticks(
    edges: Sequence[float],
    scale: Any,
    first: int,
    last: int,
    spans: Sequence[tuple[float, float]],
    x_of: Any,
    y: float,
) -> list[Markup]:
    """Labels of the axis; those of the outer bins go before others."""
    taken: list[tuple[float, str]] = []
    if first == 0:
        taken.append((x_of(sum(spans[0]) / 2), f"<{number(edges[0])}"))
    if last == len(edges):
        taken.append((x_of(sum(spans[-1]) / 2), f"≥{charts.short(edges[-1])}"))
    low, high = edges[max(first - 1, 0)], edges[min(last, len(edges) - 1)]
    if _is_factor(edges):
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        values = [float(f"1e{power}") for power in powers]
        if sum(low <= value <= high for value in values) < 3:
            values += [factor * 10.0**power for power in powers for factor in (2, 5)]
    else:
        values = charts.ticks(low, high, 6)
    for value in values:
        if low <= value <= high and all(abs(x_of(scale(value)) - x) > 38 for x, _ in taken):
            taken.append((x_of(scale(value)), charts.short(value)))
    return [charts.text(x, y, said, "tick", "middle") for x, said in taken]


def pairs(rows: Rows) -> list[tuple[str, list[dict[str, Any]]]]:
    """Duplicates by kind, those that are least alike first, with their differences marked."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        ours, theirs = difference(row["text"], row["of_text"])
        one = {"source": "", "similarity": None, **row, "ours": ours, "theirs": theirs}
        found.setdefault(row["kind"], []).append(one | {"same": row["text"] == row["of_text"]})
    for some in found.values():
        some.sort(key=lambda row: (row["similarity"] is None, row["similarity"] or 0.0, row["id"]))
    return list(found.items())


def difference(ours: str, theirs: str) -> tuple[Markup, Markup]:
    """Both texts as HTML, with the words that only one has marked; characters where there are hardly any words."""
    split = (
        r"\s*\S+|\s+$"
        if min(ours.count(" "), theirs.count(" ")) > min(len(ours), len(theirs)) // 40
        else r"(?s)."
    )
    a, b = re.findall(split, ours), re.findall(split, theirs)
    left: list[Markup] = []
    right: list[Markup] = []
    for what, i, j, k, n in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        for tokens, side, tag in ((a[i:j], left, "del"), (b[k:n], right, "ins")):
            if tokens:
                text = visible("".join(tokens))
                words_ = text.lstrip() if text.strip() else text
                if what == "equal":
                    side.append(escape(text))
                else:
                    side.append(Markup("{}<{}>{}</{}>").format(text.removesuffix(words_), tag, words_, tag))
    return Markup("").join(left), Markup("").join(right)


def benchmarks(result: Mapping[str, Any]) -> dict[str, list[str]]:
    """What there is to say about evaluation sets, in words."""
    gone = any(row["step"] == "decontamination" for row in result["removed"])
    held, bad = [], []
    for row in result["benchmarks"]:
        name = f"{row['benchmark']}/{row['split']}"
        n, of, where = row["found"], row["items"], row["documents"]
        found = f"{n:,} of {of:,} item{'s' * (of != 1)} in {where:,} document{'s' * (where != 1)}"
        if row["allowed"] and n:
            held.append(f"phase data deliberately holds {name}: {found}")
        elif n:
            done = "the documents were removed" if gone else "it was only reported, nothing was removed"
            bad.append(f"{name} must not be in the data and was found: {found}; {done}")
    return {"held": held, "bad": bad}
