"""What curation tells: the funnel, what was unreadable, what leaked, and how it did against the planted dirt."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from moxin import console, storage
from moxin.artifact import Artifact, Builder
from moxin.curate import score
from moxin.curate.decide import Decided
from moxin.curate.shards import DONE, part, read_table
from moxin.recipe import Recipe

STEPS = ("length", "language", "quality", "decontamination", "exact dedup", "near dedup")


def report(
    decided: Decided,
    folders: Sequence[str],
    recipe: Recipe,
    world: Artifact,
    builder: Builder,
    questions: Sequence[dict[str, Any]],
) -> None:
    """Writes funnel, quarantine, contamination and planted dirt, sets the counts, and shows a table."""
    done = [storage.read_json(storage.join(folder, DONE)) for folder in folders]
    quarantine = [
        {"source": recipe.sources[item["source"]].name, **row} for item in done for row in item["quarantine"]
    ]
    storage.write_jsonl(builder.file("quarantine.jsonl"), quarantine)
    n_quarantined = sum(row.get("count", 1) for row in quarantine)
    funnel = _funnel(decided.rows, n_quarantined)
    storage.write_json(builder.file("funnel.json"), funnel)
    leaks = decided.rows.filter(pc.equal(decided.rows["step"], "decontamination")).to_pylist()
    contamination = {
        "benchmark": "tinyworld",
        "questions": len(questions),
        "documents_removed": len(leaks),
        "hits": [
            {"document": row["id"], "question": id_} for row in leaks for id_ in row["detail"].split(" ")
        ],
    }
    storage.write_json(builder.file("contamination.json"), contamination)
    planted = _planted(decided.rows, recipe, world, builder)
    storage.write_json(builder.file("planted.json"), planted)
    scrubbed = sum((Counter(item["scrubbed"]) for item in done), Counter())
    kept = decided.rows.filter(pc.equal(decided.rows["step"], ""))
    came, went = (Counter(table["source"].to_pylist()) for table in (decided.rows, kept))
    builder.counts |= {
        "documents_in": len(decided.rows),
        "documents_out": len(kept),
        "quarantined": n_quarantined,
        "planted": planted,
        "scrubbed": dict(sorted(scrubbed.items())),
        "sources": {s.name: {"in": came[s.name], "out": went[s.name]} for s in recipe.sources},
        "near_duplicates": {
            "candidate_pairs": decided.near.n_candidates,
            "confirmed_pairs": decided.near.n_confirmed,
            "largest_group": decided.near.largest_group,
        },
    }
    show(funnel, builder.counts)


def _funnel(rows: pa.Table, n_quarantined: int) -> list[dict[str, Any]]:
    """One entry per step: in, out, and what was removed for which reason."""
    remaining = len(rows)
    unreadable = {"unreadable": n_quarantined} if n_quarantined else {}
    funnel = [{"step": "read", "in": remaining + n_quarantined, "out": remaining, "removed": unreadable}]
    counts = Counter(zip(rows["step"].to_pylist(), rows["reason"].to_pylist(), strict=True))
    for step in STEPS:
        removed = {reason: n for (at, reason), n in sorted(counts.items()) if at == step}
        funnel.append(
            {"step": step, "in": remaining, "out": remaining - sum(removed.values()), "removed": removed}
        )
        remaining -= sum(removed.values())
    return funnel


def _planted(rows: pa.Table, recipe: Recipe, world: Artifact, builder: Builder) -> dict[str, Any]:
    """The score against the world's labels; of the sources that the recipe has."""
    generated = {
        source.name: source.kind for source in recipe.sources if source.kind in ("tinyworld", "quiz")
    }
    rows = rows.filter(pc.is_in(rows["source"], pa.array(list(generated), pa.string())))
    present = set(rows["id"].to_pylist())
    labels = [row for row in storage.read_jsonl(world.file("planted.jsonl")) if row["id"] in present]
    removed = rows.filter(pc.not_equal(rows["step"], ""))
    reasons = dict(zip(removed["id"].to_pylist(), removed["reason"].to_pylist(), strict=True))
    personal = pa.array([row["id"] for row in labels if row["kind"] == "personal"], pa.string())
    kept_texts: dict[str, str] = {}
    for shard in range(recipe.shards):
        table = read_table(builder.file("documents", part(shard)), ("id", "source", "text"))
        table = table.filter(pc.is_in(table["id"], personal))
        kept_texts |= dict(zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True))
    worlds = [name for name, kind in generated.items() if kind == "tinyworld"]
    originals = rows.filter(pc.is_in(rows["source"], pa.array(worlds, pa.string())))["id"].to_pylist()
    return score.planted(labels, reasons, kept_texts, originals)


def show(funnel: list[dict[str, Any]], counts: dict[str, Any]) -> None:
    """The funnel as a table, and one line each on scrubbed addresses and planted dirt."""
    rows = [
        (
            step["step"],
            step["in"],
            step["out"],
            ", ".join(f"{name} {n:,}" for name, n in step["removed"].items()),
        )
        for step in funnel
    ]
    console.table("Funnel", ("step", "in", "out", "removed"), rows)
    scrubbed = counts["scrubbed"]
    console.say(f"  scrubbed {scrubbed.get('email', 0):,} e-mail and {scrubbed.get('ip', 0):,} IP addresses")
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
