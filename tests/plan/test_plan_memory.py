"""Memory against what autograd saves, what processes grow by, and the ZeRO paper; what fits, and what is proposed."""

import dataclasses
from dataclasses import replace

import pytest

from benchmarks import plan_memory
from moxin import recipes
from moxin.config import override, parse_override
from moxin.model.presets import PRESETS
from moxin.plan import memory
from moxin.recipe import ModelConfig, ScalingConfig

SMALL = ModelConfig(
    n_layers=4, d_model=256, n_heads=8, n_kv_heads=2, d_ff=704, vocab_size=1000, max_seq_len=512
)
MODELS = {
    "mistral": SMALL,
    "qk_norm": replace(SMALL, qk_norm=True, sliding_window=64),
    "mpt": replace(
        SMALL,
        n_kv_heads=8,
        norm="layer",
        activation="gelu",
        position="alibi",
        clip_qkv=6.0,
        tie_embeddings=True,
    ),
}
H100 = ScalingConfig(n_workers=128, use_gpu=True, accelerator="H100-80GB", zero_stage="1")
GIB = 2**30


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "autocast"])
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_what_is_kept_is_what_autograd_saves(
    model: ModelConfig, precision: str, recompute: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOXIN_MATMUL_DTYPE", "bfloat16")
    case = (model, precision, recompute, 2, 256)
    measured, planned = plan_memory.saved_bytes(*case), plan_memory.planned_saved(*case)
    # With `full` the angles of RoPE are alive, but the closures of `checkpoint` hold them, not autograd.
    angles = 2 * 256 * 4 * model.head_dim if recompute == "full" and model.position == "rope" else 0
    assert planned - angles == pytest.approx(measured, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("case", [("60m", "fp32", "none", 2, 1024), ("60m", "bf16", "full", 4, 1024)])
def test_a_process_grows_by_what_is_planned(case: tuple[str, str, str, int, int]) -> None:
    assert plan_memory.planned_rise(*case).total == pytest.approx(plan_memory.train_apart(*case), rel=0.1)


@pytest.mark.parametrize(("stage", "gigabytes"), [(0, 120), (1, 31.4), (2, 16.6), (3, 1.9)])
def test_states_are_those_of_the_zero_paper(stage: int, gigabytes: float) -> None:
    """arXiv 1910.02054, figure 1: 7.5B parameters, 64 workers, mixed-precision Adam."""
    model = PRESETS["moxin_7b"]
    scaling = replace(H100, zero_stage=str(stage))
    n = 8_114_180_096
    total = sum(memory.states(model, scaling, "adamw", 64))
    assert total / n == pytest.approx(gigabytes / 7.5, rel=0.02)


def test_optimizers_keep_what_they_keep() -> None:
    model, n = PRESETS["60m"], 60_959_232
    states = {name: memory.states(model, H100, name, 1)[2] for name in ("adamw", "lion")}
    assert states == {"adamw": 12 * n, "lion": 8 * n}
    blocks = n - 2 * 32000 * 512 - 21 * 512
    assert memory.states(model, H100, "muon", 1)[2] == 8 * blocks + 12 * (n - blocks)
    with pytest.raises(ValueError, match=r"pretrain.optimizer = 'sgd': one of adamw, lion, muon"):
        memory.optimizer_bytes(model, "sgd")


def test_offloading_empties_the_device() -> None:
    scaling = replace(H100, zero_stage="3", offload_optimizer="cpu", offload_parameters="cpu")
    need = memory.of(PRESETS["moxin_7b"], scaling, "adamw", 4096, 4096, 8)
    assert (need.weights, need.gradients, need.optimizer) == (0, 0, 0)
    assert need.buffers > 2e9  # the weights that are gathered to be multiplied with


def test_kinds_add_up_and_stages_need_less_and_less() -> None:
    found = memory.table(PRESETS["moxin_7b"], H100, "adamw", 8192, 4096, 128)
    totals = [need.total for _, need in found]
    assert totals == sorted(totals, reverse=True)
    for _, need in found:
        assert need.total == sum(getattr(need, kind) for kind in memory.KINDS)
    assert [name for name, _ in memory.table(PRESETS["60m"], H100, "muon", 2048, 2048, 8)] == [
        "ZeRO-0",
        "ZeRO-1",
        "ZeRO-2",
    ]


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_the_largest_micro_batch_fits_and_one_row_more_does_not(recompute: str) -> None:
    scaling = replace(H100, recompute=recompute)
    given = (PRESETS["moxin_7b"], scaling, "adamw")
    free = memory.usable_bytes("H100-80GB")
    largest = memory.largest_micro_batch(*given, 2048, 128, free)
    assert largest % 2048 == 0
    assert memory.of(*given, largest, 2048, 128).total <= free
    assert memory.of(*given, largest + 2048, 2048, 128).total > free
    state = sum(memory.states(*given, 128))
    assert memory.largest_micro_batch(*given, 2048, 128, free - state, resident=True) == largest
    assert memory.largest_micro_batch(*given, 2048, 128, 10 * GIB) == 0
    assert memory.largest_micro_batch(*given, 2048, 128, free, most=5000) == 4096


def test_what_is_proposed_can_be_set_fits_and_comes_by_speed() -> None:
    recipe = recipes.load("moxin_7b")
    scaling = replace(recipe.scaling, recompute="none")
    recipe = dataclasses.replace(recipe, scaling=scaling)
    free = memory.usable_bytes("H100-80GB")
    micro = 65_536
    lines = memory.next_settings(recipe.model, scaling, "adamw", micro, 4096, 128, free)
    assert len(lines) == 3
    for line in lines:
        changed = override(recipe, "pretrain.micro_batch", str(micro))
        for text in line.removeprefix("--set ").split(" --set "):
            changed = override(changed, *parse_override(text))
        changed.scaling.validate("adamw")
        size = changed.pretrain.micro_batch
        assert isinstance(size, int)
        need = memory.of(changed.model, changed.scaling, "adamw", size, 4096, changed.scaling.n_workers)
        assert need.total <= free
    assert lines[0] == "--set pretrain.micro_batch=8192"  # nothing is slower for it but the launches


def test_more_workers_are_proposed_where_nothing_else_helps() -> None:
    model, free = PRESETS["mpt_30b"], memory.usable_bytes("A100-40GB")
    scaling = ScalingConfig(n_workers=8, use_gpu=True, accelerator="A100-40GB", zero_stage="1")
    lines = memory.next_settings(model, scaling, "lion", 2048, 2048, 8, free)
    assert lines
    assert all("scaling.zero_stage=3" in line for line in lines)
    assert memory.next_settings(model, scaling, "lion", 2048, 2048, 8, GIB) == []
    muon = memory.next_settings(PRESETS["moxin_7b"], scaling, "muon", 2048, 2048, 8, free)
    assert all("zero_stage=3" not in line for line in muon)
