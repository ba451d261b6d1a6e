"""`results.json`: the keys that the outside relies on, and what a run that stopped on the way leaves out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moxin.report import run
from moxin.report.results import collect


def test_a_whole_run_has_every_promised_number(fake_run: Callable[..., Any]) -> None:
    fake = fake_run()
    run.write(fake.url, fake.recipe, fake.make(), fake.answers, 700.5, 5_000_000_000)
    results = json.loads(Path(fake.url, "results.json").read_text())

    assert results["curation"]["documents_in"] == 14_213
    assert results["curation"]["documents_out"] == 10_801
    assert results["curation"]["planted"]["near_duplicate"] == {"planted": 98, "found": 96}
    assert results["tokens"]["vocab_size"] == 2048
    assert results["tokens"]["total"] == 4_812_331
    assert [phase["name"] for phase in results["pretrain"]["phases"]] == ["phase1", "phase2", "phase3"]
    for phase in results["pretrain"]["phases"]:
        assert phase.keys() >= {"name", "context", "tokens", "loss_first", "loss_last", "tokens_per_second"}
    for name, right in (("pretrained", 0.83), ("sft", 0.93), ("dpo", 0.94)):
        assert results["evaluation"][name]["tinyworld_mc"] == right
        assert results["evaluation"][name].keys() >= {"tinyworld_gen", "chance"}
    assert [phase["name"] for phase in results["evaluation"]["phases"]] == ["phase1", "phase2", "phase3"]
    assert results["export"]["max_abs_logit_difference"] == 2.1e-6
    assert [row.keys() >= {"question", "answer"} for row in results["serve"]["answers"]] == [True] * 3
    assert results["wall_seconds"] == 700.5
    assert results["peak_rss_bytes"] == 5_000_000_000
    assert results["versions"].keys() >= {"python", "ray", "torch", "deepspeed"}
    assert {stage["name"] for stage in results["stages"]} == set(fake.made)
    assert results["hardware"]["memory_bytes"] > 0


@pytest.mark.parametrize(
    ("upto", "absent"),
    [
        ("world", {"curation", "tokens", "pretrain", "sft", "dpo", "evaluation", "export", "serve"}),
        ("pretrain-phase2", {"sft", "dpo", "export", "serve"}),
        ("evaluate-sft", {"dpo", "export", "serve"}),
    ],
)
def test_what_was_not_reached_is_left_out(fake_run: Callable[..., Any], upto: str, absent: set[str]) -> None:
    fake = fake_run()
    results = collect(fake.make(upto), [], 10.0, 1, fake.recipe)
    assert (
        set(results) & {"curation", "tokens", "pretrain", "sft", "dpo", "evaluation", "export", "serve"}
        == {
            "curation",
            "tokens",
            "pretrain",
            "sft",
            "dpo",
            "evaluation",
            "export",
            "serve",
        }
        - absent
    )
    json.dumps(results, allow_nan=False)


def test_half_of_pretraining_is_not_called_the_pretrained_model(fake_run: Callable[..., Any]) -> None:
    fake = fake_run()
    evaluation = collect(fake.make("evaluate-phase2"), [], 1.0, 1, fake.recipe)["evaluation"]
    assert len(evaluation["phases"]) == 2
    assert "pretrained" not in evaluation


def test_stages_that_were_there_before_are_told_from_those_just_made(fake_run: Callable[..., Any]) -> None:
    fake = fake_run()
    made = fake.make("curate")
    made["world"].manifest["finished"] = "2020-01-01T00:00:00Z"
    stages = {stage["name"]: stage for stage in collect(made, [], 60.0, 1, fake.recipe)["stages"]}
    assert stages["world"]["reused"]
    assert not stages["curate"]["reused"]
    assert stages["curate"]["bytes"] > 0
