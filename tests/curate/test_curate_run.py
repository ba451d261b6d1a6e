"""The whole stage through Ray Data on a small world, own files and installed code: what it leaves, and that it is the same
bytes again: after it was stopped on its way, with little memory, and with other workers."""

import hashlib
import itertools
import json
import random
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from moxin import artifact, recipes
from moxin.artifact import Artifact
from moxin.curate import annotate, edit, plan, reading, report, run, shards, sources, tally
from moxin.recipe import ClassifierConfig, CurateConfig, Recipe, SourceConfig
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
        {"id": "z-story", "text": "Another story has the same id. " + STORY[::-1].replace("t", "th e")},
    ]
    (own / "stories.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + '\n{"text": broken\n')
    (own / "bad.parquet").write_bytes(b"PAR1")
    (own / "second").mkdir()
    (own / "second/story.txt").write_text(STORY.upper())
    smoke = recipes.load("smoke")
    mine = (SourceConfig("own", "folder", license="MIT", path=str(own), overrides=("languages=off",)),)
    again = (
        SourceConfig(
            "again", "folder", license="MIT", path=str(own / "second"), overrides=("languages=off",)
        ),
    )
    code = (SourceConfig("code", "code", license="PSF-2.0", max_bytes=60_000),)
    return replace(smoke, sources=mine + code + smoke.sources[2:] + again, shards=3)


@pytest.fixture(scope="module")
def curated(
    ray_session: None, recipe: Recipe, world: Artifact, tmp_path_factory: pytest.TempPathFactory
) -> Artifact:
    return artifact.make(run.stage(recipe, world), str(tmp_path_factory.mktemp("run")))


def content(made: Artifact) -> dict[str, str]:
    return content_of(Path(made.url))


def content_of(root: Path) -> dict[str, str]:
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


def test_planted_dirt_is_found_and_no_original_is_lost(curated):
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
    for step, following in itertools.pairwise(funnel):
        assert step["out"] == following["in"]
    for step in funnel:
        assert step["in"] - step["out"] == sum(step["removed"].values())
    assert funnel[-1]["out"] == len(kept) == curated.counts["documents_out"]
    assert funnel[0]["out"] == len(kept) + len(removed) == curated.counts["documents_in"]
    assert all(row["step"] and row["reason"] for row in removed)
    assert all(row["text"] and row["license"] for row in kept)
    assert {row["lang"] for row in kept if row["source"] in ("code", "tinyworld")} == {"python", "en"}
    sources_ = curated.counts["sources"]
    assert list(sources_) == ["own", "code", "tinyworld", "quiz", "again"]
    assert sum(source["out"] for source in sources_.values()) == len(kept)
    assert sources_["quiz"] == {"in": 60, "out": 60}
    by_reason: dict[tuple[str, str], int] = {}
    for row in removed:
        by_reason[row["source"], row["reason"]] = by_reason.get((row["source"], row["reason"]), 0) + 1
    told = load(curated, "report.json")["removed"]
    assert by_reason == {(row["source"], row["reason"]): row["documents"] for row in told}


def test_shards_hold_one_source_each_with_its_signals_in_the_order_of_its_files(curated):
    names = [
        pq.read_table(path)["source"].unique().to_pylist()
        for path in sorted(Path(curated.file("documents")).iterdir())
    ]
    assert all(len(name) <= 1 for name in names)
    assert len(names) >= 5
    world_rows = [row for row in rows(curated, "documents") if row["source"] == "tinyworld"]
    assert all(0 < row["alpha_words"] <= 1 and row["language_probability"] >= 0.5 for row in world_rows)


def test_of_duplicates_the_first_source_stays_and_in_a_source_the_first_place(curated):
    removed = {row["id"]: row for row in rows(curated, "removed")}
    own = [row["id"] for row in rows(curated, "documents") if row["source"] == "own"]
    assert own == ["second/story.txt", "z-story#2"], "the second with an id gets a name of its own"
    assert removed["a-copy"]["detail"].startswith("of second/story.txt, Jaccard 0.")
    assert removed["z-story"]["detail"] == "of second/story.txt"
    assert removed["mail"]["text"].endswith(" <EMAIL>"), "addresses do not survive in what is removed either"
    assert removed["story.txt"]["detail"] == "of second/story.txt", "the later source gives way"
    assert curated.counts["renamed"] == 1


def test_bad_files_are_reported_and_questions_that_leaked(curated, world):
    lines = Path(curated.file("quarantine.jsonl")).read_text().splitlines()
    assert [(row["source"], row["file"], row["position"]) for row in map(json.loads, lines)] == [
        ("own", "bad.parquet", 0),
        ("own", "stories.jsonl", "line 5"),
    ]
    assert curated.counts["quarantined"] == 2
    contamination = load(curated, "contamination.json")
    [row] = contamination["benchmarks"]
    assert (row["benchmark"], row["n_items"], row["n_documents"]) == ("tinyworld", 24, 6)
    labels = map(json.loads, Path(world.file("planted.jsonl")).read_text().splitlines())
    leaks = {row["id"] for row in labels if row["kind"] == "leak"}
    assert {hit["document"] for hit in contamination["hits"]} == leaks


class HaltError(Exception):
    pass


def stop(*_: Any, **__: Any) -> None:
    raise HaltError


def test_a_stage_that_was_stopped_anywhere_goes_on_and_gives_the_same_bytes(
    curated, recipe, world, tmp_path, monkeypatch
):
    stage = run.stage(recipe, world)
    assert stage.key == curated.key
    finished: dict[Path, int] = {}
    for module, name in (
        (edit, "streams"),
        (run.near, "search_of"),
        (run.fuzzy, "run"),
        (shards, "plan"),
        (report, "report"),
    ):
        monkeypatch.setattr(module, name, stop)
        with pytest.raises(HaltError):
            artifact.make(stage, str(tmp_path))
        monkeypatch.undo()
        assert {path: path.stat().st_mtime_ns for path in finished} == finished, (
            "what is finished is left alone"
        )
        done = [annotate.COUNTS, edit.EDITED, tally.TALLY]
        paths = [path for name_ in done for path in Path(stage.url(str(tmp_path))).rglob(name_)]
        finished = {path: path.stat().st_mtime_ns for path in paths}
    assert len(finished) == 3 * len(recipe.sources)
    next(iter(finished)).unlink()  # as if this unit had not been finished
    assert content(artifact.make(stage, str(tmp_path))) == content(curated)


def test_memory_and_batches_of_ray_do_not_show_in_the_result(curated, recipe, world, tmp_path):
    little = replace(recipe, curate=replace(recipe.curate, memory_bytes=20_000))
    stage = run.stage(little, world)
    assert stage.key == curated.key
    assert content(artifact.make(stage, str(tmp_path))) == content(curated)


def test_settings_that_cannot_be_are_refused_before_any_work(recipe, world):
    for setting, message in (
        ({"overrides": ("near.threshold=0",)}, "near.threshold = 0.0: must be above 0"),
        ({"overrides": ("languages.xx=0.5",)}, r"languages \['xx'\] are not known to lid.176"),
        ({"overrides": ("near.bands=0",)}, "near.bands = 0: must be at least 1"),
        ({"profile": "fineweb2"}, "no curation profile 'fineweb2'; the nearest is 'fineweb'"),
        ({"profile": "dclm-baseline"}, "ends with a quality classifier: set curate.classifier.model"),
        ({"earlier": "/nowhere"}, "no finished artifact there"),
        ({"shard_bytes": 0}, "curate.shard_bytes = 0: must be at least 1"),
        ({"bad_words": "/nowhere"}, "curate.bad_words has no effect"),
        ({"bad_words": "/nowhere", "overrides": ("bad_words=on",)}, "/nowhere: no such file"),
        ({"allowed": ("gsm8k/train",)}, "curate.allowed has no effect without curate.benchmarks"),
        ({"classifier": ClassifierConfig(model="/nowhere")}, "curate.classifier has no effect"),
    ):
        with pytest.raises(ValueError, match=message):
            run.stage(replace(recipe, curate=replace(recipe.curate, **setting)), world)
    with pytest.raises(ValueError, match="no such folder"):
        run.stage(replace(recipe, sources=(SourceConfig("own", "folder", path="/nowhere/at/all"),)), world)


WORDS = (
    "the a of and river boat lamp stone walk sing green old near under letter house garden wind bread clock"
)


def sentences(draw: random.Random, n: int) -> str:
    return " ".join(" ".join(draw.choices(WORDS.split(), k=12)).capitalize() + "." for _ in range(n))


@pytest.fixture
def pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pages in several files and units, with lines, and whole pages, that come again."""
    monkeypatch.setattr(sources, "FOLDER_UNIT_BYTES", 20_000)
    monkeypatch.setattr(reading, "BATCH_BYTES", 4_000)
    draw, folder = random.Random(5), tmp_path / "pages"
    folder.mkdir()
    lines = [sentences(draw, 3) for _ in range(60)]
    for number in range(3):
        texts = []
        for _ in range(40):
            own = [sentences(draw, 3) for _ in range(draw.randrange(1, 4))]
            texts.append("\n".join([*own, *draw.choices(lines, k=draw.randrange(3))]))
        texts += draw.choices(texts, k=4)
        (folder / f"{number}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return folder


def recipe_for(pages: Path, **curate: Any) -> Recipe:
    smoke = recipes.load("smoke")
    phases = tuple(replace(phase, mix={"web": 1.0}) for phase in smoke.pretrain.phases)
    made = replace(
        smoke,
        sources=(SourceConfig("web", "folder", path=str(pages), license="MIT"),),
        curate=CurateConfig(**curate),
        pretrain=replace(smoke.pretrain, phases=phases),
    )
    made.validate()
    return made


def test_lines_that_come_again_go_and_only_they(ray_session, pages, world, tmp_path):
    made = artifact.make(
        run.stage(recipe_for(pages, profile="near-only", overrides=("exact=line", "near=off")), world),
        str(tmp_path / "run"),
    )
    texts = [
        json.loads(line)["text"] for path in sorted(pages.iterdir()) for line in path.read_text().splitlines()
    ]
    seen: set[str] = set()
    expected = []
    for text in texts:
        own = [line for line in text.split("\n") if line.strip().lower() not in seen]
        seen |= {line.strip().lower() for line in text.split("\n")}
        if own:
            expected.append("\n".join(dict.fromkeys(own)))
    assert [row["text"] for row in rows(made, "documents")] == expected
    reasons = {row["reason"] for row in rows(made, "removed")}
    assert reasons <= {"exact_duplicate", "only_repeated_lines"}
    assert (
        made.counts["documents_in"]
        == len(texts)
        == made.counts["documents_out"] + sum(1 for _ in rows(made, "removed"))
    )


def test_a_bloom_filter_goes_on_from_where_it_was_saved(ray_session, pages, world, tmp_path, monkeypatch):
    monkeypatch.setattr(edit, "SAVE_BYTES", 15_000)
    recipe = recipe_for(
        pages,
        profile="dclm-baseline",
        overrides=(
            "classifier=off",
            "word_removal_ratio_filter=off",
            "page_length_filter_min=5",
            "languages=off",
            "stop_word_filter=off",
            *(f"repeated_{n}_grams=off" for n in range(2, 11)),
            "repeated_lines=off",
        ),
    )
    stage = run.stage(recipe, world)
    whole = artifact.make(stage, str(tmp_path / "whole"))
    assert whole.counts["bytes_out"] < whole.counts["bytes_in"]
    assert any(row["step"] == "bloom dedup" for row in rows(whole, "removed"))
    task = run.prepare(recipe, world, str(tmp_path / "cut"), str(tmp_path / "cut"))
    for number in range(len(task.units)):
        annotate.annotate_unit(task, number)
    [numbers] = edit.streams(task)
    assert len(numbers) > 3
    calls = iter(range(100))
    real = edit.edit_unit

    def dying(*given: Any) -> Any:
        if next(calls) == 3:
            raise HaltError
        return real(*given)

    for kind in ("ids",):
        for k in range(task.n_ranges):
            edit.find_repeats(task, kind, k)
    monkeypatch.setattr(edit, "edit_unit", dying)
    with pytest.raises(HaltError):
        edit.edit_stream(task, numbers)
    before = next(calls)
    edit.edit_stream(task, numbers)
    assert next(calls) - before < len(numbers) + 1, "not from the beginning"
    monkeypatch.undo()
    texts = [
        text
        for number in numbers
        for group in run.work.passed(task, number)
        for text in group.text.to_pylist()
    ]
    assert texts == [row["text"] for row in rows(whole, "documents")]


def test_a_later_corpus_is_held_against_an_earlier_one(ray_session, pages, world, tmp_path):
    first = pages / "0.jsonl"
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    new.mkdir()
    (old / "0.jsonl").write_bytes(first.read_bytes())
    again = [json.loads(line)["text"] for line in first.read_text().splitlines()[:10]]
    near = [text + " And one word more." for text in again if len(text.split()) > 60]
    fresh = sentences(random.Random(77), 9)
    (new / "1.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in [*again, *near, fresh])
    )
    before = artifact.make(
        run.stage(recipe_for(old, profile="near-only", keep_index=True), world), str(tmp_path / "a")
    )
    after = artifact.make(
        run.stage(recipe_for(new, profile="near-only", earlier=before.url), world), str(tmp_path / "b")
    )
    assert [row["text"] for row in rows(after, "documents")] == [fresh]
    reasons = {row["reason"]: row["detail"] for row in rows(after, "removed")}
    assert set(reasons) == {"exact_duplicate", "near_duplicate"}
    assert all("earlier corpus" in detail for detail in reasons.values())


def test_a_classifier_keeps_the_share_that_is_asked_for(ray_session, pages, world, tmp_path):
    draw = random.Random(1)
    for side, words in (
        ("good", "lucid theorem proof river lamp"),
        ("ordinary", "buy cheap click stone clock"),
    ):
        (tmp_path / side).mkdir()
        lines = [
            json.dumps({"text": " ".join(draw.choices(words.split(), k=30)) + f" {k}"}) for k in range(60)
        ]
        (tmp_path / side / "a.jsonl").write_text("\n".join(lines))
    recipe = recipe_for(
        pages,
        profile="near-only",
        overrides=("near=off", "exact=off", "classifier.keep=0.25"),
        classifier=ClassifierConfig(good=str(tmp_path / "good"), ordinary=str(tmp_path / "ordinary")),
    )
    made = artifact.make(run.stage(recipe, world), str(tmp_path / "run"))
    kept = list(rows(made, "documents"))
    n = made.counts["documents_in"]
    # Equal pages have equal scores and stay together.
    assert -(-n // 4) <= len(kept) <= n // 4 + 8
    least = min(row["quality"] for row in kept)
    removed = list(rows(made, "removed"))
    assert {row["reason"] for row in removed} == {"low_quality"}
    assert max(float(row["detail"].split()[1]) for row in removed) < least + 1e-6


def test_a_sample_says_what_would_go_and_leaves_nothing(ray_session, pages, world, capsys, tmp_path):
    recipe = recipe_for(pages, profile="near-only")
    plan.show(recipe, world)
    plan.estimate(recipe, world, 0.5)
    told = capsys.readouterr().out
    assert "Profile near-only" in told
    assert "memory: a range" in told
    assert "tokens asked for" in told
    assert "of the sample only" in told
    [n] = re.findall(r"a sample of (\d+) documents", told)
    assert 40 < int(n) < 90, "half of 132"
    with pytest.raises(ValueError, match="--sample 2: a share"):
        plan.estimate(recipe, world, 2)


def test_evaluation_sets_are_removed_but_for_splits_that_are_allowed(ray_session, pages, world, tmp_path):
    draw = random.Random(9)
    questions = {split: [sentences(draw, 2) for _ in range(3)] for split in ("train", "test")}
    folder = tmp_path / "sets" / "riddles"
    folder.mkdir(parents=True)
    for split, own in questions.items():
        rows_ = [json.dumps({"question": question, "answer": "a lamp"}) for question in own]
        (folder / f"{split}.jsonl").write_text("\n".join(rows_))
    texts = [
        f"{sentences(draw, 2)} {question} {sentences(draw, 2)}"
        for own in questions.values()
        for question in own
    ]
    (pages / "leaks.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    settings = {
        "profile": "near-only",
        "benchmarks": (str(tmp_path / "sets"),),
        "allowed": ("riddles/train",),
    }
    made = artifact.make(run.stage(recipe_for(pages, **settings), world), str(tmp_path / "run"))
    gone = {row["text"] for row in rows(made, "removed") if row["reason"] == "evaluation_question"}
    assert gone == set(texts[3:])
    kept = {row["text"] for row in rows(made, "documents")}
    assert kept >= set(texts[:3])
    told = load(made, "contamination.json")
    assert any("riddles train: 3 of 3 items" in line and "allowed" in line for line in told["says"])
    assert any("riddles test: 3 of 3 items" in line and "removed" in line for line in told["says"])
    only_told = recipe_for(pages, **settings, decontamination="report")
    made = artifact.make(run.stage(only_told, world), str(tmp_path / "run"))
    assert {row["text"] for row in rows(made, "documents")} >= set(texts)


def test_of_an_address_the_first_page_stays_and_removed_pages_have_their_signals(
    ray_session, pages, world, tmp_path
):
    draw = random.Random(4)
    urls = ["http://a.example/x", "https://b.example/", "HTTP://A.example:80/x#top", ""]
    for path in pages.iterdir():
        path.unlink()
    texts = [sentences(draw, 6) for _ in urls]
    lines = [json.dumps({"text": text, "url": url}) for text, url in zip(texts, urls, strict=True)]
    (pages / "a.jsonl").write_text("\n".join([*lines, json.dumps({"text": "Too short."})]))
    recipe = recipe_for(pages, overrides=("urls=on", "languages=off", "near=off"))
    made = artifact.make(run.stage(recipe, world), str(tmp_path / "run"))
    assert [row["text"] for row in rows(made, "documents")] == [texts[0], texts[1], texts[3]]
    removed = {row["reason"]: row for row in rows(made, "removed")}
    assert set(removed) == {"same_url", "too_short"}
    assert removed["same_url"]["detail"] == "of a.jsonl:0"
    assert removed["too_short"]["n_chars"] == 10


def test_what_is_generated_is_not_held_to_rules_for_web_pages():
    config = CurateConfig(profile="fineweb", overrides=("list_ratio=0.2",))
    names = {
        kind: run.work.profile_of(SourceConfig("own", kind), config).name
        for kind in ("folder", "tree", "quiz")
    }
    assert names == {"folder": "fineweb", "tree": "the-stack", "quiz": "plain"}
    own = SourceConfig("own", "quiz", overrides=("too_short=5",))
    assert run.work.profile_of(own, config).name == "plain of own"
