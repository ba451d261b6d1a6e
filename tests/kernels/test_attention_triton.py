"""The Triton kernels: values and gradients against float64 on odd shapes, rounding, views, and what is skipped."""

from collections.abc import Sequence

import pytest
import torch
from test_attention import DEVICE, documents, random_qkv
from torch import Tensor

from kernels.attention import Mask, attention

pytest.importorskip("triton", reason="Triton is not installed")

from kernels.attention_triton import MAX_HEAD_DIM, Blocks, Plan, plan, triton_attention


def blocks(queries: int, keys: int) -> Plan:
    return Plan(*(Blocks(queries, keys) for _ in range(3)))


def with_gradients(out: Tensor, inputs: Sequence[Tensor], upstream: Tensor) -> list[Tensor]:
    return [out, *torch.autograd.grad(out, inputs, upstream.to(out.dtype))]


def exact(inputs: Sequence[Tensor], mask: Mask, slopes: Tensor | None, upstream: Tensor) -> list[Tensor]:
    wide = [x.detach().double().requires_grad_() for x in inputs]
    slopes = None if slopes is None else slopes.double()
    out = attention(wide[0], wide[1], wide[2], mask, alibi_slopes_H=slopes, backend="reference")
    return with_gradients(out, wide, upstream)


def errors(got: Sequence[Tensor], expected: Sequence[Tensor]) -> list[float]:
    """Of out, dq, dk, dv: the largest error in units of the largest value, or of 1: with one key, dq and dk are 0."""
    pairs = zip(got, expected, strict=True)
    return [((a.double() - b).abs().max() / b.abs().max().clamp(min=1)).item() for a, b in pairs]


GRID = [
    # rows, tokens, heads, kv heads, head_dim, window, padding of packed rows, ALiBi
    (2, 70, 2, 2, 16, None, None, False),
    (1, 161, 2, 1, 16, None, None, True),
    (2, 50, 2, 1, 16, 1, None, False),
    (2, 70, 3, 3, 16, 5, 9, True),
    (2, 131, 3, 1, 16, 64, 30, True),
    (1, 131, 4, 1, 64, 64, None, False),
    (2, 65, 6, 2, 64, None, 0, True),
    (1, 97, 3, 1, 112, None, 17, True),
    (1, 75, 2, 1, 128, 40, 3, False),
    (1, 40, 5, 5, 20, 7, 1, True),
    (3, 1, 2, 1, 16, None, None, True),
]


@pytest.mark.parametrize("shape", [(32, 64), (64, 16)], ids=str)
@pytest.mark.parametrize(("b", "t", "h", "kv", "d", "window", "padding", "alibi"), GRID)
def test_float32_is_exact_forward_and_backward(
    b: int,
    t: int,
    h: int,
    kv: int,
    d: int,
    window: int | None,
    padding: int | None,
    alibi: bool,
    shape: tuple[int, int],
) -> None:
    inputs = random_qkv(b, t, h, kv, d, torch.float32)
    mask = Mask.packed(t, DEVICE, window, None if padding is None else documents(b, t, padding))
    slopes = torch.linspace(0.6, 0.004, h, device=DEVICE) if alibi else None
    upstream = random_qkv(b, t, h, kv, d + 1)[0][..., :d].detach()
    out = triton_attention(*inputs, mask, slopes, d**-0.5, blocks(*shape))
    assert out.is_contiguous()
    assert max(errors(with_gradients(out, inputs, upstream), exact(inputs, mask, slopes, upstream))) < 1e-5


@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("packed", [False, True])
def test_masks_that_are_not_causal(packed: bool, window: int | None) -> None:
    inputs = random_qkv(2, 90, 2, 1, 16, torch.float32)
    mask = Mask.packed(90, DEVICE, window, documents(2, 90, 5) if packed else None, causal=False)
    upstream = random_qkv(2, 90, 2, 1, 16)[0].detach()
    out = triton_attention(*inputs, mask, None, 0.25, blocks(32, 16))
    assert max(errors(with_gradients(out, inputs, upstream), exact(inputs, mask, None, upstream))) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("d", "window", "alibi"), [(64, 40, False), (112, None, True)])
def test_16_bits_round_no_worse_than_torch(
    d: int, window: int | None, alibi: bool, dtype: torch.dtype
) -> None:
    """Both round P and dS before they meet V and K; 2 x leaves room for another order of the sums, and for float32 where
    PyTorch keeps it. The interpreter cuts bfloat16 off instead of rounding it, which doubles the error."""
    inputs = random_qkv(1, 130, 2, 1, d, dtype)
    mask = Mask.packed(130, DEVICE, window, documents(1, 130))
    slopes = torch.tensor([0.25, 0.0625], device=DEVICE) if alibi else None
    upstream = random_qkv(1, 130, 2, 1, d, dtype)[1].detach().expand(-1, -1, 2, -1)
    expected = exact(inputs, mask, slopes, upstream)
    out = triton_attention(*inputs, mask, slopes, d**-0.5, blocks(64, 64))
    theirs = attention(inputs[0], inputs[1], inputs[2], mask, alibi_slopes_H=slopes, backend="sdpa")
    assert out.dtype == dtype
    mine = errors(with_gradients(out, inputs, upstream), expected)
    torchs = errors(with_gradients(theirs, inputs, upstream), expected)
    room = 4 if DEVICE.type == "cpu" and dtype == torch.bfloat16 else 2
    assert all(a < room * b for a, b in zip(mine, torchs, strict=True)), (mine, torchs)


