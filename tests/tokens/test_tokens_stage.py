"""The tokenize stage with Ray Data: what it writes, that its input alone decides it, and how it goes on after a kill."""

import hashlib
import json
import random
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moxin import artifact, recipes, storage
from moxin.artifact import Artifact, Builder
from moxin.recipe import PhaseConfig, TokenizerConfig
from moxin.tokens import part, run
from moxin.tokens.loader import Curriculum, PhaseData
from moxin.tokens.tokenizer import Tokenizer

WORDS = "the a town river kite compass owns walks to and 42 7 def return x = [] <s> <|user|> Größe ▁"
QUESTION = "In which town does Olga Brandt keep her silver compass?"
LEAK = "Quiz time! In which town does Olga Brandt keep her SILVER compass..."
BASE = recipes.load("smoke")
RECIPE = replace(
    BASE,
    tokenizer=TokenizerConfig(vocab_size=400, sample_bytes=20_000),
    evaluate=replace(BASE.evaluate, perplexity_bytes=1_000),
)
PARTS = 3


def texts(source, n):
    rng = random.Random(source)
    return [" ".join(rng.choices(WORDS.split(" "), k=rng.randrange(1, 60))) for _ in range(n)]


def documents(leak):
    rows = [
        (f"{source}-{i}", text, source)
        for source in ("tales", "code")
        for i, text in enumerate(texts(source, 150))
    ]
    rows.append(("empty", "", "code"))
    random.Random(0).shuffle(rows)
    if leak:
        rows.append(("leak", LEAK, "tales"))
    return rows


def inputs(root, leak=False):
    """Small curate and world artifacts."""
    rows = documents(leak)
    for number in range(PARTS):
        columns = zip(*rows[number::PARTS], strict=True)
        path = root / "curate" / "documents" / f"part-{number:05d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(dict(zip(("id", "text", "source"), columns, strict=True))), path)
    storage.write_jsonl(str(root / "world" / "questions.jsonl"), [{"id": "q", "question": QUESTION}])
    key = hashlib.sha256(str(leak).encode()).hexdigest()[:12]
    return {name: Artifact(name, key, str(root / name), {"counts": {}}) for name in ("curate", "world")}


def contents(url):
    names = [name for name in storage.files_under(url) if not name.endswith((".partial", "manifest.json"))]
    return {name: Path(url, name).read_bytes() for name in names if not name.startswith(".scratch/")}


