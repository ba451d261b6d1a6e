"""What curation tells: the funnel, what was unreadable, what leaked, how the planted dirt fared, and a page to look at."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq

from moxin import console, storage
from moxin.artifact import Artifact, Builder
from moxin.curate import contamination, fuzzy, fuzzy_plan, page, score
from moxin.curate.funnel import Funnel
from moxin.curate.histograms import Histogram, Nearest
from moxin.curate.shards import part
from moxin.curate.work import Work
from moxin.recipe import Recipe

SHOWN = 100
"""Rows of a list on the page; the files have all."""
LAST = ("personal data", "decontamination", "exact dedup", "bloom dedup", "classifier", "near dedup")
"""Steps that come after the rules of all profiles."""


@dataclass(frozen=True)
class Result:
    """What the passes counted, by unit."""

    work: Work
    counts: Sequence[Mapping[str, Any]]
    edited: Sequence[Mapping[str, Any]]
    tallies: Sequence[Mapping[str, Any]]
    near: Sequence[fuzzy.Summary]
    written: Sequence[Mapping[str, Any]]
    funnel: Funnel

    @property
    def steps(self) -> list[str]:
        """Steps at which a document can go, in their order."""
        named = ["url", "language"]
        for profile in self.work.profiles:
            named += [stage.name for stage in profile.stages] + ["code"] * bool(profile.code)
        named += ["length", "bad words", *LAST]
        return list(dict.fromkeys(named))

    def removed(self) -> list[dict[str, Any]]:
        """Documents and bytes by source, step and reason, in the order of the steps."""
        documents: Counter[tuple[int, str, str]] = Counter()
        n_bytes: Counter[tuple[int, str, str]] = Counter()
        for unit, count, tally in zip(self.work.units, self.counts, self.tallies, strict=True):
            for step, reason, n, size in (*count["removed"], *tally["removed"]):
                documents[unit.source, step, reason] += n
                n_bytes[unit.source, step, reason] += size
        order = {step: place for place, step in enumerate(self.steps)}
        keys = sorted(documents, key=lambda key: (order[key[1]], key[0], key[2]))
        names = [source.name for source in self.work.sources]
        return [
            {
                "source": names[key[0]],
                "step": key[1],
                "reason": key[2],
                "documents": documents[key],
                "bytes": n_bytes[key],
            }
            for key in keys
        ]

    def sources(self) -> dict[str, dict[str, Any]]:
        """What came and what stayed, by source."""
        out: dict[str, dict[str, Any]] = {}
        for source, profile in zip(self.work.sources, self.work.profiles, strict=True):
            out[source.name] = {
                "profile": profile.name,
                "documents_in": 0,
                "bytes_in": 0,
                "documents_out": 0,
                "bytes_out": 0,
            }
        for unit, count, tally in zip(self.work.units, self.counts, self.tallies, strict=True):
            total = out[self.work.sources[unit.source].name]
            total["documents_in"] += count["documents"]
            total["bytes_in"] += count["bytes"]
            for n, size in tally["groups"]:
                total["documents_out"] += n
                total["bytes_out"] += size
        return out


def report(result: Result, recipe: Recipe, world: Artifact, builder: Builder) -> None:
    """Writes funnel, quarantine, contamination, planted dirt and the page, sets the counts, and shows a table."""
    quarantine = _quarantine(result)
    storage.write_jsonl(builder.file("quarantine.jsonl"), quarantine)
    n_quarantined = sum(count["quarantined"] for count in result.counts)
    came, removed = result.sources(), result.removed()
    funnel = _funnel(result, removed, n_quarantined)
    storage.write_json(builder.file("funnel.json"), funnel)
    found = _contamination(result, builder)
    planted = _planted(result, recipe, world, builder)
    storage.write_json(builder.file("planted.json"), planted)
    scrubbed = sum((Counter(count["scrubbed"]) for count in result.counts), Counter())
    duplicates = {
        "alike_pairs": sum(summary.alike for summary in result.near),
        "components": sum(summary.components for summary in result.near),
        "largest_component": max((summary.largest_documents for summary in result.near), default=0),
    }
    builder.counts |= {
        "documents_in": funnel[0]["out"],
        "documents_out": funnel[-1]["out"],
        "bytes_in": sum(source["bytes_in"] for source in came.values()),
        "bytes_out": sum(source["bytes_out"] for source in came.values()),
        "cut_bytes": sum(value["cut_bytes"] for value in result.edited),
        "quarantined": n_quarantined,
        "renamed": sum(tally["renamed"] for tally in result.tallies),
        "planted": planted,
        "scrubbed": dict(sorted(scrubbed.items())),
        "sources": {
            name: {"in": source["documents_in"], "out": source["documents_out"]}
            for name, source in came.items()
        },
        "near_duplicates": duplicates,
        "seconds": {name: round(each, 3) for name, each in result.funnel.seconds.items()},
    }
    content = {
        "recipe": recipe.name,
        "sources": came,
        "removed": removed,
        "rules": _rules(result),
        "examples": _examples(result),
        "duplicates": [pair for tally in result.tallies for pair in tally["pairs"]][:SHOWN],
        "near": [_row(row) for summary in result.near for row in fuzzy_plan.found(summary)],
        "scrubbed": dict(sorted(scrubbed.items())),
        "quarantine": quarantine[:SHOWN],
        "quarantined": n_quarantined,
        **found,
    }
    storage.write_json(builder.file("report.json"), content)
    page.write(content, builder.file("report.html"))
    result.funnel.show()
    show(builder.counts)
    if builder.counts["renamed"]:
        console.warn(
            f"{builder.counts['renamed']:,} documents have an id that another has, too; the second x is now called x#2"
        )
    console.say(f"  what went and what barely stayed, to judge by eye: {builder.file('report.html')}")


def _row(row: tuple[str, str, str]) -> dict[str, str]:
    return dict(zip(("quantity", "value", "formula"), row, strict=True))


def _quarantine(result: Result) -> list[dict[str, Any]]:
    numbers = [number for number, count in enumerate(result.counts) if count["quarantined"]]
    urls = [result.work.file(number, "quarantine.jsonl") for number in numbers]
    found = storage.in_threads(storage.read_jsonl, urls)
    names = [result.work.sources[result.work.units[number].source].name for number in numbers]
    return [{"source": name, **row} for name, rows in zip(names, found, strict=True) for row in rows]


def _funnel(result: Result, removed: Sequence[Mapping[str, Any]], n_quarantined: int) -> list[dict[str, Any]]:
    """One entry per step: in, out, and what was removed for which reason."""
    left = sum(count["documents"] for count in result.counts)
    unreadable = {"unreadable": n_quarantined} if n_quarantined else {}
    funnel = [{"step": "read", "in": left + n_quarantined, "out": left, "removed": unreadable}]
    for step in result.steps:
        reasons: Counter[str] = Counter()
        for row in removed:
            if row["step"] == step:
                reasons[row["reason"]] += row["documents"]
        n = sum(reasons.values())
        funnel.append({"step": step, "in": left, "out": left - n, "removed": dict(sorted(reasons.items()))})
        left -= n
    return funnel


def _rules(result: Result) -> list[dict[str, Any]]:
    """The rules that saw documents, with the histograms of their signals."""
    merged: dict[tuple[str, str, str], Histogram] = {}
    for unit, count in zip(result.work.units, result.counts, strict=True):
        name = result.work.profiles[unit.source].name
        for step, reason, value in count["histograms"]:
            histogram = Histogram.from_json(value)
            if (name, step, reason) in merged:
                merged[name, step, reason].merge(histogram)
            else:
                merged[name, step, reason] = histogram
    described = {
        (profile.name, row.stage, row.reason): row
        for profile in result.work.profiles
        for row in profile.describe()
    }
    out = []
    for (name, step, reason), histogram in merged.items():
        row = described[name, step, reason]
        known = {
            "profile": name,
            "step": step,
            "reason": reason,
            "signal": row.signal,
            "unit": row.unit,
            "origin": row.source,
        }
        out.append(known | histogram.to_json())
    return out


def _examples(result: Result) -> list[dict[str, Any]]:
    merged: dict[tuple[str, str, str], Nearest] = {}
    of: dict[tuple[str, str, str], str] = {}
    for unit, count in zip(result.work.units, result.counts, strict=True):
        for step, reason, value in count["examples"]:
            key = (result.work.profiles[unit.source].name, step, reason)
            merged.setdefault(key, Nearest()).merge(Nearest.from_json(value))
            of.setdefault(key, result.work.sources[unit.source].name)

    def rows(examples: Any, source: str) -> list[dict[str, Any]]:
        return [
            {"id": id_, "source": source, "value": rank, "detail": detail, "text": text}
            for rank, id_, detail, text in examples
        ]

    return [
        {
            "profile": key[0],
            "step": key[1],
            "reason": key[2],
            "removed": rows(found.gone, of[key]),
            "kept": rows(found.stayed, of[key]),
        }
        for key, found in merged.items()
        if found.gone
    ]


def _contamination(result: Result, builder: Builder) -> dict[str, Any]:
    """Evaluation items that documents hold, by benchmark and place."""
    index = contamination.load(result.work.questions)
    total = contamination.Found()
    for count in result.counts:
        total.merge(contamination.Found.from_json(count["found"]))
    rows = total.table(index)
    hits = []
    for unit, count in zip(result.work.units, result.counts, strict=True):
        source = result.work.sources[unit.source].name
        hits += [{**hit, "source": source} for hit in count["hits"]]
    storage.write_json(
        builder.file("contamination.json"),
        {
            "ngram": index.n,
            "mode": result.work.config.decontamination,
            "benchmarks": [row._asdict() for row in rows],
            "says": contamination.describe(rows, result.work.config.decontamination == "remove"),
            "hits": hits,
        },
    )
    return {
        "says": contamination.describe(rows, result.work.config.decontamination == "remove"),
        "benchmarks": [
            {
                "benchmark": row.benchmark,
                "split": row.split,
                "allowed": row.allowed,
                "items": row.n_items,
                "found": row.n_items_found,
                "documents": row.n_documents,
            }
            for row in rows
        ],
        "contamination": hits[:SHOWN],
    }


def _planted(result: Result, recipe: Recipe, world: Artifact, builder: Builder) -> dict[str, Any]:
    """The score against the world's labels; of the sources that the recipe has."""
    generated = {
        source.name: source.kind for source in recipe.sources if source.kind in ("tinyworld", "quiz")
    }
    if not generated:
        return score.planted([], {}, {}, [])
    labels = storage.read_jsonl(world.file("planted.jsonl"))
    personal = {row["id"] for row in labels if row["kind"] == "personal"}
    reasons: dict[str, str] = {}
    kept_texts: dict[str, str] = {}
    present: dict[str, str] = {}
    for shard, written in enumerate(result.written):
        if recipe.sources[written["source"]].name not in generated:
            continue
        for folder, columns in (
            ("documents", ("id", "source", "text")),
            ("removed", ("id", "source", "reason")),
        ):
            with storage.open_read(builder.file(folder, part(shard))) as handle:
                table = pq.read_table(handle, columns=list(columns))
            for id_, source, value in zip(*(table[name].to_pylist() for name in columns), strict=True):
                present[id_] = source
                if folder == "removed":
                    reasons[id_] = value
                elif id_ in personal:
                    kept_texts[id_] = value
    labels = [row for row in labels if row["id"] in present]
    originals = [id_ for id_, source in present.items() if generated[source] == "tinyworld"]
    return score.planted(labels, reasons, kept_texts, originals)


def show(counts: Mapping[str, Any]) -> None:
    """A line each on text that was cut out, scrubbed addresses, unreadable input and planted dirt."""
    if counts["cut_bytes"]:
        console.say(f"  {counts['cut_bytes'] / 1e6:,.1f} MB of repeats were cut out of documents that stay")
    if counts["quarantined"]:
        console.say(
            f"  {counts['quarantined']:,} lines or files could not be read; quarantine.jsonl says where and why"
        )
    if counts["scrubbed"]:
        said = ", ".join(f"{n:,} {kind.replace('_', ' ')}" for kind, n in counts["scrubbed"].items())
        console.say(f"  replaced: {said}")
    planted = counts["planted"]
    kinds = [kind for kind in score.KINDS if planted[kind]["planted"]]
    found = ", ".join(
        f"{planted[kind]['found']:,} of {planted[kind]['planted']:,} {kind.replace('_', ' ')}"
        for kind in kinds
    )
    if kinds:
        console.say(
            f"  planted dirt found: {found}; removed {planted['originals_removed']:,} of {planted['originals']:,} originals"
        )
