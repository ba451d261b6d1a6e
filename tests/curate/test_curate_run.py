"""The whole stage through Ray Data on a small world, own files and installed code: what it leaves, and that it is the same
bytes again, also after it was stopped on its way."""

import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from moxin import artifact, recipes
from moxin.artifact import Artifact
from moxin.curate import decide, report, run, shards
from moxin.recipe import Recipe, SourceConfig
from moxin.tinyworld import stage as tinyworld

pytestmark = pytest.mark.slow

STORY = (
    "A small boat lay on the sand near the old pier. Every evening the fisherman came down with his lamp and his nets, "
    "looked at the sky for a while, and then went home again, because the wind was never right for him. One day his "
    "daughter asked him why he did not sail. He said that he had been waiting for a better day."
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return artifact.make(tinyworld.stage(recipes.load("smoke")), str(tmp_path_factory.mktemp("world")))


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    own = tmp_path_factory.mktemp("own")
    copy = STORY.replace("his lamp", "a lamp") + " The end."
    rows = [
        {"id": "z-story", "text": STORY},
        {"id": "a-copy", "text": copy},
        {"id": "mail", "text": f"{STORY} a@b.example"},
    ]
    (own / "stories.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + '\n{"text": broken\n')
    (own / "bad.parquet").write_bytes(b"PAR1")
    (own / "second").mkdir()
    (own / "second/story.txt").write_text(STORY.upper())
    smoke = recipes.load("smoke")
    mine = (SourceConfig("own", "folder", license="MIT", path=str(own)),)
    again = (SourceConfig("again", "folder", license="MIT", path=str(own / "second")),)
    code = (SourceConfig("code", "code", license="PSF-2.0", max_bytes=60_000),)
    return replace(smoke, sources=mine + code + smoke.sources[2:] + again, shards=3)


@pytest.fixture(scope="module")
def curated(
    ray_session: None, recipe: Recipe, world: Artifact, tmp_path_factory: pytest.TempPathFactory
) -> Artifact:
    return artifact.make(run.stage(recipe, world), str(tmp_path_factory.mktemp("run")))


def content(made: Artifact) -> dict[str, str]:
    root = Path(made.url)
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != artifact.MANIFEST
    }


def rows(made: Artifact, folder: str) -> Iterator[dict[str, Any]]:
    for path in sorted(Path(made.file(folder)).glob("part-*.parquet")):
        yield from pq.read_table(path).to_pylist()


def load(made: Artifact, name: str) -> Any:
    return json.loads(Path(made.file(name)).read_text())


def test_planted_dirt_is_found_and_no_original_is_lost(curated, world):
    planted = load(curated, "planted.json")
    for kind in ("exact_duplicate", "gibberish", "foreign", "personal", "leak"):
        assert planted[kind]["found"] == planted[kind]["planted"] == 6, kind
    assert planted["near_duplicate"]["found"] >= 9
    assert planted["near_duplicate"]["planted"] == 10
    assert planted["originals"] == 300
    assert planted["originals_removed"] == 0
    assert curated.counts["planted"] == planted


def test_every_document_is_kept_or_removed_with_a_reason_and_the_funnel_adds_up(curated):
    kept, removed = list(rows(curated, "documents")), list(rows(curated, "removed"))
    funnel = load(curated, "funnel.json")
    assert [step["step"] for step in funnel] == ["read", *report.STEPS]
    for step, following in itertools.pairwise(funnel):
        assert step["out"] == following["in"]
    for step in funnel:
        assert step["in"] - step["out"] == sum(step["removed"].values())
    assert funnel[-1]["out"] == len(kept) == curated.counts["documents_out"]
    assert funnel[0]["out"] == len(kept) + len(removed) == curated.counts["documents_in"]
    assert all(row["reason"] and row["detail"] for row in removed)
    assert all(row["text"] and row["license"] and row["lang"] for row in kept)
    assert {row["lang"] for row in kept} == {"en", "python"}
    sources = curated.counts["sources"]
    assert list(sources) == ["own", "code", "tinyworld", "quiz", "again"]
    assert sum(source["out"] for source in sources.values()) == len(kept)
    assert sources["quiz"] == {"in": 60, "out": 60}


def test_of_duplicates_the_first_source_and_then_the_first_id_stays(curated):
    removed = {row["id"]: row for row in rows(curated, "removed")}
    assert [row["id"] for row in rows(curated, "documents") if row["source"] == "own"] == ["a-copy"]
    assert removed["second/story.txt"]["detail"].startswith("of a-copy, Jaccard 0.")
    assert removed["z-story"]["detail"] == "of second/story.txt"
    assert removed["mail"]["text"].endswith(" <EMAIL>"), (
        "addresses do not survive in the removed documents either"
    )
    assert removed["story.txt"]["detail"] == "of second/story.txt", "the later source gives way"


def test_bad_files_are_reported_and_questions_that_leaked(curated, world):
    lines = Path(curated.file("quarantine.jsonl")).read_text().splitlines()
    assert [(row["source"], row["file"], row["position"]) for row in map(json.loads, lines)] == [
        ("own", "bad.parquet", 0),
        ("own", "stories.jsonl", "line 4"),
    ]
    assert curated.counts["quarantined"] == 2
    contamination = load(curated, "contamination.json")
    assert contamination["questions"] == 24
    assert contamination["documents_removed"] == 6
    labels = map(json.loads, Path(world.file("planted.jsonl")).read_text().splitlines())
    assert {hit["document"] for hit in contamination["hits"]} == {
        row["id"] for row in labels if row["kind"] == "leak"
    }


class HaltError(Exception):
    pass


def stop(*_: Any) -> None:
    raise HaltError


def test_a_stage_that_was_stopped_goes_on_and_gives_the_same_bytes(
    curated, recipe, world, tmp_path, monkeypatch
):
    stage = run.stage(recipe, world)
    assert stage.key == curated.key
    monkeypatch.setattr(decide, "decide", stop)
    with pytest.raises(HaltError):
        artifact.make(stage, str(tmp_path))
    monkeypatch.undo()
    done = sorted(Path(stage.url(str(tmp_path))).rglob(shards.DONE))
    assert len(done) == len(recipe.sources)
    done[0].unlink()  # as if this unit had not been finished
    before = [path.stat().st_mtime_ns for path in done[1:]]
    monkeypatch.setattr(report, "report", stop)
    with pytest.raises(HaltError):
        artifact.make(stage, str(tmp_path))
    monkeypatch.undo()
    assert [path.stat().st_mtime_ns for path in done[1:]] == before, "finished units are left alone"
    assert content(artifact.make(stage, str(tmp_path))) == content(curated)


def test_settings_that_cannot_be_are_refused_before_any_work(recipe, world):
    for setting, message in (
        ({"near_duplicate_jaccard": 0.0}, "curate.near_duplicate_jaccard = 0.0: must be above 0"),
        ({"languages": ()}, "curate.languages is empty"),
        ({"minhash_bands": 0}, "curate.minhash_bands = 0: must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            run.stage(replace(recipe, curate=replace(recipe.curate, **setting)), world)
    with pytest.raises(ValueError, match="no such folder"):
        run.stage(replace(recipe, sources=(SourceConfig("own", "folder", path="/nowhere/at/all"),)), world)
