"""What curation will take, before it runs: units, memory of every step with its formula, and how often a source is read.

`estimate` runs all passes on a sample, and says what they would remove.
"""

import tempfile
from collections.abc import Mapping
from typing import Any

from kernels import bloom
from moxin import console
from moxin.artifact import Artifact
from moxin.curate import fuzzy_plan, reading, repeats, run, sources, work
from moxin.curate.near import ENTRY_BYTES
from moxin.curate.profiles import Profile
from moxin.recipe import Recipe, Selection

DOCUMENT_BYTES = 2000
"""Text of a document, until it is known."""
BYTES_PER_TOKEN = 4.0
"""Of English text and a vocabulary of 32,000 or more; a small vocabulary gives more tokens."""
KEYS = "24 B × keys of the unit"


def rows(recipe: Recipe, world: Artifact) -> list[tuple[str, str, str]]:
    """Quantity, value, formula."""
    curate = recipe.curate
    profiles = [work.profile_of(source, curate) for source in recipe.sources]
    units = sources.units(recipe.sources, world)
    sizes = [sum(sources.text_bytes(item) for item in unit.items) for unit in units]
    total = sum(sizes)
    n_ranges = repeats.ranges_for(run.expected_keys(profiles, total), curate.memory_bytes)
    largest = max(sizes, default=0)
    out = [
        ("text", fuzzy_plan.size(total), "sizes of the files, compressed ones × 3 or 4"),
        (
            "units",
            f"{len(units):,}, the largest {fuzzy_plan.size(largest)}",
            "what a task reads, and what is redone when one dies",
        ),
        (
            "memory: a pass over a unit",
            fuzzy_plan.size(16 * reading.BATCH_BYTES + 48 * largest // run.DOCUMENT_BYTES),
            f"16 × batch of {fuzzy_plan.size(reading.BATCH_BYTES)} (or of one larger document) + 2 × {KEYS}",
        ),
        (
            "memory: a range of exact keys",
            fuzzy_plan.size(repeats.BYTES_PER_HASH * run.expected_keys(profiles, total) / n_ranges),
            f"{repeats.BYTES_PER_HASH} B × keys / {n_ranges} ranges",
        ),
    ]
    for source, profile in enumerate(profiles):
        if profile.bloom is not None:
            own = sum(size for unit, size in zip(units, sizes, strict=True) if unit.source == source)
            words = max(own // 4 // profile.bloom.streams, 1)
            bits, hashes = bloom.size(words, profile.bloom.fp_rate)
            out.append(
                (
                    f"memory: filter of {recipe.sources[source].name}",
                    f"{fuzzy_plan.size(bits / 8)} × {profile.bloom.streams}",
                    f"{bits / words:.1f} bits × n-grams (text / 4 B / streams), {hashes} hashes; n-grams are counted first",
                )
            )
    for params in dict.fromkeys(profile.near for profile in profiles if profile.near is not None):
        with_it = [source for source, profile in enumerate(profiles) if profile.near == params]
        these = [size for unit, size in zip(units, sizes, strict=True) if unit.source in with_it]
        n = max(sum(these) // DOCUMENT_BYTES, 1)
        ranges = max(-(-n * params.bands * ENTRY_BYTES // curate.memory_bytes), 1)
        names = ", ".join(recipe.sources[source].name for source in with_it)
        out.append(
            ("near-duplicates of", names, f"{n:,} documents of {DOCUMENT_BYTES:,} B, until they are counted")
        )
        out += fuzzy_plan.rows(n, sum(these), params, ranges, len(these), lasting=curate.keep_index)
    return out


def budget(recipe: Recipe, n_bytes: Mapping[str, float]) -> list[tuple[Any, ...]]:
    """By source, the tokens that the phases ask for, those that `n_bytes` of text give, and how often it is read."""
    wanted: dict[str, float] = {source.name: 0.0 for source in recipe.sources}
    for phase in recipe.pretrain.phases:
        total = sum(phase.mix.values())
        for key, weight in phase.mix.items():
            wanted[Selection.parse(key).source] += phase.tokens * weight / total
    out = []
    for source in recipe.sources:
        there = n_bytes.get(source.name, 0.0) / BYTES_PER_TOKEN
        times = wanted[source.name] / there if there else float("inf") if wanted[source.name] else 0.0
        cap = f"at most {source.max_epochs:g}" if source.max_epochs else ""
        if source.max_epochs and times > source.max_epochs:
            cap += f": too few documents, the phases need {times / source.max_epochs:.1f} times as much text"
        out.append((source.name, int(wanted[source.name]), int(there), f"{times:.2f}", cap))
    return out


def show(recipe: Recipe, world: Artifact) -> None:
    """Prints the plan of curation, the rules of every profile, and the budget."""
    profiles = {work.profile_of(source, recipe.curate).name: source for source in recipe.sources}
    for source in profiles.values():
        show_profile(work.profile_of(source, recipe.curate))
    console.table("Curation", ("quantity", "value", "formula"), rows(recipe, world))
    units = sources.units(recipe.sources, world)
    sizes: dict[str, float] = {}
    for unit in units:
        name = recipe.sources[unit.source].name
        sizes[name] = sizes.get(name, 0) + sum(sources.text_bytes(item) for item in unit.items)
    show_budget(recipe, sizes, "before anything is removed")


def show_budget(recipe: Recipe, n_bytes: Mapping[str, float], title: str) -> None:
    names = ("source", "tokens asked for", "tokens there", "passes", "limit")
    console.table(f"Budget, at {BYTES_PER_TOKEN:g} bytes a token, {title}", names, budget(recipe, n_bytes))


def show_profile(profile: Profile) -> None:
    """Prints every rule of a profile in its order."""
    rows = [
        (
            row.stage,
            row.reason or "(edits lines)",
            f"{row.signal} {row.op} {row.threshold:g}" if row.op else row.signal,
            "; ".join(part for part in (row.unit, row.source) if part),
        )
        for row in profile.describe()
    ]
    names = ("step", "reason or setting", "removed where", "unit and source")
    console.table(f"Profile {profile.name}", names, rows)


def estimate(recipe: Recipe, world: Artifact, share: float) -> None:
    """Runs all passes on a sample and prints what they remove; nothing is left behind.

    Raises `ValueError` for a share that is none.
    """
    if not 0 < share <= 1:
        raise ValueError(f"--sample {share:g}: a share of the documents, above 0 and at most 1")
    run.check(recipe, [work.profile_of(source, recipe.curate) for source in recipe.sources])
    with tempfile.TemporaryDirectory(prefix="moxin-sample-") as folder:
        task = run.prepare(recipe, world, folder, folder, share)
        result = run.process(task, 1, "")
        came = result.sources()
        whole: dict[str, int] = {}
        for unit in sources.units(recipe.sources, world):
            name = recipe.sources[unit.source].name
            whole[name] = whole.get(name, 0) + sum(sources.text_bytes(item) for item in unit.items)
        console.say(f"  a sample of {sum(source['documents_in'] for source in came.values()):,} documents")
        result.funnel.show()
        kept = {name: source["bytes_out"] / max(source["bytes_in"], 1) for name, source in came.items()}
        show_budget(recipe, {name: whole.get(name, 0) * kept[name] for name in kept}, "after that")
        if any(profile.near is not None or profile.exact != "off" for profile in task.profiles) and share < 1:
            console.say(
                "  duplicates are counted among the documents of the sample only: of the whole more are removed, for a "
                "copy is found where both are in it"
            )
