"""Contamination against a plain-Python search by word runs, and what the report says."""

import gzip
import json
import random
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from moxin import storage
from moxin.curate import benchmarks, contamination
from moxin.curate.contamination import MAX_ITEMS, MIN_WORDS, Found, Item, Row, build, describe, search

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "eval"
QUESTION = "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May."
ITEMS = [
    Item("gsm8k", "test", "0", QUESTION, "72"),
    Item(
        "gsm8k",
        "train",
        "7",
        "Weng earns twelve dollars an hour for babysitting and did fifty minutes of it.",
        "10",
    ),
    Item("short", "test", "s", "Où est la bibliothèque ?", "là"),
    Item("tiny", "test", "t", "Why so?", "because of gravity"),
    Item("empty", "test", "e", "?", "!"),
]


def words(text: str) -> list[str]:
    """`word_hashes`' words: runs of letters, digits and marks, in lower case."""
    kept = [c.lower()[:1] if c.isalnum() or unicodedata.category(c)[0] == "M" else " " for c in text]
    return "".join(kept).split()


def runs(item: Item, n: int) -> set[tuple[str, ...]]:
    alone, whole = words(item.question), words(f"{item.question} {item.answer}")
    chosen = alone if MIN_WORDS <= len(alone) < n else whole
    size = min(n, len(chosen))
    return (
        {tuple(chosen[k : k + size]) for k in range(len(chosen) - size + 1)}
        if size >= min(n, MIN_WORDS)
        else set()
    )


def expected(
    items: Sequence[Item], documents: Sequence[str], n: int
) -> dict[tuple[str, str], tuple[int, list[str]]]:
    """(document, item): how many runs, and the words of the first, shorter before longer."""
    found = {}
    owners = Counter(run for item in items for run in runs(item, n))
    own = [(item, {run for run in runs(item, n) if owners[run] <= MAX_ITEMS}) for item in items]
    for name, text in enumerate(documents):
        listed = words(text)
        for item, looked_for in own:
            size = len(next(iter(looked_for), ()))
            at = [
                k for k in range(len(listed) - size + 1) if size and tuple(listed[k : k + size]) in looked_for
            ]
            if at:
                found[str(name), item.id] = len(at), listed[at[0] : at[0] + size]
    return found


def test_fuzzed_documents_and_items_against_plain_python():
    draw = random.Random(1)
    for n in (1, 2, 3, 4, 13):
        vocabulary = ["a", "B", "ß", "é", "e\u0301", "日本", "x1", "Ünï", "it", "s", "42"][
            : 4 if n == 13 else 11
        ]

        def text(longest: int, vocabulary: list[str] = vocabulary) -> str:
            pieces = draw.choices(vocabulary, k=draw.randrange(longest))
            return "".join(piece + draw.choice([" ", "\n", ", ", "-", " 🙂 "]) for piece in pieces)

        items = [Item("b", "test", str(k), text(2 * n + 4), text(4)) for k in range(30)]
        documents = [text(60) for _ in range(60)]
        report = search(build(items, n), list(map(str, range(60))), pa.array(documents, pa.string()))
        ours = {(hit.document, hit.item): (hit.n_runs, words(hit.span)) for hit in report.hits}
        assert ours == expected(items, documents, n)
        for hit in report.hits:
            assert documents[int(hit.document)][hit.first_char :].startswith(hit.span)
        assert report.remove.tolist() == [any(key[0] == str(k) for key in ours) for k in range(60)]


def test_the_report_says_what_was_found_where():
    documents = [
        "nothing of the kind",
        f"Önce: «NATALIA sold clips -- to 48 of her friends in April, and then she» {'x ' * 50}",
        "He asked: ou est la bibliothèque? Then: OÙ EST\n\tla bibliothèque.",
        "Weng earns twelve dollars an hour for babysitting and did fifty minutes of it",
        "why so? Because of gravity",
        "why so",
        None,
        "",
    ]
    names = [f"doc/{k}" for k in range(len(documents))]
    index = build(ITEMS, allowed=[("gsm8k", "train")])
    report = search(index, names, pa.array(documents, pa.large_string()))
    assert [hit[:4] + hit[4:6] for hit in report.hits] == [
        ("gsm8k", "test", "0", "doc/1", 13, 1),
        ("short", "test", "s", "doc/2", 4, 1),
        ("gsm8k", "train", "7", "doc/3", 13, 2),
        ("tiny", "test", "t", "doc/4", 5, 1),
    ]
    spans = [hit.span for hit in report.hits]
    assert spans[0] == "NATALIA sold clips -- to 48 of her friends in April, and then she"
    assert spans[1] == "OÙ EST\n\tla bibliothèque"
    assert report.hits[0].first_char == 7
    assert [hit.allowed for hit in report.hits] == [False, False, True, False]
    assert report.remove.tolist() == [False, True, True, False, True, False, False, False]
    assert report.table() == [
        Row("empty", "test", False, 1, 1, 0, 0),
        Row("gsm8k", "test", False, 1, 0, 1, 1),
        Row("gsm8k", "train", True, 1, 0, 1, 1),
        Row("short", "test", False, 1, 0, 1, 1),
        Row("tiny", "test", False, 1, 0, 1, 1),
    ]
    strict = search(build(ITEMS), names, pa.array(documents, pa.large_string()))
    assert strict.remove.tolist() == [False, True, True, True, True, False, False, False]


