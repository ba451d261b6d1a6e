"""The CPU's attention against float64: values, gradients, blocks that are skipped, threads, and not-a-number."""

import pytest
import torch
from torch import Tensor

from kernels import attention_numba
from kernels.attention import Mask, attention


def case(t: int, h: int, kv: int, d: int, packed: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """A fused projection [2, T, H + 2K, D], from which queries, keys and values are views, and documents."""
    generator = torch.Generator().manual_seed(t + h + d)
    qkv = torch.randn(2, t, h + 2 * kv, d, generator=generator).to(dtype)
    starts = torch.rand(2, t, generator=generator) < 1 / 20
    return qkv, starts.cumsum(1) if packed else None


def run(
    qkv: Tensor, heads: tuple[int, int], mask: Mask, slopes_H: Tensor | None, upstream: Tensor, backend: str
) -> tuple[Tensor, Tensor]:
    """The output, and the gradient of the projection."""
    h, kv = heads
    leaf = qkv.detach().clone().requires_grad_()
    q, k, v = leaf.split((h, kv, kv), 2)
    out = attention(q, k, v, mask, alibi_slopes_H=slopes_H, backend=backend)
    out.backward(upstream.to(out.dtype))
    assert leaf.grad is not None
    return out.detach(), leaf.grad


@pytest.mark.parametrize("alibi", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("window", [None, 1, 40])
@pytest.mark.parametrize(
    ("t", "h", "kv", "d"), [(131, 4, 4, 16), (70, 6, 2, 32), (257, 3, 1, 64), (1, 2, 2, 112)]
)
def test_values_and_gradients_are_those_of_float64(
    t: int,
    h: int,
    kv: int,
    d: int,
    window: int | None,
    packed: bool,
    alibi: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention_numba, "BLOCK_BYTES", 1)  # the smallest blocks there are
    qkv, segments = case(t, h, kv, d, packed, torch.float32)
    slopes = torch.linspace(0.02, 0.5, h) if alibi else None
    upstream = torch.randn(2, t, h, d)
    mask = Mask.packed(t, qkv.device, window, segments)
    wide = slopes.double() if slopes is not None else None
    ours = run(qkv, (h, kv), mask, slopes, upstream, "numba")
    exact = run(qkv.double(), (h, kv), mask, wide, upstream, "reference")
    for got, expected in zip(ours, exact, strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("alibi", [False, True])
def test_bfloat16_is_as_near_as_pytorch(alibi: bool) -> None:
    """Within twice PyTorch's error, as FlashAttention's tests have it.

    Scores are rounded to bfloat16 here and not there: 1.35 to 1.48 times the error in the output, 0.90 to 0.94 times in the
    gradient (Zen 4).
    """
    qkv, segments = case(200, 6, 2, 32, True, torch.bfloat16)
    slopes = torch.linspace(0.02, 0.5, 6) if alibi else None
    upstream = torch.randn(2, 200, 6, 32).bfloat16()
    mask = Mask.packed(200, qkv.device, 64, segments)
    wide = slopes.double() if slopes is not None else None
    exact = run(qkv.double(), (6, 2), mask, wide, upstream, "reference")
    ours, torchs = (run(qkv, (6, 2), mask, slopes, upstream, name) for name in ("numba", "sdpa"))
    for got, peer, expected in zip(ours, torchs, exact, strict=True):
        error, allowed = ((x - expected).square().mean().sqrt() for x in (got, peer))
        assert error <= 2 * allowed


def test_threads_and_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    qkv, segments = case(300, 4, 2, 32, True, torch.float32)
    upstream, mask = torch.randn(2, 300, 4, 32), Mask.packed(300, qkv.device, 128, segments)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(run(qkv, (4, 2), mask, None, upstream, "numba"))
    finally:
        torch.set_num_threads(before)
    monkeypatch.setattr(attention_numba, "BLOCK_BYTES", 1 << 40)
    whole = run(qkv, (4, 2), mask, None, upstream, "numba")
    for one, two, all_at_once in zip(*results, whole, strict=True):
        assert torch.equal(one, two)
        torch.testing.assert_close(one, all_at_once, rtol=1e-5, atol=1e-5)


def test_keys_that_no_block_sees_are_not_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Poison outside every window of the later queries stays outside: those keys are skipped, not multiplied by zero."""
    monkeypatch.setattr(attention_numba, "BLOCK_BYTES", 1)
    parts = [torch.randn(1, 512, 2, 16) for _ in range(3)]
    mask = Mask.packed(512, parts[0].device, 32)
    clean = attention(parts[0], parts[1], parts[2], mask, backend="numba")
    for x in parts[1:]:
        x[:, :64] = float("nan")
    poisoned = attention(parts[0], parts[1], parts[2], mask, backend="numba")
    assert poisoned[:, 64:95].isnan().all()
    assert torch.equal(poisoned[:, 128:], clean[:, 128:])


@pytest.mark.parametrize("where", [0, 1, 2])
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("t", [5, 150])
def test_not_a_number_is_not_lost(where: int, sign: float, t: int) -> None:
    """A guard against broken steps looks at the loss; fast arithmetic must not swallow what it looks for."""
    parts = [torch.randn(1, t, 2, 16) for _ in range(3)]
    parts[where][:, 2] = sign * float("nan")
    out = attention(parts[0], parts[1], parts[2], Mask.packed(t, parts[0].device), backend="numba")
    assert out[:, 2].isnan().all()
    if where:
        assert out[:, 2:].isnan().all()
