"""MFU and HFU against llm-foundry's published tables, and against what PyTorch counts in a step of our own model."""

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from moxin.model.presets import PRESETS
from moxin.plan.counts import flops_per_token, in_matrices, recomputed_flops
from moxin.recipe import ModelConfig
from moxin.train.utilization import Utilization

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
    found = Utilization(model, 1, peak)(rate, 1.0, context)
    assert 100 * found["mfu_full"] == pytest.approx(percent, rel=0.001)
    assert found["mfu"] < found["mfu_full"]


@pytest.mark.parametrize(("peak", "rate", "percent"), [(H100, 2_308, 58.6), (A100, 916, 73.7)])
def test_full_recomputation_gives_llm_foundrys_hfu(peak, rate, percent):
    """MPT-30B with activation checkpointing; there the output projection counts as made again too, 4/3 in all."""
    _, needed = flops_per_token(MPT_30B, 2048, window_counted=False)
    again = recomputed_flops(MPT_30B, 2048, "full", window_counted=False)
    assert 100 * (needed + again) * rate / peak == pytest.approx(percent, rel=0.002)


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
    widest = dataclasses.replace(SMALL, max_seq_len=context)
    heads = SMALL.n_heads * SMALL.head_dim
    counted = 3 * (2 * in_matrices(widest) + 4 * SMALL.n_layers * heads * context)
    assert counter.get_total_flops() / (rows * context) == pytest.approx(counted, rel=0.002)


def test_windows_and_recomputation_show():
    narrow = PRESETS["moxin_7b"]
    wide = dataclasses.replace(narrow, sliding_window=None)
    told = {
        (name, how): Utilization(model, 1, H100, how)(1000, 1.0, 32768)
        for name, model in (("narrow", narrow), ("wide", wide))
        for how in ("none", "selective", "full")
    }
    assert told["narrow", "none"]["mfu"] < told["wide", "none"]["mfu"]
    assert told["narrow", "none"]["mfu_full"] == told["wide", "none"]["mfu_full"]
    done = [told["narrow", how]["hfu"] for how in ("none", "selective", "full")]
    assert done[0] == told["narrow", "none"]["mfu"] < done[1] < done[2] <= 4 / 3 * done[0]
    assert told["narrow", "full"]["mfu"] == done[0]


def test_a_row_says_nothing_where_no_peak_is_known():
    assert Utilization(SMALL, 1, 0.0)(100, 1.0, 32) == {}
    one, two = (Utilization(SMALL, n, 1e12)(1_000_000, 1.0, 32)["mfu"] for n in (1, 2))
    assert one == pytest.approx(2 * two, rel=1e-3)
