"""The page of curation: loads nothing, runs nothing, shows every text as text, and says what the numbers mean."""

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from outline import Outline

from moxin.curate import page
from moxin.curate.histograms import Histogram

HOSTILE = (
    "</p></pre><script>alert(1)</script><img src=x onerror=alert(2)>\"'&amp;{{ 7*7 }}\x1b[31m\u202egnp.exe"
)
SHOWN = HOSTILE.replace("\x1b", "␛").replace("\u202e", "⟨U+202E⟩")


def rule(reason: str, op: str, threshold: float, unit: str, values: Any, removed: int) -> dict[str, Any]:
    histogram = Histogram.of(op, threshold, unit)
    histogram.add(np.array(values, float), removed)
    known = {"profile": "fineweb", "step": "quality", "reason": reason, "signal": f"{reason}_signal"}
    return {**known, "unit": unit, "origin": "datatrove", **histogram.to_json()}


def example(i: int, words: str = "") -> dict[str, Any]:
    return {
        "id": f"id{i}{words}",
        "source": "web",
        "value": i,
        "detail": f"n {i}{words}",
        "text": f"text {i}{words}",
    }


def content(words: str = "") -> dict[str, Any]:
    """Everything that a page can show; `words` go into every text that comes from outside."""
    rules = [
        rule("short", "<", 50, "words", [0, 3, 49, 51, 400, 90_000], 3),
        rule("lists", ">", 0.3, "share", [0.0, 0.1, 0.31, 1.0], 1),
        rule("never", "<", 0.1, "share", [0.5, 0.6], 0),
        rule("nothing", "<", 0.1, "share", [], 0),
    ]
    key = {"profile": "fineweb", "step": "quality"}
    pair = {"kind": "near", "source": "web", "similarity": 0.81}
    return {
        "recipe": f"demo{words}",
        "sources": {
            "web": {
                "profile": "fineweb",
                "documents_in": 900,
                "bytes_in": 9e6,
                "documents_out": 500,
                "bytes_out": 4e6,
            },
            "code": {
                "profile": "plain",
                "documents_in": 100,
                "bytes_in": 1e6,
                "documents_out": 100,
                "bytes_out": 1e6,
            },
        },
        "removed": [
            {"source": "web", "step": "url", "reason": "blocked", "documents": 100, "bytes": 1_000_000},
            {"source": "web", "step": "quality", "reason": "short", "documents": 250, "bytes": 2_000_000},
            {
                "source": "web",
                "step": "near dedup",
                "reason": "near_duplicate",
                "documents": 50,
                "bytes": 2_000_000,
            },
        ],
        "rules": rules,
        "examples": [
            {**key, "reason": "short", "removed": [example(1, words)], "kept": [example(2, words)]},
            {**key, "step": "url", "reason": "blocked", "removed": [example(3, words)], "kept": []},
        ],
        "duplicates": [
            {
                **pair,
                "id": f"a{words}",
                "of": "b",
                "text": f"one old cat{words}",
                "of_text": f"one new cat{words}",
            },
            {**pair, "id": "c", "of": "d", "similarity": None, "kind": "exact", "text": "x", "of_text": "x"},
        ],
        "near": [{"quantity": "pairs", "value": "1,234", "formula": "that share a band"}],
        "scrubbed": {"email": 31, "public_ip": 2},
        "benchmarks": [
            {
                "benchmark": "gsm8k",
                "split": "train",
                "allowed": True,
                "items": 7473,
                "found": 7000,
                "documents": 7100,
            },
            {
                "benchmark": "gsm8k",
                "split": "test",
                "allowed": False,
                "items": 1319,
                "found": 2,
                "documents": 1,
            },
            {"benchmark": "arc", "split": "test", "allowed": False, "items": 10, "found": 0, "documents": 0},
        ],
        "contamination": [
            {
                "benchmark": "gsm8k",
                "split": "test",
                "item": "t/1",
                "document": f"d{words}",
                "source": "web",
                "n_words": 13,
            }
            | {"span": f"Natalia sold clips{words}", "allowed": False}
        ],
        "quarantine": [
            {
                "source": "web",
                "file": f"a.jsonl{words}",
                "position": 12,
                "error": f"no JSON{words}",
                "count": 3,
            }
        ],
        "quarantined": 3,
        "plan": [{"quantity": "time", "value": 41.5, "formula": "bytes / rate"}],
    }


