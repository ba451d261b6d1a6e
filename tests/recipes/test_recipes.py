"""Every recipe is valid, survives JSON, is planned and dry-run; the published ones say what was published."""

import json
from pathlib import Path

import pytest

from moxin import job, plan, recipes
from moxin.config import from_jsonable, to_jsonable
from moxin.curate import profiles
from moxin.plan import cluster, cost
from moxin.recipe import PLACEHOLDER, Recipe
from moxin.recipes.ladder import RUNGS

REAL = [name for name in recipes.RECIPES if name not in ("demo", "smoke")]


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_a_recipe_is_valid_and_survives_json(name: str) -> None:
    recipe = recipes.load(name)
    recipe.validate()
    assert recipe.name == name
    assert from_jsonable(Recipe, json.loads(json.dumps(to_jsonable(recipe)))) == recipe
    for source in recipe.sources:
        assert source.license
        if source.profile:
            profiles.find_profile(source.profile)


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_a_recipe_is_dry_run_without_touching_anything(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    called: list[job.Job] = []
    command = ["--recipe", name, "--dry-run", "--run", str(tmp_path / "run")]
    assert job.main("", called.append, command) == 0
    text = capsys.readouterr().out
    assert "training compute" in text
    assert "peak" in text
    assert ("GPU hours" in text) == (name in REAL)
    assert not called
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", REAL)
def test_a_real_recipe_fits_its_own_gpus_and_raises_no_eyebrow(name: str) -> None:
    recipe = recipes.load(name)
    offer = cluster.of_accelerator(recipe.scaling.accelerator)
    assert cost.run_cost(recipe, offer, recipe.scaling.n_workers) is not None
    unusual = plan.warnings(recipe)
    assert not [warning for warning in unusual if "learning_rate" in warning or "GiB" in warning], unusual


@pytest.mark.parametrize("name", REAL)
def test_a_placeholder_is_refused_by_a_job_before_anything_starts(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    called: list[job.Job] = []
    assert job.main("", called.append, ["--recipe", name, "--run", str(tmp_path / "run")]) == 2
    output = " ".join(capsys.readouterr().out.split())
    assert "is a placeholder" in output
    assert "MOXIN_DATA=s3://bucket/folder" in output
    assert not called
    assert not (tmp_path / "run").exists()


def test_one_variable_says_where_the_corpora_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOXIN_DATA", "s3://mine/corpora/")
    for name in REAL:
        recipe = recipes.load(name)
        assert PLACEHOLDER not in json.dumps(to_jsonable(recipe))
        plan.refuse(recipe)
        assert {source.path.rpartition("/")[0] for source in recipe.sources} == {"s3://mine/corpora"}


def test_moxin_is_as_reported() -> None:
    """arXiv 2412.06845, section 3.3, and the released scripts for SFT and DPO."""
    recipe = recipes.load("moxin_7b")
    pretrain = recipe.pretrain
    assert (recipe.model.n_layers, recipe.model.sliding_window) == (36, 4096)
    assert [phase.context for phase in pretrain.phases] == [2048, 4096, 4096]
    assert sum(phase.tokens for phase in pretrain.phases) > 2e12
    assert (pretrain.optimizer, pretrain.beta1, pretrain.beta2, pretrain.eps) == ("adamw", 0.9, 0.95, 1e-8)
    assert (pretrain.weight_decay, pretrain.schedule, pretrain.min_learning_rate_ratio) == (
        0.1,
        "cosine",
        0.1,
    )
    assert pretrain.warmup_tokens // pretrain.global_batch == 2000
    assert (recipe.sft.epochs, recipe.sft.learning_rate, recipe.sft.global_batch) == (2, 5e-6, 128 * 4096)
    dpo = recipe.dpo
    assert (dpo.beta, dpo.learning_rate, dpo.global_batch, dpo.context) == (5.0, 5e-7, 128, 2048)
    expanded = recipes.load("moxin_7b_expanded")
    assert (expanded.pretrain.learning_rate, bool(expanded.pretrain.initial)) == (2e-6, True)


def test_no_corpus_is_read_more_often_than_its_size_allows() -> None:
    """SlimPajama has 627B tokens; the mix of Moxin's three phases reads it less than once."""
    phases = recipes.load("moxin_7b").pretrain.phases
    read = sum(phase.tokens * phase.mix.get("slimpajama", 0) / sum(phase.mix.values()) for phase in phases)
    assert 0.9 * 627e9 < read <= 627e9


def test_mpt_is_as_its_cards_say() -> None:
    """huggingface.co/mosaicml: mpt-7b, mpt-30b, mpt-7b-storywriter."""
    small, large, story = (recipes.load(name) for name in ("mpt_7b", "mpt_30b", "mpt_7b_storywriter"))
    assert small.pretrain.global_batch == 1760 * 2048
    assert [(phase.tokens, phase.context) for phase in small.pretrain.phases] == [(10**12, 2048)]
    assert [(phase.tokens, phase.context) for phase in large.pretrain.phases] == [
        (10**12, 2048),
        (5 * 10**10, 8192),
    ]
    assert {small.pretrain.optimizer, large.pretrain.optimizer, story.pretrain.optimizer} == {"lion"}
    assert small.scaling.n_workers == 440
    assert sum(small.pretrain.phases[0].mix.values()) == pytest.approx(1.0)
    assert large.model.clip_qkv == 6
    assert (story.model.max_seq_len, story.pretrain.phases[0].context) == (65_536, 65_536)
    # The card's shares of Wikipedia and C4 are that many passes over them: 40B in 8.21, 299B in 2.98.
    limits = {source.name: source.max_epochs for source in small.sources}
    assert limits["wikipedia"] >= 8.21
    assert limits["c4-en"] >= 2.98


@pytest.mark.parametrize("size", RUNGS)
def test_a_rung_follows_from_its_size(size: str) -> None:
    recipe = recipes.load(f"ladder_{size}")
    n = plan.parameters(recipe.model)["total"]
    (phase,) = recipe.pretrain.phases
    assert phase.tokens / n == pytest.approx(20, rel=0.01)
    assert phase.tokens % recipe.pretrain.global_batch == 0
    rows = recipe.pretrain.global_batch // phase.context
    assert rows % recipe.scaling.n_workers == 0
    assert rows & (rows - 1) == 0


def test_higher_rungs_have_lower_rates_and_larger_batches() -> None:
    ladder = [recipes.load(f"ladder_{size}").pretrain for size in RUNGS]
    rates = [pretrain.learning_rate for pretrain in ladder]
    assert rates == sorted(rates, reverse=True)
    # arXiv 2401.02954, figure 3 and equation 1: about 4.2e-4 and 9.2M at 7B on 2T, so above and below that here.
    assert all(4.2e-4 < rate < 3e-3 for rate in rates)
    batches = [pretrain.global_batch for pretrain in ladder]
    assert batches == sorted(batches)
    assert all(100_000 < batch < 9_200_000 for batch in batches)