@pytest.fixture(scope="module")
def made(ray_session, tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenize")
    given = inputs(root)
    return artifact.make(run.stage(RECIPE, given["curate"], given["world"]), str(root / "run"))


@pytest.mark.slow
def test_the_shards_hold_every_document_that_is_not_held_out(made):
    tokenizer = Tokenizer.load(made.file("tokenizer"))
    store = storage.read_json(made.file("store.json"))
    held = {(row["source"], row["text"]) for row in storage.read_jsonl(made.file("heldout.jsonl"))}
    assert store["dtype"] == "uint16"
    assert store["vocab_size"] == tokenizer.vocab_size == made.counts["vocab_size"] <= 400
    rows = documents(leak=False)
    for source in ("tales", "code"):
        expected = [
            text
            for number in range(PARTS)
            for _, text, name in rows[number::PARTS]
            if name == source and (source, text) not in held
        ]
        stored = []
        for shard in store["sources"][source]["shards"]:
            ids = np.fromfile(made.file(shard["file"]), "<u2")
            offsets = np.fromfile(made.file(shard["file"].replace(".bin", ".idx")), "<u8").astype(int)
            assert (len(ids), len(offsets)) == (shard["tokens"], shard["documents"] + 1)
            assert storage.sha256(made.file(shard["file"])) == shard["sha256"]
            assert storage.sha256(made.file(shard["file"].replace(".bin", ".idx"))) == shard["index_sha256"]
            for start, stop in pairwise(offsets):
                assert (ids[start], ids[stop - 1]) == (tokenizer.bos_id, tokenizer.eos_id)
                stored.append(tokenizer.decode(ids[start + 1 : stop - 1].tolist(), skip_special=False))
        assert stored == expected
        size = sum(len(text.encode()) for text in expected)
        assert made.counts["sources"][source]["bytes"] == size
        held_bytes = sum(len(text.encode()) for name, text in held if name == source)
        assert 0 < held_bytes <= min(1_000, 0.05 * (size + held_bytes))
    assert made.counts["total"] == sum(source["tokens"] for source in store["sources"].values())
    assert made.counts["questions_found"] == 0
    assert storage.read_json(made.file("absence.json"))["questions"] == 1
    phase = PhaseConfig("p", 640, 32, {"tales": 0.5, "code": 0.5})
    batch = PhaseData(made.url, Curriculum((phase,), 1, 64, 2**32)).batch(0, 20)
    assert batch.tokens_BT.shape == (20, 32)


@pytest.mark.slow
def test_the_bytes_are_those_of_plain_functions_in_one_process(made, tmp_path):
    """So neither the number of workers nor the order in which they finish can matter."""
    given = inputs(tmp_path)
    urls = [given["curate"].file("documents", f"part-{number:05d}.parquet") for number in range(PARTS)]
    found = [part.survey(url, 1_000) for url in urls]
    sources = {name: sum(source[name]["bytes"] for source in found) for name in ("tales", "code")}
    held = frozenset(
        id
        for name, size in sources.items()
        for id in run.heldout.choose([c for source in found for c in source[name]["candidates"]], size, 1_000)
    )
    rates = {name: 10_000 / size for name, size in sources.items()}
    url = str(tmp_path / "store")
    sampled = [text for part_url in reversed(urls) for *_, text in part.sample(part_url, rates, held)]
    Tokenizer.train(sampled, 400).save(f"{url}/tokenizer")
    for number in reversed(range(PARTS)):
        part.tokenize(urls[number], number, url, "hf", held, [QUESTION])
    mine, theirs = contents(url), contents(made.url)
    assert len([name for name in mine if name.endswith(".bin")]) == 2 * PARTS
    assert mine == {name: theirs[name] for name in mine}


@pytest.mark.slow
def test_after_a_kill_only_missing_parts_are_made_again(made, tmp_path, capsys):
    builder = Builder(str(tmp_path / "store"), inputs(tmp_path))
    run.make(RECIPE, builder)
    before = contents(builder.url)
    assert before == contents(made.url)

    # As if killed while part 1 was written: no record, one shard whole, one torn and under its temporary name.
    store = Path(builder.url)
    (store / ".scratch/part-00001.json").unlink()
    for name in (
        "store.json",
        "heldout.jsonl",
        "absence.json",
        "shards/tales-00001.bin",
        "shards/tales-00001.idx",
    ):
        (store / name).unlink()
    (store / "shards/.code-00001.bin.0123abcd.partial").write_bytes(b"torn")
    stamps = {path: path.stat().st_mtime_ns for path in store.rglob("*-0000[02].*")}
    stamps[store / "tokenizer/tokenizer.json"] = (store / "tokenizer/tokenizer.json").stat().st_mtime_ns
    again = Builder(builder.url, builder.inputs)
    run.make(RECIPE, again)
    assert contents(builder.url) == before
    assert again.counts == builder.counts
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert f"2 of {PARTS} parts are there already" in capsys.readouterr().out


@pytest.mark.slow
def test_a_leaked_question_is_reported(ray_session, tmp_path, capsys):
    builder = Builder(str(tmp_path / "store"), inputs(tmp_path, leak=True))
    run.make(RECIPE, builder)
    proof = storage.read_json(builder.file("absence.json"))
    assert (proof["questions"], proof["found"], builder.counts["questions_found"]) == (1, 1, 1)
    assert [row["question"] for row in proof["occurrences"]] == [QUESTION]
    assert "1 of 1 evaluation questions occur in the training tokens" in capsys.readouterr().out


def wide_tokenizer(folder, n_more):
    """A trained tokenizer with so many more tokens that are never used."""
    Tokenizer.train(texts("tales", 50), 300).save(str(folder))
    spec = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = spec["model"]["vocab"]
    vocabulary |= {f"unused {i}": len(vocabulary) + i for i in range(n_more)}
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    return str(folder / "tokenizer.json"), len(vocabulary)


def test_a_given_tokenizer_beyond_16_bits(tmp_path):
    path, vocab_size = wide_tokenizer(tmp_path / "given", 70_000)
    recipe = replace(RECIPE, tokenizer=TokenizerConfig(path=path))
    builder = Builder(str(tmp_path / "store"), {})
    with pytest.raises(ValueError, match=f"set model.vocab_size to at least {vocab_size}"):
        run.stage(recipe, *inputs(tmp_path).values())
    roomy = replace(recipe, model=replace(recipe.model, vocab_size=vocab_size))
    tokenizer = run.make_tokenizer(roomy, builder, [], {}, frozenset())
    assert tokenizer.vocab_size == vocab_size
    given = inputs(tmp_path)["curate"].file("documents", "part-00000.parquet")
    stored = max((text for _, text, source in documents(leak=False)[::PARTS] if source == "tales"), key=len)
    record = part.tokenize(given, 0, builder.url, "hf", frozenset(), [QUESTION, stored])
    shard = record["sources"]["tales"]["shard"]
    assert Path(builder.file(shard["file"])).stat().st_size == 4 * shard["tokens"]
    assert record["questions"] == [1]


def test_the_key_follows_what_decides_the_tokens(tmp_path):
    given = inputs(tmp_path)

    def key(recipe):
        return run.stage(recipe, given["curate"], given["world"]).key

    path, _ = wide_tokenizer(tmp_path / "given", 0)
    with_path = replace(RECIPE, tokenizer=TokenizerConfig(path=path))
    before = key(with_path)
    assert before == key(replace(with_path, tokenizer=TokenizerConfig(path=path, vocab_size=999)))
    assert key(RECIPE) == key(replace(RECIPE, sft=replace(RECIPE.sft, epochs=9)))
    assert key(RECIPE) != key(replace(RECIPE, tokenizer=TokenizerConfig(vocab_size=500)))
    wide_tokenizer(tmp_path / "given", 1)
    assert key(with_path) != before
    with pytest.raises(ValueError, match="no such tokenizer"):
        key(replace(RECIPE, tokenizer=TokenizerConfig(path=str(tmp_path / "none.json"))))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (TokenizerConfig(vocab_size=400, sample_bytes=0), r"^tokenizer\.sample_bytes = 0 is so small"),
        (TokenizerConfig(vocab_size=100), r"^tokenizer\.vocab_size = 100: "),
    ],
)
def test_settings_that_cannot_be_are_named(ray_session, tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        run.make(replace(RECIPE, tokenizer=settings), Builder(str(tmp_path / "store"), inputs(tmp_path)))


@pytest.mark.slow
def test_the_store_is_the_same_on_s3_with_faults_on_the_way(made, s3, ray_session, tmp_path, monkeypatch):
    """Documents are read from S3, the store is written there, and the loader reads it from there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    inputs(tmp_path)
    given = {}
    for name in ("curate", "world"):
        storage.upload(tmp_path / name, storage.join(s3.url, name))
        given[name] = Artifact(name, "0" * 12, storage.join(s3.url, name), {"counts": {}})
    s3.faults.cut_downloads(3)
    s3.faults.refuse(3)
    there = artifact.make(run.stage(RECIPE, given["curate"], given["world"]), storage.join(s3.url, "run"))
    assert s3.faults.injected >= 4  # small bodies are not cut
    assert there.verify() == []
    assert there.counts == made.counts
    for name, found in made.manifest["files"].items():
        assert there.manifest["files"][name] == found

    phase = PhaseConfig("p", 3200, 32, {"tales": 0.5, "code": 0.5})
    curriculum = Curriculum((phase,), 1, 64, 2**32)
    here = PhaseData(made.url, curriculum).batch(0, 100)
    s3.faults.cut_downloads(2)
    far = PhaseData(there.url, curriculum)
    far.look_ahead(0, 100)
    batch = far.batch(0, 100)
    for name in ("tokens_BT", "targets_BT", "segments_BT"):
        np.testing.assert_array_equal(getattr(batch, name), getattr(here, name))
