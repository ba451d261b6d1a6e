"""MFU and HFU against llm-foundry's published tables, and against what PyTorch counts in a step of our own model."""

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from moxin import plan
from moxin.model.presets import PRESETS
from moxin.recipe import ModelConfig
from moxin.train import flops

H100, A100 = 989.4e12, 312e12
"""FLOP/s of dense bf16 (NVIDIA's data sheets, SXM)."""
MPT_7B, MPT_30B = PRESETS["mpt_7b"], PRESETS["mpt_30b"]
TABLE = [  # llm-foundry, scripts/train/benchmarking/README.md: model, peak, context, tokens/s/GPU, MFU in percent
    (MPT_7B, H100, 2048, 10_643, 46.44),
    (MPT_7B, H100, 4096, 8_611, 40.42),
    (MPT_7B, H100, 8192, 6_935, 37.14),
    (MPT_7B, H100, 32768, 3_318, 30.94),
    (MPT_7B, H100, 65536, 1_956, 28.59),
    (MPT_7B, H100, 2048, 9_670, 42.20),
    (MPT_30B, H100, 2048, 2_308, 43.92),
    (MPT_30B, H100, 8192, 1_384, 29.92),
    (MPT_7B, A100, 2048, 4_641, 64.23),
    (MPT_7B, A100, 8192, 3_206, 54.47),
    (MPT_7B, A100, 65536, 1_013, 46.97),
    (MPT_30B, A100, 2048, 916, 55.30),
]


@pytest.mark.parametrize(("model", "peak", "context", "rate", "percent"), TABLE)
def test_the_full_convention_gives_llm_foundrys_numbers(model, peak, context, rate, percent):
    """To the table's own precision. What was measured there has learned positions, which long contexts make a part of N."""
    model = dataclasses.replace(model, position="learned", max_seq_len=context)
    found = flops.Utilization(model, 1, peak)(rate, 1.0, context)
    assert 100 * found["mfu_full"] == pytest.approx(percent, rel=0.001)
    assert found["mfu"] < found["mfu_full"]


@pytest.mark.parametrize(("peak", "rate", "percent"), [(H100, 2_308, 58.6), (A100, 916, 73.7)])
def test_full_recomputation_gives_llm_foundrys_hfu(peak, rate, percent):
    """MPT-30B with activation checkpointing; there the output projection counts as made again too, 4/3 in all."""
    full = flops.done_per_token(MPT_30B, 2048, "full", "full") * rate / peak
    head = 2 * sum(flops.parameters(MPT_30B)[part] for part in ("head", "lookup", "norms")) * rate / peak
    assert 100 * (full + head) == pytest.approx(percent, rel=0.002)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_the_parts_are_all_parameters(name):
    model = PRESETS[name]
    assert sum(flops.parameters(model).values()) == plan.parameters(model)["total"]


def test_mean_keys_is_what_counting_gives():
    for context, window in ((1, None), (7, None), (16, 5), (16, 16), (16, 99), (64, 1)):
        positions = torch.arange(context)
        visible = positions[None] <= positions[:, None]
        if window is not None:
            visible &= positions[:, None] - positions[None] < window
        assert flops.mean_keys(context, window) == pytest.approx(visible.sum().item() / context)


SMALL = ModelConfig(n_layers=2, d_model=64, n_heads=4, n_kv_heads=2, d_ff=96, vocab_size=128, max_seq_len=64)


@pytest.mark.slow
def test_a_step_of_transformers_takes_what_we_count():
    """Its plain attention computes the scores of all pairs, as `full` counts them; PyTorch counts its matrix products."""
    transformers = pytest.importorskip("transformers")
    config = transformers.MistralConfig(
        vocab_size=SMALL.vocab_size,
        hidden_size=SMALL.d_model,
        intermediate_size=SMALL.d_ff,
        num_hidden_layers=SMALL.n_layers,
        num_attention_heads=SMALL.n_heads,
        num_key_value_heads=SMALL.n_kv_heads,
        attn_implementation="eager",
    )
    model, context, rows = transformers.MistralForCausalLM(config), 32, 3
    with FlopCounterMode(display=False) as counter:
        model(torch.randint(0, SMALL.vocab_size, (rows, context))).logits.sum().backward()
    seen = flops.forward(SMALL, context, "seen")
    counted = 3 * (seen["blocks"] + seen["head"] + flops.forward(SMALL, context, "full")["scores"])
    assert counter.get_total_flops() / (rows * context) == pytest.approx(counted, rel=0.002)


def test_windows_and_recomputation_do_what_they_say():
    wide = dataclasses.replace(PRESETS["moxin_7b"], sliding_window=None)
    narrow = PRESETS["moxin_7b"]
    assert flops.needed_per_token(narrow, 32768) < flops.needed_per_token(wide, 32768)
    assert flops.needed_per_token(narrow, 4096) == flops.needed_per_token(wide, 4096)
    assert flops.needed_per_token(narrow, 32768, "full") == flops.needed_per_token(wide, 32768, "full")
    mixed = dataclasses.replace(narrow, sliding_window=None, layer_windows=(4096, 0))
    both = [flops.forward(model, 32768, "seen")["scores"] for model in (narrow, wide)]
    assert flops.forward(mixed, 32768, "seen")["scores"] == pytest.approx(sum(both) / 2)
    done = [flops.done_per_token(narrow, 4096, how) for how in ("none", "selective", "full")]
    assert done[0] == flops.needed_per_token(narrow, 4096) < done[1] < done[2] < 4 / 3 * done[0]


def test_a_row_says_nothing_where_no_peak_is_known():
    assert flops.Utilization(SMALL, 1, 0.0)(100, 1.0, 32) == {}
    one, two = (flops.Utilization(SMALL, n, 1e12)(1_000_000, 1.0, 32)["mfu"] for n in (1, 2))
    assert one == pytest.approx(2 * two, rel=1e-3)
