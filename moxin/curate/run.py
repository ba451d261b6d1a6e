"""Stage "curate": Ray Data carries the units, the driver decides about duplicates on arrays.

    units ─▶ read, annotate (a task per unit) ─▶ decide on hashes (driver) ─▶ filter, sort, write (a task per output shard)

Every task writes whole files under names that follow from the list of units alone, so that a stage that was killed goes on
with the units that are not finished, and the result is the same bytes for any number of workers.
"""

import json
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data

from moxin import console, storage
from moxin.artifact import Artifact, Builder, Stage
from moxin.curate import decide, decontaminate, report, shards, sources
from moxin.curate.annotate import Judge, annotate, annotated_schema
from moxin.curate.documents import SCHEMA, stable_hash
from moxin.curate.reading import read
from moxin.curate.sources import Unit
from moxin.recipe import CurateConfig, Recipe, SourceConfig

SCRATCH = ".scratch"


@dataclass(frozen=True)
class Work:
    """What every task is told; small, and the same for all."""

    scratch: str
    sources: tuple[SourceConfig, ...]
    config: CurateConfig
    questions: decontaminate.Index
    shards: int

    def judge(self, source: int) -> Judge:
        return Judge(self.sources[source].kind, self.config, self.questions)


def stage(recipe: Recipe, world: Artifact) -> Stage:
    """Stage "curate". Raises `ValueError` for settings that cannot be, a missing folder, or one without documents."""
    check(recipe.curate)
    config = {
        "curate": recipe.curate,
        "sources": recipe.sources,
        "folders": [sources.fingerprint(source) for source in recipe.sources],
        "shards": recipe.shards,
    }
    return Stage("curate", config, {"world": world}, partial(make, recipe, world), SCRATCH)


def check(config: CurateConfig) -> None:
    """Raises `ValueError` for thresholds outside their range."""
    for name in ("near_duplicate_jaccard", "language_threshold"):
        if not 0 < getattr(config, name) <= 1:
            raise ValueError(f"curate.{name} = {getattr(config, name)}: must be above 0 and at most 1")
    if not config.languages:
        raise ValueError("curate.languages is empty: name at least one, for example en")
    for name in ("minhash_bands", "minhash_rows", "decontamination_ngram"):
        if getattr(config, name) < 1:
            raise ValueError(f"curate.{name} = {getattr(config, name)}: must be at least 1")


def make(recipe: Recipe, world: Artifact, builder: Builder) -> None:
    questions = storage.read_jsonl(world.file("questions.jsonl"))
    index = decontaminate.build(questions, recipe.curate.decontamination_ngram)
    work = Work(builder.file(SCRATCH), recipe.sources, recipe.curate, index, recipe.shards)
    annotate(SCHEMA.empty_table(), work.judge(0))  # compiles the kernels once, before many processes would
    units = _units(recipe, world, work.scratch)
    folders = [storage.join(work.scratch, "units", f"{number:05d}") for number in range(len(units))]
    open_ = [
        number for number, url in enumerate(folders) if not storage.exists(storage.join(url, shards.DONE))
    ]
    if len(open_) < len(units):
        console.say(f"  {len(units) - len(open_)} of {len(units)} units are finished already")
    rows = [
        {"folder": folders[n], "unit": json.dumps(units[n].to_json()), "size": units[n].size} for n in open_
    ]
    each("read and measure", rows, partial(annotate_unit, work))
    decided = decide.decide(folders, recipe, work.scratch)
    rows = [{"shard": shard, "size": 0} for shard in range(recipe.shards)]
    each("filter and write", rows, partial(shards.write_shard, work.scratch, folders, builder.url))
    report.report(decided, folders, recipe, world, builder, questions)


def _units(recipe: Recipe, world: Artifact, scratch: str) -> list[Unit]:
    """The list of units; one that an earlier attempt made is taken as it is."""
    url = storage.join(scratch, "units.json")
    if not storage.exists(url):
        storage.write_json(url, [unit.to_json() for unit in sources.units(recipe.sources, world)])
    return [Unit.from_json(value) for value in storage.read_json(url)]


def each(title: str, rows: list[dict[str, Any]], work: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Runs `work` on every row as a Ray Data task of its own; `size` of a row is in bytes, for the progress."""
    if not rows:
        return
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map(work)
    total = sum(row["size"] for row in rows) / 1e6
    with console.progress(title, total or None, "MB") as bar:
        for row in dataset.iter_rows():
            bar.advance(row["size"] / 1e6)


def annotate_unit(work: Work, row: dict[str, Any]) -> dict[str, Any]:
    """Reads and annotates one unit: a Parquet file per output shard, and last a `done.json` with what was counted."""
    unit = Unit.from_json(json.loads(row["unit"]))
    quarantine: list[dict[str, Any]] = []
    scrubbed: Counter[str] = Counter()
    urls = [storage.join(row["folder"], shards.part(shard)) for shard in range(work.shards)]
    schema = annotated_schema(work.config)
    with ExitStack() as stack:
        files = [stack.enter_context(storage.open_atomic(url)) for url in urls]
        writers = [stack.enter_context(pq.ParquetWriter(file, schema)) for file in files]
        for batch in read(unit, work.sources[unit.source], quarantine):
            annotated, counts = annotate(batch, work.judge(unit.source))
            scrubbed += counts
            place = np.array([stable_hash(id_) % work.shards for id_ in batch["id"].to_pylist()])
            for shard in np.unique(place):
                writers[shard].write_table(annotated.filter(pa.array(place == shard)))
    done = {"source": unit.source, "quarantine": quarantine, "scrubbed": scrubbed}
    storage.write_json(storage.join(row["folder"], shards.DONE), done)
    return {"size": row["size"]}
