"""Mistakes in a recipe are refused or warned of before a worker starts, by the name of the setting."""

from dataclasses import replace
from typing import Any

import pytest

from moxin import plan, recipes
from moxin.config import override
from moxin.plan import advice
from moxin.recipe import Recipe


def with_settings(name: str, **settings: Any) -> Recipe:
    recipe = recipes.load(name)
    for key, value in settings.items():
        recipe = override(recipe, key.replace("__", "."), str(value))
    return recipe


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("demo", {"pretrain__phases__phase2__tokens": 0}, "a phase without tokens"),
        ("demo", {"pretrain__phases__phase2__tokens": 1000}, "less than one step of 2048"),
        ("demo", {"pretrain__phases__phase2__context": 512}, "exceeds model.max_seq_len = 256"),
        ("demo", {"pretrain__global_batch": 2000}, "must be a multiple of context"),
        ("demo", {"pretrain__micro_batch": 100}, "holds no sequence of context"),
        ("demo", {"pretrain__learning_rate": 0}, "pretrain.learning_rate = 0.0: must be above 0"),
        ("demo", {"pretrain__muon_momentum": 0.9}, "has no effect with pretrain.optimizer = adamw"),
        ("demo", {"pretrain__decay_tokens": 100}, "it belongs to wsd"),
        ("demo", {"scaling__accelerator": "A100"}, "scaling.accelerator = 'A100' is not known"),
    ],
)
def test_impossible_settings_are_refused(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        with_settings(name, **settings).validate()


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("pretrain.beta3", "0.9", "unknown key 'beta3'; did you mean 'beta"),
        ("pretrain.optimizer", "adam", "did you mean 'adamw'"),
        ("pretrain.micro_batch", "most", "expected int"),
    ],
)
def test_unknown_options_are_refused_with_the_nearest(key: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        override(recipes.load("demo"), key, text)


def test_a_micro_batch_may_be_automatic() -> None:
    assert override(recipes.load("demo"), "pretrain.micro_batch", "auto").pretrain.micro_batch == "auto"
    assert override(recipes.load("demo"), "pretrain.micro_batch", "4096").pretrain.micro_batch == 4096


def test_choices_hold_for_recipes_from_python_and_json_too() -> None:
    recipe = recipes.load("demo")
    pretrain = recipe.pretrain
    phases = (replace(pretrain.phases[0], packing="best"),)  # type: ignore[arg-type]
    changes: list[tuple[dict[str, Any], str]] = [
        ({"pretrain": replace(pretrain, optimizer="sgd")}, "pretrain.optimizer = 'sgd': one of adamw"),  # type: ignore[arg-type]
        ({"pretrain": replace(pretrain, micro_batch="most")}, "pretrain.micro_batch = 'most': one of auto"),  # type: ignore[arg-type]
        ({"model": replace(recipe.model, norm="batch")}, "model.norm = 'batch'"),  # type: ignore[arg-type]
        ({"pretrain": replace(pretrain, phases=phases)}, "pretrain.phases.phase1.packing = 'best'"),
    ]
    for change, message in changes:
        with pytest.raises(ValueError, match=message.replace(".", r"\.")):
            replace(recipe, **change).validate()


def test_two_phases_of_one_name_are_refused() -> None:
    recipe = recipes.load("demo")
    phases = (recipe.pretrain.phases[0],) * 2
    with pytest.raises(ValueError, match="two are called 'phase1'"):
        replace(recipe, pretrain=replace(recipe.pretrain, phases=phases)).validate()


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (
            "moxin_7b",
            {"pretrain__learning_rate": 3e-2},
            "above what is usual for 8,114M parameters with adamw",
        ),
        ("moxin_7b", {"pretrain__learning_rate": 2e-6}, "below what is usual"),
        ("mpt_7b", {"pretrain__learning_rate": 3e-3}, "with lion from fresh weights"),
        ("mpt_7b_storywriter", {"pretrain__learning_rate": 1e-2}, "going on from pretrain.initial"),
        (
            "demo",
            {"pretrain__phases__phase3__learning_rate": 0.5},
            "pretrain.phases.phase3.learning_rate = 0.5 is above",
        ),
        ("demo", {"pretrain__warmup_tokens": 900_000}, "pretrain.warmup_tokens = 900,000 is 50%"),
        (
            "demo",
            {"pretrain__phases__phase3__context": 64},
            "phase3.context = 64 is shorter than 256 of phase phase2",
        ),
        ("demo", {"model__max_seq_len": 320}, "does not divide model.max_seq_len = 320"),
        ("demo", {"scaling__n_workers": 8, "pretrain__global_batch": 2560}, "cannot share evenly"),
        (
            "demo",
            {"pretrain__micro_batch": 300},
            "pretrain.micro_batch = 300 holds rows of 128 for 256 tokens only",
        ),
        ("demo", {"sft__context": 256, "pretrain__phases__phase2__context": 128}, ""),
        (
            "moxin_7b",
            {"pretrain__micro_batch": 131_072},
            "what fits, the fastest first: --set pretrain.micro_batch=",
        ),
    ],
)
def test_what_is_unusual_is_said(name: str, settings: dict[str, Any], message: str) -> None:
    recipe = with_settings(name, **settings)
    said = " | ".join(plan.warnings(recipe))
    assert message in said


def test_usual_rates_hold_those_of_published_models() -> None:
    """Peak rates as published: OPT and GPT-3, Llama 1 to 3, OLMo, DeepSeek, Mistral-sized, SmolLM."""
    for n, rate in (
        (125e6, 6e-4),
        (135e6, 3e-3),
        (350e6, 3e-4),
        (1.2e9, 4e-4),
        (6.7e9, 1.2e-4),
        (7e9, 3e-4),
        (7e9, 4.2e-4),
        (8e9, 3e-4),
        (67e9, 3.2e-4),
        (70e9, 1.5e-4),
        (175e9, 6e-5),
        (405e9, 8e-5),
    ):
        low, high = advice.usual_learning_rate(round(n), "adamw")
        assert low <= rate <= high, (n, rate, low, high)
        low, high = advice.usual_learning_rate(round(n), "lion")
        assert low <= rate / 4 <= high
    assert advice.usual_learning_rate(8_000_000_000, "adamw")[0] > 2e-6


def test_a_model_that_no_setting_fits_is_refused_before_anything_starts() -> None:
    recipe = with_settings("moxin_7b", scaling__accelerator="L4-24GB", scaling__zero_stage=0)
    for source in ("slimpajama", "dclm", "code", "capability"):
        recipe = override(recipe, f"sources.{source}.path", "here")
    recipe = override(recipe, "tokenizer.path", "there")
    recipe = override(recipe, "curate.classifier.model", "there")
    recipe = override(recipe, "curate.benchmarks", "there")
    with pytest.raises(
        ValueError, match=r"pretrain.phases.phase1: one row of 2048 .* what fits, the fastest first: --set"
    ):
        plan.refuse(recipe)
    plan.refuse(override(recipe, "scaling.accelerator", "B200-180GB"))


def test_the_demo_raises_no_eyebrow() -> None:
    assert plan.warnings(recipes.load("demo")) == []
