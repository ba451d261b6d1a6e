"""Contamination against a plain-Python search by word runs, and what the report says."""

import gzip
import json
import random
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from kernels.text import unicode_tables, word_hashes
from moxin.arrow import utf8_buffers
from moxin.curate import contamination, decontaminate
from moxin.curate.contamination import Item, Row, build, search

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
    chosen = alone if decontaminate.MIN_WORDS <= len(alone) < n else whole
    size = min(n, len(chosen))
    return {tuple(chosen[k : k + size]) for k in range(len(chosen) - size + 1)} if chosen else set()


def expected(
    items: Sequence[Item], documents: Sequence[str], n: int
) -> dict[tuple[str, str], tuple[int, list[str]]]:
    """(document, item): how many runs, and the words of the first, shorter before longer."""
    found = {}
    for name, text in enumerate(documents):
        listed = words(text)
        for item in items:
            looked_for = runs(item, n)
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


def test_items_are_those_that_decontaminate_finds():
    draw = random.Random(2)
    vocabulary = [f"w{k}" for k in range(6)]
    items = [
        Item("b", "test", str(k), " ".join(draw.choices(vocabulary, k=draw.randrange(1, 20))), "w1 w2")
        for k in range(200)
    ]
    documents = pa.array([" ".join(draw.choices(vocabulary, k=300)) for _ in range(20)], pa.string())
    old = decontaminate.build([{"id": i.id, "question": i.question, "text": i.answer} for i in items], 6)
    hashes = word_hashes(*utf8_buffers(documents), *unicode_tables())
    pairs = decontaminate.hits(old, *hashes)
    report = search(build(items, 6), list(map(str, range(20))), documents)
    assert len(pairs) > 100
    assert [(int(hit.document), int(hit.item)) for hit in report.hits] == [
        tuple(pair) for pair in pairs.tolist()
    ]


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
        Row("empty", "test", False, 1, 0, 0),
        Row("gsm8k", "test", False, 1, 1, 1),
        Row("gsm8k", "train", True, 1, 1, 1),
        Row("short", "test", False, 1, 1, 1),
        Row("tiny", "test", False, 1, 1, 1),
    ]
    table = contamination.as_table(report.hits)
    assert table.to_pylist() == [hit._asdict() for hit in report.hits]
    assert contamination.as_table([]).schema == table.schema
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


def gauntlet() -> list[Item]:
    if not (DATA / "gauntlet").exists():
        pytest.skip(f"{DATA / 'gauntlet'} is not there")
    items = []
    for path in sorted((DATA / "gauntlet").rglob("*.jsonl")):
        for number, line in enumerate(path.read_text().split("\n")):
            if line:
                row = json.loads(line)
                question = next(
                    (row[k] for k in ("context", "query", "prompt", "question") if k in row), line
                )
                items.append(Item(path.stem, "test", str(number), str(question), str(row.get("answer", ""))))
    return items


def test_real_evaluation_sets_are_found_in_documents_that_quote_them():
    items = gauntlet()
    long = [item for item in items if len(words(item.question)) >= 13]
    draw = random.Random(6)
    quoted = draw.sample(long, 50)
    documents = [f"Some talk before it.\n\n> {item.question.upper()}\n\nand after." for item in quoted]
    report = search(build(items), [item.id for item in quoted], pa.array(documents, pa.large_string()))
    found = {(hit.document, hit.benchmark, hit.item) for hit in report.hits}
    missed = [item for item in quoted if (item.id, item.benchmark, item.id) not in found]
    assert not [item for item in missed if item.question.upper().lower() == item.question.lower()]
    assert report.remove.sum() >= 50 - len(missed)
    assert sum(row.n_items for row in report.table()) == len(items)


def test_humaneval_is_found_in_code_and_not_in_the_standard_library():
    path = DATA / "HumanEval.jsonl.gz"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().split("\n") if line]
    items = [
        Item("human_eval", "test", row["task_id"], row["prompt"], row["canonical_solution"]) for row in rows
    ]
    leaked = [row["prompt"] + row["canonical_solution"] for row in rows]
    clean = [Path(module.__file__).read_text() for module in (json, gzip, random, pytest)]
    names = [row["task_id"] for row in rows] + ["json", "gzip", "random", "pytest"]
    report = search(build(items), names, pa.array(leaked + clean, pa.large_string()))
    assert report.remove[: len(rows)].all()
    assert not report.remove[len(rows) :].any()
    assert {(hit.document, hit.item) for hit in report.hits} >= {(row["task_id"],) * 2 for row in rows}
    assert np.array_equal(report.table()[0][3:5], (len(rows), len(rows)))