def headings(text: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", text)


def plain(text: str) -> str:
    return re.sub(r"\s+", " ", " ".join(Outline(text.partition("</style>")[2]).text))


def test_every_section_says_what_counts(tmp_path: Path) -> None:
    url = str(tmp_path / "report.html")
    page.write(content(), url)
    text = Path(url).read_text()
    assert headings(text) == [
        "The funnel",
        "Every rule, and what it saw",
        "Duplicates",
        "Benchmarks",
        "Replaced in the text",
        "Unreadable input",
        "The plan",
    ]
    words = plain(text)
    for said in (
        "1,000 documents came in from 2 sources, 600 stay.",
        "Removed 3 of the 6 documents that it saw",
        "← removed below 50",
        "removed above 0.3 →",
        "1 rule of fineweb removed nothing",
        "phase data deliberately holds gsm8k/train: 7,000 of 7,473 items in 7,100 documents",
        "gsm8k/test must not be in the data and was found: 2 of 1,319 items in 1 document; it was only reported",
        "3 records could not be read",
        "Removed 100 documents.",
    ):
        assert said in words, said
    assert "<del>old</del>" in text
    assert "<ins>new</ins>" in text
    assert "nothing signal" not in words  # a rule that saw no document has no card
    page.write(content(), url)
    assert Path(url).read_text() == text


def test_nothing_is_loaded_and_nothing_runs() -> None:
    text = page.page(content())
    outline = Outline(text)
    assert not {tag for tag, _ in outline.tags} & {
        "script",
        "link",
        "iframe",
        "img",
        "object",
        "embed",
        "base",
    }
    anchors = {attributes["id"] for _, attributes in outline.tags if "id" in attributes}
    for _, attributes in outline.tags:
        assert not [
            name for name in attributes if name.startswith("on") or name in ("src", "srcset", "action")
        ]
        if "href" in attributes:  # links lead to places of the page alone, and those exist
            assert (attributes["href"] or "")[1:] in anchors
            assert (attributes["href"] or "").startswith("#")
    assert not re.search(r"url\(|@import|https?://", text)
    assert "default-src 'none'" in text
    assert (outline.wrong, outline.open) == ([], [])


def test_charts_are_wellformed_and_have_titles() -> None:
    drawn = re.findall(r"<svg.*?</svg>", page.page(content()), re.DOTALL)
    assert len(drawn) == 4  # the outline and three histograms
    for chart in drawn:
        root = ElementTree.fromstring(chart)
        assert root.get("aria-hidden") or root.findtext("title")


def test_text_from_documents_stays_text() -> None:
    outline, clean = Outline(page.page(content(HOSTILE))), Outline(page.page(content(" harmless")))
    assert sorted(tag for tag, _ in outline.tags) == sorted(tag for tag, _ in clean.tags)
    assert outline.wrong == []
    everything = "".join(outline.text)
    for said in (
        "text 1",
        "text 3",
        "id2",
        "n 1",
        "Natalia sold clips",
        "a.jsonl",
        "no JSON",
        "one old cat",
        "demo",
    ):
        assert said + SHOWN in everything, said
    assert not {"\x1b", "\u202e"} & set(everything)


@pytest.mark.parametrize(
    "name", ["rules", "duplicates", "benchmarks", "scrubbed", "quarantine", "plan", "removed", "examples"]
)
def test_a_part_that_is_empty_is_left_out(name: str) -> None:
    empty = {"recipe": "r", "sources": content()["sources"]}
    assert headings(page.page(empty)) == ["The funnel"]
    alone = {**empty, name: content()[name]}
    assert len(headings(page.page(alone))) == (1 if name == "removed" else 2)
    rest = content()
    del rest[name]
    assert Outline(page.page(rest)).wrong == []


def bars(rule: dict[str, Any]) -> list[tuple[str, float, str]]:
    """Class, left end and tooltip of every bar, and where the threshold is drawn."""
    root = ElementTree.fromstring(page.histogram(rule))
    found = [
        (each.get("class", ""), float(each.get("x", 0)), each.findtext("title") or "")
        for each in root.iter("rect")
    ]
    cut = next(float(each.get("x1", 0)) for each in root.iter("line") if each.get("class") == "cut")
    return [*found, ("cut", cut, "")]


def test_what_goes_and_what_stays_is_on_either_side_of_the_threshold() -> None:
    *found, (_, cut, _) = bars(rule("a", "<", 50, "words", [0, 3, 48, 60, 400], 3))
    assert [(kind, "removed" in title) for kind, _, title in found] == [("c2", True)] * 2 + [
        ("c2", True),  # the bin of 48 and 60 holds the threshold and is drawn in two parts
        ("c1", False),
        ("c1", False),
    ]
    assert all((x < cut - 0.1) == (kind == "c2") for kind, x, _ in found)
    assert found[0][2] == "below 0.25: 1, removed"
    *found, (_, cut, _) = bars(rule("a", ">", 0.3, "share", [0, 0.2, 0.31, 1, 2], 3))
    assert [kind for kind, _, _ in found] == ["c1", "c1", "c2", "c2"]
    assert found[-1][2] == "1 and more: 2, removed"
    assert all((x > cut) == (kind == "c2") for kind, x, _ in found)


def test_what_is_zero_stays_where_more_than_zero_goes() -> None:
    *found, _ = bars(rule("a", ">", 0, "0 or 1", [0, 0, 0, 1], 1))
    assert [(kind, title) for kind, _, title in found] == [
        ("c1", "0 to 0.02: 3, stays"),
        ("c2", "1 and more: 1, removed"),
    ]
    *found, _ = bars(rule("a", "<", 1, "words", [0, 1, 2], 1))
    assert [kind for kind, _, _ in found] == ["c2", "c1", "c1"]


def test_the_axis_is_logarithmic_where_edges_are_spaced_by_a_factor() -> None:
    assert page._is_factor([1, 2, 4, 8])
    assert not page._is_factor([1, 2, 3, 4])
    assert not page._is_factor([0, 1, 2])


@pytest.mark.parametrize("op", ["<", ">"])
@pytest.mark.parametrize("unit", ["share", "words"])
@pytest.mark.parametrize("threshold", [-1, 0, 0.1, 1, 50, 1e9])
@pytest.mark.parametrize("values", [[0], [1e9], [0.5, 1e9], [0, 0.3, 0.3]], ids=str)
def test_any_rule_can_be_drawn_within_its_box(
    op: str, unit: str, threshold: float, values: list[float]
) -> None:
    root = ElementTree.fromstring(page.histogram(rule("a", op, threshold, unit, values, 0)))
    width = float(root.get("width", 0))
    assert list(root.iter("rect"))
    for each in root.iter():
        for name in ("x", "x1", "x2"):
            assert 0 <= float(each.get(name, 0)) <= width
    for each in root.iter("rect"):
        assert 0 <= float(each.get("x", 0)) + float(each.get("width", 0)) <= width
        assert float(each.get("height", 0)) > 0


def test_differences_are_marked_word_by_word() -> None:
    ours, theirs = page.difference("The <b>red</b>  fox\nruns", "The blue  fox\nruns fast")
    assert str(ours) == "The <del>&lt;b&gt;red&lt;/b&gt;</del>  fox\nruns"
    assert str(theirs) == "The <ins>blue</ins>  fox\nruns <ins>fast</ins>"
    ours, theirs = page.difference("猫は屋根の上で眠る", "猫は屋根の下で眠る")
    assert "<del>上</del>" in ours
    assert "<ins>下</ins>" in theirs


@pytest.mark.parametrize(
    ("part", "whole", "said"),
    [
        (0, 5, "0 %"),
        (1, 100_000, "0.001 %"),
        (5, 100, "5.0 %"),
        (999, 1000, "99.90 %"),
        (10**9 - 1, 10**9, "99.99 %"),
        (7, 7, "100 %"),
        (1, 0, "0 %"),
    ],
)
def test_a_share_is_never_rounded_to_nothing_or_to_all(part: int, whole: int, said: str) -> None:
    assert page.share(part, whole) == said


def test_a_page_of_a_hundred_rules_is_small() -> None:
    big = content()
    values = np.random.default_rng(0).lognormal(5, 2, 2000)
    big["rules"] = [rule(f"rule_{k}", "<", 50, "words", values, 700) for k in range(100)]
    rows = [{**example(i), "text": "word " * 120} for i in range(10)]
    key = {"profile": "fineweb", "step": "quality"}
    big["examples"] = [{**key, "reason": f"rule_{k}", "removed": rows, "kept": rows} for k in range(100)]
    big["duplicates"] = [
        {**big["duplicates"][0], "text": f"a{i} " * 200, "of_text": f"b{i} " * 200} for i in range(100)
    ]
    text = page.page(big)
    assert len(re.findall(r'class="rule"', text)) == 100
    assert len(text) < 3_000_000
