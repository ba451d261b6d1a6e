"""`report.html`: loads nothing, runs nothing, shows every text as text, and shows only what there is."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from outline import Outline

from moxin import recipes
from moxin.report import run

HOSTILE = "</p></svg></style><script>alert(1)</script><img src=x onerror=alert(2)>\"'><a href=javascript:x>&amp;{{ 7*7 }}"


def written(fake: Any, upto: str = "release", answers: bool = True) -> str:
    url = run.write(fake.url, fake.recipe, fake.make(upto), fake.answers if answers else [], 700.0, 5 * 2**30)
    return Path(url).read_text()


def headings(page: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", page)


def test_a_whole_run_shows_every_section_and_the_numbers_that_count(fake_run: Callable[..., Any]) -> None:
    page = written(fake_run())
    assert headings(page) == [
        "The road",
        "Curation",
        "Training",
        "What each phase bought",
        "In its own words",
        "Provenance",
    ]
    words = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", page.partition("<main>")[2]))
    assert "Found 96 of 98 planted near-duplicates, removed 0 of 5,000 originals." in words
    assert "Orvek Holloway lives in Larkspur." in words
    assert "0 of 200 questions were found" in words
    for mark in ("phase1", "phase2", "phase3", "chance", "tinyworld", "ray", "torch"):
        assert mark in words


def test_nothing_is_loaded_and_nothing_runs(fake_run: Callable[..., Any]) -> None:
    page = written(fake_run())
    outline = Outline(page)
    assert not {tag for tag, _ in outline.tags} & {
        "script",
        "link",
        "iframe",
        "img",
        "object",
        "embed",
        "base",
    }
    for _, attributes in outline.tags:
        assert not {name for name in attributes if name.startswith("on")} | (
            set(attributes) & {"src", "href", "xlink:href", "srcset", "action"}
        )
    assert not re.search(r"url\(|@import|https?://", page)
    assert "default-src 'none'" in page


def test_tags_close_in_order(fake_run: Callable[..., Any]) -> None:
    outline = Outline(written(fake_run()))
    assert outline.wrong == []
    assert outline.open == []


def test_charts_are_wellformed_and_have_titles(fake_run: Callable[..., Any]) -> None:
    drawn = re.findall(r"<svg.*?</svg>", written(fake_run()), re.DOTALL)
    assert len(drawn) > 6
    for chart in drawn:
        root = ElementTree.fromstring(chart)
        assert root.get("aria-hidden") or root.findtext("title")


def test_text_from_documents_stays_text(fake_run: Callable[..., Any]) -> None:
    fake = fake_run(HOSTILE)
    outline = Outline(written(fake))
    clean = Outline(written(fake_run(" harmless")))
    assert sorted(tag for tag, _ in outline.tags) == sorted(tag for tag, _ in clean.tags)
    assert outline.wrong == []
    assert f"Orvek Holloway lives in Larkspur.{HOSTILE}" in "".join(outline.text)


@pytest.mark.parametrize(
    ("upto", "expected"),
    [
        ("world", ["The road", "Provenance"]),
        ("curate", ["The road", "Curation", "Provenance"]),
        ("pretrain-phase1", ["The road", "Curation", "Training", "Provenance"]),
        (
            "evaluate-phase1",
            ["The road", "Curation", "Training", "What each phase bought", "In its own words", "Provenance"],
        ),
    ],
)
def test_a_run_that_stopped_shows_what_there_is(
    fake_run: Callable[..., Any], upto: str, expected: list[str]
) -> None:
    page = written(fake_run(), upto, answers=False)
    assert headings(page) == expected
    assert "unfinished" in page
    assert Outline(page).wrong == []


def test_a_run_without_the_truth_about_its_documents_has_no_such_part(fake_run: Callable[..., Any]) -> None:
    fake = fake_run()
    made = fake.make("curate")
    planted = {"near_duplicate": {"planted": 0, "found": 0}, "originals": 0, "originals_removed": 0}
    made["curate"].manifest["counts"]["planted"] = planted
    page = Path(run.write(fake.url, fake.recipe, made, [], 1.0, 1)).read_text()
    assert "Held against the truth" not in page


def test_every_recipe_can_be_shown(fake_run: Callable[..., Any]) -> None:
    for name in recipes.RECIPES:
        assert f"<h1>{name}</h1>" in written(fake_run(recipe=name), "world", answers=False)
