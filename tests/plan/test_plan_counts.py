"""FLOPs against PyTorch's own counter, what the decoder's mask lets through, and MFUs that others have published."""

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from kernels.attention import Mask
from moxin import hardware
from moxin.model.decoder import Decoder
from moxin.plan import counts
from moxin.recipe import ModelConfig

SMALL = ModelConfig(n_layers=3, d_model=64, n_heads=4, n_kv_heads=2, d_ff=96, vocab_size=200, max_seq_len=64)
MPT = dataclasses.replace(
    SMALL, n_kv_heads=4, norm="layer", activation="gelu", position="alibi", tie_embeddings=True
)


@pytest.mark.parametrize("model", [SMALL, MPT], ids=["mistral", "mpt"])
def test_products_are_those_that_torch_counts(model: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOXIN_ATTENTION", "reference")  # all of T x T: what is causal is taken off below
    context = 32
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        Decoder(model)(torch.zeros(2, context, dtype=torch.int64))
    scores = 4 * model.n_layers * model.n_heads * model.head_dim
    forward, train = counts.flops_per_token(model, context, window_counted=True)
    square = forward - counts.attention_flops(model, context) + scores * context
    assert counter.get_total_flops() == 2 * context * square
    assert train == 3 * forward


@pytest.mark.parametrize("window", [None, 1, 5, 16, 40])
def test_keys_are_those_that_the_mask_shows(window: int | None) -> None:
    mask = Mask.packed(16, torch.device("cpu"), None, None).within(window)
    assert counts.keys_seen(16, window) == mask.dense.sum().item() / 16


def test_windows_are_counted_layer_by_layer() -> None:
    mixed = dataclasses.replace(SMALL, layer_windows=(8, 0, 4))
    per_key = 4 * mixed.n_heads * mixed.head_dim
    seen = counts.keys_seen(64, 8) + counts.keys_seen(64, None) + counts.keys_seen(64, 4)
    assert counts.attention_flops(mixed, 64) == per_key * seen


@pytest.mark.parametrize(
    ("gpu", "layers", "width", "vocabulary", "context", "rate", "mfu"),
    [
        # llm-foundry, scripts/train/benchmarking: MPT shapes with learned positions
        ("H100-80GB", 32, 4096, 50368, 2048, 10_643, 0.4644),
        ("H100-80GB", 32, 4096, 50368, 65_536, 1956, 0.2859),
        ("A100-80GB", 24, 2048, 50368, 8192, 13_814, 0.5669),
        ("A100-40GB", 48, 7168, 50368, 2048, 865, 0.5225),
    ],
)
def test_the_full_convention_gives_the_published_mfu(
    gpu: str, layers: int, width: int, vocabulary: int, context: int, rate: float, mfu: float
) -> None:
    model = dataclasses.replace(
        MPT,
        n_layers=layers,
        d_model=width,
        n_heads=width // 128,
        n_kv_heads=width // 128,
        d_ff=4 * width,
        vocab_size=vocabulary,
        max_seq_len=context,
        position="learned",
    )
    train = counts.flops_per_token(model, context, window_counted=False)[1]
    assert train * rate / hardware.peak_flops(gpu, "bf16") == pytest.approx(mfu, rel=2e-3)


def test_recomputation_of_all_is_a_forward_pass_without_the_head() -> None:
    again = counts.recomputed_flops(SMALL, 64, "full", window_counted=True)
    forward = counts.flops_per_token(SMALL, 64, window_counted=True)[0]
    assert forward - again == 2 * SMALL.vocab_size * SMALL.d_model
    assert counts.recomputed_flops(SMALL, 64, "none", window_counted=True) == 0
    half = counts.recomputed_flops(SMALL, 64, "selective", window_counted=True)
    assert half == 2 * 3 * 3 * 64 * 96
    full = counts.recomputed_flops(SMALL, 64, "full", window_counted=False)
    assert 4 * full == sum(counts.flops_per_token(SMALL, 64, window_counted=False))  # HFU is 4/3 of MFU
