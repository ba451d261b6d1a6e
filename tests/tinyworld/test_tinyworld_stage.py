"""The stage: the files of the contract, the same bytes every time, and errors that name the setting."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from moxin import artifact, recipes, storage
from moxin.recipe import TinyworldConfig
from moxin.tinyworld.generate import generate
from moxin.tinyworld.stage import stage

FILES = {
    "documents.parquet",
    "planted.jsonl",
    "questions.jsonl",
    "chats.jsonl",
    "preferences.jsonl",
    "interview.jsonl",
    "facts.jsonl",
}
TINY = TinyworldConfig(
    n_people=8,
    n_documents=40,
    n_quiz_documents=8,
    n_questions=8,
    n_chats=8,
    n_preferences=8,
    n_near_duplicates=2,
    n_exact_duplicates=2,
    n_gibberish=2,
    n_foreign=2,
    n_personal=2,
    n_leaks=2,
)


def test_stage_writes_the_files_of_the_contract(tmp_path: Path) -> None:
    recipe = recipes.load("smoke")
    made = artifact.make(stage(recipe), str(tmp_path))
    assert set(made.manifest["files"]) == FILES
    assert made.verify() == []
    table = pq.read_table(made.file("documents.parquet"))
    assert table.column_names == ["id", "text", "source", "license", "url", "lang", "meta"]
    assert {str(field.type) for field in table.schema} == {"string"}
    assert made.counts["documents"] == table.num_rows
    assert made.counts["planted"]["leak"] == recipe.tinyworld.n_leaks
    assert len(storage.read_jsonl(made.file("questions.jsonl"))) == recipe.tinyworld.n_questions


def test_the_same_configuration_gives_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    """Hash randomisation must not show: sets are nowhere walked in their own order."""
    program = (
        "import sys; from moxin import artifact, recipes; from moxin.tinyworld.stage import stage;"
        "artifact.make(stage(recipes.load('smoke')), sys.argv[1])"
    )
    hashes = []
    for seed in ("1", "2"):
        folder = tmp_path / seed
        subprocess.run(
            [sys.executable, "-c", program, str(folder)],
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=Path(__file__).parents[2],
        )
        found = artifact.find(stage(recipes.load("smoke")), str(folder))
        assert found is not None
        hashes.append({name: entry["sha256"] for name, entry in found.manifest["files"].items()})
    assert hashes[0] == hashes[1]


def test_another_seed_is_another_world() -> None:
    one, other = generate(TINY), generate(replace(TINY, seed=1))
    assert {row["sentence"] for row in one.facts} != {row["sentence"] for row in other.facts}
    assert other.interview[0]["question"] == "Where does Orvek Holloway live?"


def test_more_chats_leave_everything_else_as_it_is() -> None:
    one, more = generate(TINY), generate(replace(TINY, n_chats=16))
    assert (one.documents, one.facts, one.questions) == (more.documents, more.facts, more.questions)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"n_people": 4}, "tinyworld.n_people = 4"),
        ({"n_people": 1000}, "tinyworld.n_people = 1000"),
        ({"n_questions": 2}, "tinyworld.n_questions = 2"),
        ({"n_questions": 1000}, "tinyworld.n_questions"),
        ({"n_near_duplicates": 30}, "tinyworld.n_near_duplicates = 30"),
    ],
)
def test_impossible_counts_name_the_setting(change: dict[str, int], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        generate(replace(TINY, **change))
