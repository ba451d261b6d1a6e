"""The quality classifier: the same bytes from the same documents, real corpora told apart, and what goes wrong."""

import dataclasses
import gzip
import io
import json
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from moxin import storage
from moxin.curate import fasttext, quality_model, sources

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "corpus"
SMALL = fasttext.Training(dim=16, epochs=5, learning_rate=0.5, buckets=1 << 14, seed=3)
GOOD = ["theorem", "proof", "lemma", "integer", "follows", "hence"]
PLAIN = ["click", "buy", "now", "cheap", "shop", "here"]


def texts(kind: list[str], n: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    both = [*kind, *kind, "the", "of", "a", "and", "to", "is", "in", "it", "that", "was"]
    return [" ".join(draw.choices(both, k=draw.randrange(20, 60))) for _ in range(n)]


def write(folder: Path, documents: list[str], name: str = "a.jsonl") -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return str(folder)


@pytest.fixture
def folders(tmp_path) -> tuple[str, str]:
    return write(tmp_path / "good", texts(GOOD, 300, 1)), write(tmp_path / "plain", texts(PLAIN, 400, 2))


def auc(good: np.ndarray, bad: np.ndarray) -> float:
    return float((good[:, None] > bad[None]).mean() + (good[:, None] == bad[None]).mean() / 2)


def scores(model: fasttext.Model, documents: list[str]) -> np.ndarray:
    return fasttext.score(model, pa.array(documents, pa.large_string()))


def test_held_out_documents_are_told_apart(folders):
    model = quality_model.make(*folders, SMALL, 1 << 20)
    assert auc(scores(model, texts(GOOD, 100, 3)), scores(model, texts(PLAIN, 100, 4))) >= 0.95
    assert model.about["warnings"] == []
    assert model.about["good"]["n_documents"] == model.about["n_good"] == 300


def test_real_corpora_are_told_apart(tmp_path):
    """Presidents' speeches, by paragraphs of 1,000 characters, against Python's enhancement proposals."""
    halves: dict[str, list[list[str]]] = {}
    for name in ("state_union", "peps"):
        path = DATA / f"{name}.jsonl.zst"
        if not path.exists():
            pytest.skip(f"{path} is not there")
        reader = zstandard.ZstdDecompressor().stream_reader(path.read_bytes())
        rows = [json.loads(line)["text"] for line in io.TextIOWrapper(reader, "utf-8")]
        halves[name] = [
            [row[k : k + 1000] for row in rows[h::2] for k in range(0, len(row), 1000)] for h in (0, 1)
        ]
    urls = [write(tmp_path / name, parts[0]) for name, parts in halves.items()]
    model = quality_model.make(*urls, SMALL, 1 << 20)
    assert auc(*(scores(model, parts[1]) for parts in halves.values())) >= 0.95


def saved(model: fasttext.Model, path: Path) -> bytes:
    quality_model.save(model, str(path))
    return path.read_bytes()


@pytest.mark.parametrize("max_bytes", [20_000, 1 << 20])
def test_the_model_does_not_depend_on_files(folders, tmp_path, monkeypatch, max_bytes):
    base = saved(quality_model.make(*folders, SMALL, max_bytes), tmp_path / "base.bin")
    documents = texts(GOOD, 300, 1)
    random.Random(5).shuffle(documents)
    mixed = tmp_path / "mixed"
    write(mixed, documents[:90], "z.jsonl")
    (mixed / "b").mkdir()
    lines = "".join(
        json.dumps({"content": text, "id": str(k)}) + "\n" for k, text in enumerate(documents[85:200])
    )
    (mixed / "b" / "c.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    pq.write_table(pa.table({"text": documents[200:299]}), mixed / "a.parquet", row_group_size=7)
    (mixed / "one.txt").write_text(documents[299])
    monkeypatch.setattr(sources, "FOLDER_UNIT_BYTES", 4000)
    other = quality_model.make(str(mixed), folders[1], SMALL, max_bytes)
    assert other.about["good"]["n_read"] == 305
    assert saved(other, tmp_path / "other.bin") == base
    assert saved(
        quality_model.make(folders[0], folders[1], SMALL, max_bytes - 1000), tmp_path / "less.bin"
    ) != base or (max_bytes > 100_000)


def test_the_sample_is_the_smallest_hashes_that_fit(folders):
    whole, side = quality_model._sample(folders[0], 1 << 20)
    assert side == quality_model.Side(300, 0, 0, 300, sum(len(text) for text in whole.values()))
    for max_bytes in (500, 5_000, 30_000):
        sample, side = quality_model._sample(folders[0], max_bytes)
        order = sorted(whole)
        total = np.cumsum([len(whole[key]) for key in order])
        assert sorted(sample) == order[: len(sample)]
        assert side.n_bytes == total[len(sample) - 1] <= max_bytes < total[len(sample)]


def test_what_could_not_be_read_is_counted(folders, tmp_path):
    bad = Path(folders[0], "bad.jsonl")
    bad.write_text('{"text": 1}\n{"no": "text"}\n' + json.dumps({"text": "x " * 9000}) + "\n")
    Path(folders[0], "empty.txt").write_text("")
    about = quality_model.make(*folders, SMALL, 10_000).about
    assert about["good"]["n_quarantined"] == 3
    assert about["good"]["n_too_long"] == 1
    assert about["good"]["n_bytes"] <= 10_000


def test_warnings(tmp_path):
    good = write(tmp_path / "good", ["a short one"])
    plain = write(tmp_path / "plain", ["a short one", *texts(PLAIN, 50, 2)])
    warnings = quality_model.make(good, plain, SMALL, 1 << 20).about["warnings"]
    assert warnings[0] == "1 texts are good and ordinary at once"
    assert warnings[1].startswith("11 bytes of good and ")


def test_saved_and_loaded_here_and_from_s3(folders, tmp_path, s3):
    model = quality_model.make(*folders, SMALL, 1 << 20)
    documents = texts(GOOD, 20, 6)
    for url in (
        str(tmp_path / "model.bin"),
        storage.join(s3.url, "model.bin"),
        storage.join(s3.url, "v1.0", "model"),
    ):
        quality_model.save(model, url)
        again = quality_model.load(url)
        np.testing.assert_array_equal(scores(again, documents), scores(model, documents))
        assert again.about["good"] == model.about["good"]
        assert quality_model.fingerprint(url) == again.about["model_sha256"]
    storage.remove(storage.join(s3.url, "model.json"))
    assert quality_model.load(storage.join(s3.url, "model.bin")).about == {}


def test_mistakes_are_explained(folders, tmp_path):
    good, plain = folders
    for one, other in (
        (good, good),
        (good, f"{good}/"),
        (good, str(tmp_path)),
        (str(Path(good, "a.jsonl")), good),
    ):
        with pytest.raises(ValueError, match="the same, or one in the other"):
            quality_model.make(one, other, SMALL, 1000)
    Path(tmp_path, "link").symlink_to(good)
    with pytest.raises(ValueError, match="the same"):
        quality_model.make(good, str(tmp_path / "link"), SMALL, 1000)
    empty = write(tmp_path / "empty", [])
    with pytest.raises(ValueError, match="no documents to train on: 0 read, 1 unreadable"):
        quality_model.make(good, empty, SMALL, 1000)
    with pytest.raises(ValueError, match="no such folder"):
        quality_model.make(good, str(tmp_path / "none"), SMALL, 1000)
    with pytest.raises(ValueError, match="of more than max_bytes = 10"):
        quality_model.make(good, plain, SMALL, 10)
    with pytest.raises(ValueError, match="max_bytes = 0"):
        quality_model.make(good, plain, SMALL, 0)
    for missing in (str(tmp_path / "none.bin"), str(tmp_path)):
        with pytest.raises(ValueError, match="no file"):
            quality_model.fingerprint(missing)
    model = quality_model.make(good, plain, SMALL, 1 << 20)
    fasttext.save(dataclasses.replace(model, labels=["__label__x", "__label__y"]), tmp_path / "other.bin")
    other = (tmp_path / "other.bin").read_bytes()
    (tmp_path / "labels.bin").write_bytes(other.replace(b"__label__hq", b"__label__xx"))
    with pytest.raises(ValueError, match="wanted is a label __label__hq"):
        quality_model.load(str(tmp_path / "labels.bin"))
