"""Offers from a cluster file, costs of a run, the cheapest way, and the command that prints them."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from moxin import cli, recipes
from moxin.plan import cluster, cost, memory

ROOT = Path(__file__).resolve().parents[2]
A100 = str(ROOT / "cluster" / "a100.yaml")
H100 = cluster.of_accelerator("H100-80GB", 2.5)


def shown(capsys: pytest.CaptureFixture[str]) -> str:
    output = capsys.readouterr()
    return " ".join((output.out + output.err).split())


def test_the_cluster_file_offers_what_it_allows() -> None:
    (offer,) = cluster.of_file(A100)
    assert (offer.name, offer.most_gpus, offer.spot, offer.machine.gpu) == ("a100", 32, False, "A100-40GB")
    assert offer.dollars_per_gpu_hour == pytest.approx(21.96 / 8)
    assert cluster.gpu_counts(offer, 1000) == [1, 8, 16, 32]
    assert cluster.of_file(A100, 1.25)[0].dollars_per_gpu_hour == 1.25


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a100": {"max_workers": 0}}, "no node type has GPUs and max_workers above 0"),
        ({"a100": {"node_config": {"InstanceType": "p4d.48xlarge"}}}, "did you mean 'p4d.24xlarge'"),
        (None, "no `available_node_types`"),
    ],
)
def test_a_cluster_file_that_offers_nothing_is_refused(
    change: dict[str, dict[str, object]] | None, message: str, tmp_path: Path
) -> None:
    config = yaml.safe_load(Path(A100).read_text())
    if change is None:
        del config["available_node_types"]
    else:
        for name, values in change.items():
            config["available_node_types"][name] |= values
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match=message):
        cluster.of_file(str(tmp_path / "c.yaml"))


def test_what_is_no_cluster_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        cluster.of_file(str(tmp_path / "none.yaml"))
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(ValueError, match="not YAML"):
        cluster.of_file(str(tmp_path / "bad.yaml"))


def test_a_step_has_the_recipes_batch_on_any_number_of_gpus() -> None:
    recipe = recipes.load("moxin_7b")
    for n_gpus in (8, 96, 100, 1024):
        found = cost.run_cost(recipe, H100, n_gpus)
        assert found is not None
        for phase, given in zip(found.phases, recipe.pretrain.phases, strict=True):
            setup = phase.setup
            assert phase.micro_batch % given.context == 0
            # The slowest worker's rows; others may have one less.
            rows = -(-recipe.pretrain.global_batch // given.context // n_gpus)
            assert setup.micro_batch * setup.accumulation == pytest.approx(rows * given.context)
            assert setup.micro_batch <= phase.micro_batch < setup.micro_batch + given.context
            assert phase.steps == given.tokens // recipe.pretrain.global_batch
            assert phase.memory.total <= memory.usable_bytes("H100-80GB")
    assert cost.run_cost(recipe, H100, 2048) is None  # 1024 rows of 4096


def test_whole_machines_are_paid_for() -> None:
    found = cost.run_cost(recipes.load("ladder_60m"), H100, 4)
    assert found is not None
    assert found.gpu_hours == pytest.approx(2 * 4 * found.hours)
    assert found.dollars == pytest.approx(2.5 * found.gpu_hours)


def test_an_explicit_micro_batch_that_does_not_fit_is_no_option() -> None:
    recipe = recipes.load("moxin_7b")
    large = replace(recipe, pretrain=replace(recipe.pretrain, micro_batch=2**20))
    assert cost.run_cost(large, H100, 4) is None
    found = cost.run_cost(replace(recipe, pretrain=replace(recipe.pretrain, micro_batch=4096)), H100, 64)
    assert found is not None
    assert [phase.micro_batch for phase in found.phases] == [4096] * 3


def test_the_cheapest_comes_first_and_fits() -> None:
    recipe = recipes.load("mpt_30b")
    offers = [cluster.of_accelerator("A100-40GB", 2.0), H100]
    found = cost.options(recipe, offers, [8, 64])
    assert [each.dollars for each in found] == sorted(each.dollars for each in found)
    # 30B x (2 + 2 + 8) bytes do not fit eight 40 GB cards.
    assert not [each for each in found if each.offer.machine.gpu == "A100-40GB" and each.n_gpus == 8]
    for each in found:
        assert each.peak.total <= memory.usable_bytes(each.offer.machine.gpu)
    best = cost.best_by_count(found)
    assert [(each.offer.name, each.n_gpus) for each in best] == [
        ("A100-40GB", 64),
        ("H100-80GB", 8),
        ("H100-80GB", 64),
    ]


def test_checkpoints_hold_weights_and_moments() -> None:
    recipe = recipes.load("moxin_7b")
    n = 8_114_180_096
    assert cost.checkpoint_bytes(recipe) == cost.Checkpoint(12 * n, 4 * n)
    assert cost.checkpoint_bytes(recipes.load("mpt_7b")).state == 8 * 6_649_286_656


def test_the_command_compares_on_a_cluster(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "--recipe", "ladder_1.3b", "--cluster", A100, "--gpus", "8,16,64"]) == 0
    text = shown(capsys)
    assert "left out: 64 GPUs" in text  # the file has 32
    for part in ("1,288,800,256", "8 × A100-40GB (p4d.24xlarge)", "cheapest:", "$2.75 a GPU hour", "ZeRO"):
        assert part in text


def test_the_command_draws_a_curve(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "curve.html"
    command = ["plan", "--recipe", "ladder_3b", "--gpus", "8,2048", "--simulate", "--out", str(out)]
    assert cli.main(command) == 0
    text = shown(capsys)
    assert "a failure every 50,000 GPU hours" in text
    assert "another training run" in text
    assert out.read_text().startswith("<!doctype html>")


def test_the_command_needs_a_gpu_only_for_hours(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan"]) == 0
    assert "Hours and dollars: --accelerator NAME" in shown(capsys)
    assert cli.main(["plan", "--published"]) == 0
    assert "arXiv 2412.06845" in shown(capsys)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gpus", "8"], "need a GPU: --accelerator NAME or --cluster FILE"),
        (["--accelerator", "A100"], "scaling.accelerator = 'A100' is not known"),
        (["--accelerator", "L4-24GB", "--gpus", "8,x"], "whole numbers from 1 on"),
        (["--out", "x.html"], "--out has no effect without --simulate"),
        (["--recipe", "moxin-7b"], "did you mean 'moxin_7b'"),
        (["--recipe", "mpt_30b", "--gpus", "2"], "no GPU count, ZeRO stage and recomputation fits"),
        (["--set", "pretrain.learning_rat=1"], "did you mean 'learning_rate'"),
        (["--accelerator", "L4-24GB", "--price", "-1"], "must be at least 0"),
    ],
)
def test_a_wrong_plan_ends_with_2(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["plan", *options]) == 2
    assert message in shown(capsys)