def test_twelve_words_of_a_longer_question_are_no_hit():
    listed = QUESTION.split()
    for size, hits in ((12, 0), (13, 1)):
        report = search(build(ITEMS), ["d"], pa.array([" ".join(listed[2 : 2 + size])]))
        assert len(report.hits) == hits
    halves = pa.array([" ".join(listed[:10]), " ".join(listed[10:])])
    assert not search(build(ITEMS), ["a", "b"], halves).hits, "a run does not go over the end of a document"


def test_one_run_of_two_items_names_both():
    items = [Item("a", "test", "1", QUESTION, ""), Item("b", "dev", "2", f"Read this. {QUESTION}", "")]
    report = search(build(items), ["d"], pa.array([QUESTION]))
    assert [hit.benchmark for hit in report.hits] == ["a", "b"]


def test_a_slice_and_no_items_and_no_documents():
    column = pa.array(["a", QUESTION, "b"], pa.string())
    assert search(build(ITEMS), ["x", "y"], column[1:]).remove.tolist() == [True, False]
    assert search(build([]), ["x"], column[:1]).remove.tolist() == [False]
    assert search(build(ITEMS), [], column[:0]).hits == []


def test_mistakes_are_explained():
    with pytest.raises(ValueError, match="n = 0"):
        build(ITEMS, 0)
    with pytest.raises(ValueError, match="gsm8k"):
        build(ITEMS, allowed=[("gsm8k", "dev")])


def test_runs_that_are_in_many_documents_are_no_hit():
    """Fewer than `MIN_WORDS` words with the answer, and words that more than `MAX_ITEMS` items share."""
    told = "Complete the rest of the sequence making sure that the parentheses are closed properly please"
    short = [Item("sums", "test", str(k), f"{k} + 42 =", f"{k + 42}") for k in range(3)]
    alike = [Item("brackets", "test", str(k), f"{told} ( [", "] )") for k in range(MAX_ITEMS + 1)]
    own = Item("brackets", "dev", "own", f"{told} then go home with your very best friend", "")
    documents = pa.array(["0, 42, 42", told, f"{told} then go home with your very best friend"])
    report = search(build([*short, *alike, own]), ["a", "b", "c"], documents)
    assert [(hit.item, hit.document) for hit in report.hits] == [("own", "c")]
    assert report.table() == [
        Row("brackets", "dev", False, 1, 0, 1, 1),
        Row("brackets", "test", False, MAX_ITEMS + 1, MAX_ITEMS + 1, 0, 0),
        Row("sums", "test", False, 3, 3, 0, 0),
    ]
    fewer = search(build(alike[:MAX_ITEMS]), ["a", "b", "c"], documents)
    assert len(fewer.hits) == 2 * MAX_ITEMS


def test_units_searched_apart_and_merged_are_the_whole():
    draw = random.Random(7)
    vocabulary = [f"w{k}" for k in range(5)]

    def text(size: int) -> str:
        return " ".join(draw.choices(vocabulary, k=size))

    items = [
        Item(draw.choice("abc"), draw.choice(["test", "train"]), str(k), text(9), text(2)) for k in range(40)
    ]
    index = build(items, 5, {(items[0].benchmark, items[0].split)})
    documents = [text(30) for _ in range(90)]
    names = [f"d{k}" for k in range(90)]
    whole = search(index, names, pa.array(documents))
    total, first = Found(), 0
    for size in (1, 0, 50, 39):
        unit = Found()
        for begin in range(first, first + size, 7):
            stop = min(begin + 7, first + size)
            unit.add(search(index, names[begin:stop], pa.array(documents[begin:stop], pa.string())).hits)
        total.merge(Found.from_json(json.loads(json.dumps(unit.to_json()))))
        first += size
    assert len(whole.hits) > 100
    assert total.table(index) == whole.table()
    for row in whole.table():
        hits = [hit for hit in whole.hits if (hit.benchmark, hit.split) == row[:2]]
        assert row.n_items_found == len({hit.item for hit in hits})
        assert row.n_documents == len({hit.document for hit in hits})