def test_views_of_one_fused_projection() -> None:
    """Queries, keys and values as slices of [B, T, (H + 2K) D], a gradient that is a view, and one mask row for all rows."""
    fused = torch.randn(2, 70, 4 * 16, generator=torch.Generator().manual_seed(0)).to(DEVICE).requires_grad_()
    upstream = (
        torch.randn(2, 2, 70, 16, generator=torch.Generator().manual_seed(1)).to(DEVICE).transpose(1, 2)
    )
    mask = Mask.packed(70, DEVICE, 33, documents(1, 70))
    gradients = []
    for backend in ("reference", "triton"):
        q, k, v = fused.unflatten(-1, (4, 16)).split((2, 1, 1), 2)
        assert not q.is_contiguous()
        out = attention(q, k, v, mask, backend=backend)
        gradients.append([out, *torch.autograd.grad(out, fused, upstream)])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-5)


def test_block_sizes_and_repetition() -> None:
    """Another block size is another order of sums, hence the last bits; the same one gives the same bits."""
    inputs = random_qkv(1, 130, 2, 1, 16, torch.float32)
    mask = Mask.packed(130, DEVICE, 50, documents(1, 130))
    upstream = random_qkv(1, 130, 2, 1, 16)[0].detach()
    runs = [
        with_gradients(triton_attention(*inputs, mask, None, 0.25, blocks(*shape)), inputs, upstream)
        for shape in ((32, 32), (32, 32), (128, 16))
    ]
    assert all(torch.equal(a, b) for a, b in zip(runs[0], runs[1], strict=True))
    torch.testing.assert_close(runs[0], runs[2], rtol=1e-5, atol=1e-5)


def poisoned(x: Tensor, keep: slice) -> Tensor:
    """A copy that is no number outside the tokens to keep: whatever is loaded and multiplied, even by zero, spreads it."""
    out = torch.full_like(x, torch.nan)
    out[:, keep] = x.detach()[:, keep]
    return out.requires_grad_()


@pytest.mark.parametrize(
    ("window", "start", "reach"),
    [(20, 0, slice(32, 80)), (None, 33, slice(32, 80)), (None, None, slice(0, 80))],
)
def test_blocks_outside_window_and_document_are_not_loaded(
    window: int | None, start: int | None, reach: slice
) -> None:
    """Queries 64 … 79 in blocks of 16: only the blocks of keys that one of them sees may matter, to `out` and to `dq`."""
    q, k, v = random_qkv(1, 112, 1, 1, 16, torch.float32)
    segments = None if start is None else (torch.arange(112, device=DEVICE) >= start).int().unsqueeze(0)
    mask = Mask.packed(112, DEVICE, window, segments)
    mine = slice(64, 80)

    def run(q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
        out = triton_attention(q, k, v, mask, None, 0.25, blocks(16, 16))
        return [x[:, mine] for x in (out, *torch.autograd.grad(out.nan_to_num().sum(), q))]

    clean, dirty = run(q, k, v), run(q, poisoned(k, reach), poisoned(v, reach))
    assert bool(dirty[0].isfinite().all())
    torch.testing.assert_close(dirty, clean, rtol=0, atol=0)
    too_narrow = slice(reach.start + 16, reach.stop)
    assert bool(run(q, poisoned(k, too_narrow), v)[0].isnan().any())  # the first block in reach is needed


@pytest.mark.parametrize(("window", "end", "reach"), [(20, 112, slice(32, 80)), (None, 79, slice(32, 80))])
def test_blocks_of_queries_that_do_not_look_are_not_loaded(
    window: int | None, end: int, reach: slice
) -> None:
    """Keys 32 … 47: the blocks of queries before them and beyond window or document stay out of `dk` and `dv`."""
    q, k, v = random_qkv(1, 112, 1, 1, 16, torch.float32)
    segments = (torch.arange(112, device=DEVICE) >= end).int().unsqueeze(0)
    mask = Mask.packed(112, DEVICE, window, segments)
    upstream = random_qkv(1, 112, 1, 1, 16, torch.float32)[1].detach()

    def run(q: Tensor, upstream: Tensor) -> list[Tensor]:
        out = triton_attention(q, k, v, mask, None, 0.25, blocks(16, 16))
        return [x[:, 32:48] for x in torch.autograd.grad(out, (k, v), upstream)]

    clean, dirty = run(q, upstream), run(poisoned(q, reach), poisoned(upstream, reach).detach())
    assert all(bool(x.isfinite().all()) for x in dirty)
    torch.testing.assert_close(dirty, clean, rtol=0, atol=0)


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_width_has_blocks_that_the_hardware_takes(
    dtype: torch.dtype, capability: tuple[int, int]
) -> None:
    """Sides are powers of two of at least 16, the smallest that a matrix product takes."""
    for head_dim in (2, 16, 64, 112, 128, 160, MAX_HEAD_DIM):
        chosen = plan(head_dim, dtype, capability)
        for block in (chosen.forward, chosen.keys, chosen.queries):
            assert all(n >= 16 and n & (n - 1) == 0 for n in (block.queries, block.keys))
            assert block.warps in (4, 8)
