"""The stage that writes the world's files."""

from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq

from moxin import console, storage
from moxin.artifact import Builder, Stage
from moxin.recipe import Recipe
from moxin.tinyworld.generate import Tinyworld, generate

SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("id", "text", "source", "license", "url", "lang", "meta")]
)
JSONL = ("planted", "questions", "chats", "preferences", "interview", "facts")
ROWS_PER_GROUP = 1024


def stage(recipe: Recipe) -> Stage:
    """Stage "world": documents.parquet and one JSONL file each of `JSONL`; generated in seconds, so made in one piece."""
    config = recipe.tinyworld

    def make(builder: Builder) -> None:
        total = config.n_documents + config.n_quiz_documents
        with console.progress("world", total, "documents") as bar:
            world = generate(config, bar.advance)
        write(world, builder.url)
        builder.counts |= counts(world)
        console.say(
            f"  {builder.counts['documents']:,} documents ({builder.counts['characters']:,} characters, "
            f"{sum(builder.counts['planted'].values()):,} of them planted dirt) on {config.n_people} people, "
            f"{builder.counts['facts']:,} facts, {builder.counts['questions']:,} held-out questions"
        )

    return Stage("world", config, {}, make)


def write(world: Tinyworld, url: str) -> None:
    table = pa.Table.from_pylist(world.documents, schema=SCHEMA)
    with storage.open_atomic(storage.join(url, "documents.parquet")) as handle:
        pq.write_table(table, handle, compression="zstd", row_group_size=ROWS_PER_GROUP)
    for name in JSONL:
        storage.write_jsonl(storage.join(url, f"{name}.jsonl"), getattr(world, name))


def counts(world: Tinyworld) -> dict[str, object]:
    exposures = [fact["exposures"] for fact in world.facts]
    return {
        "documents": len(world.documents),
        "characters": sum(len(row["text"]) for row in world.documents),
        "planted": dict(sorted(Counter(row["kind"] for row in world.planted).items())),
        "facts": len(world.facts),
        "facts_held_out": sum(fact["held_out"] for fact in world.facts),
        "least_exposures": min(exposures),
        "most_exposures": max(exposures),
        "questions": len(world.questions),
        "chats": len(world.chats),
        "preferences": len(world.preferences),
    }