def test_a_saved_index_finds_the_same(tmp_path, s3):
    documents = pa.array([QUESTION, "why so because of gravity", "Où est la bibliothèque"])
    index = build(ITEMS, 9, [("gsm8k", "train")])
    contamination.save(index, storage.join(s3.url, "index"))
    contamination.save(index, str(tmp_path / "index"))
    for url in (storage.join(s3.url, "index"), str(tmp_path / "index")):
        again = contamination.load(url)
        assert vars(again).keys() == vars(index).keys()
        for name, value in vars(index).items():
            if isinstance(value, np.ndarray):
                np.testing.assert_array_equal(getattr(again, name), value, err_msg=name)
                assert getattr(again, name).dtype == value.dtype
            else:
                assert getattr(again, name) == value
        assert search(again, "abc", documents).hits == search(index, "abc", documents).hits
    contamination.save(again, str(tmp_path / "copy"))
    assert (tmp_path / "copy").read_bytes() == (tmp_path / "index").read_bytes()
    contamination.save(build([]), str(tmp_path / "empty"))
    assert not search(contamination.load(str(tmp_path / "empty")), "abc", documents).hits


def test_the_report_in_words():
    rows = [
        Row("boolq", "test", False, 3270, 2, 0, 0),
        Row("gsm8k", "test", False, 1319, 0, 1, 1),
        Row("gsm8k", "train", True, 7473, 0, 1203, 1199),
        Row("piqa", "train", True, 10, 0, 0, 0),
        Row("sums", "test", False, 1000, 1, 20, 5),
    ]
    assert describe(rows) == [
        "boolq test: none of 3,270 items are in the documents (2 have no words of their own to look for)",
        "gsm8k test: 1 of 1,319 items is in 1 document; it was removed",
        "gsm8k train: 1,203 of 7,473 items are in 1,199 documents; this split is allowed, nothing was removed for it",
        "sums test: 20 of 1,000 items are in 5 documents (1 has no words of its own to look for); they were removed",
    ]
    assert describe(rows[1:2], removed=False)[0].endswith("it was kept, contamination is only reported")


def test_real_evaluation_sets_are_found_in_documents_that_quote_them():
    if not (DATA / "gauntlet").exists():
        pytest.skip(f"{DATA / 'gauntlet'} is not there")
    items = benchmarks.read([str(DATA / "gauntlet")])
    long = [item for item in items if len(words(item.question)) >= 13]
    draw = random.Random(6)
    quoted = [item for item in draw.sample(long, 60) if item.benchmark != "bigbench_dyck_languages"]
    documents = [f"Some talk before it.\n\n> {item.question.upper()}\n\nand after." for item in quoted]
    names = [f"{item.benchmark}/{item.id}" for item in quoted]
    report = search(build(items), names, pa.array(documents, pa.large_string()))
    found = {hit.document for hit in report.hits if hit.document == f"{hit.benchmark}/{hit.item}"}
    missed = [item for item in quoted if f"{item.benchmark}/{item.id}" not in found]
    assert not [item for item in missed if item.question.upper().lower() == item.question.lower()]
    assert report.remove.sum() >= len(quoted) - len(missed) > 45
    assert sum(row.n_items for row in report.table()) == len(items)


def test_humaneval_is_found_in_code_and_not_in_the_standard_library():
    path = DATA / "HumanEval.jsonl.gz"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    items = benchmarks.read([str(path)])
    leaked = [item.question + item.answer for item in items]
    clean = [Path(module.__file__).read_text() for module in (json, gzip, random, pytest)]
    names = [item.id for item in items] + ["json", "gzip", "random", "pytest"]
    report = search(build(items), names, pa.array(leaked + clean, pa.large_string()))
    assert report.remove[:164].all()
    assert not report.remove[164:].any()
    assert {(hit.document, hit.item) for hit in report.hits} >= {(item.id,) * 2 for item in items}
    assert report.table()[0][:6] == ("HumanEval", "test", False, 164, 0, 164)
