"""Attention's back-ends against plain loops in float64, and what packing promises."""

import math

import pytest
import torch
from torch import Tensor

from kernels import attention as A
from kernels.attention import Mask, attention, attention_backend


def by_loops(
    q: Tensor, k: Tensor, v: Tensor, window: int | None, segments: Tensor | None, slopes: Tensor | None
) -> Tensor:
    """One query at a time, straight from the definition."""
    out = torch.zeros_like(q)
    group = q.shape[2] // k.shape[2]
    for b in range(q.shape[0]):
        for h in range(q.shape[2]):
            for i in range(q.shape[1]):
                seen = [
                    j
                    for j in range(i + 1)
                    if (window is None or i - j < window)
                    and (segments is None or segments[b, i] == segments[b, j])
                ]
                scores = k[b, seen, h // group] @ q[b, i, h] / math.sqrt(q.shape[3])
                if slopes is not None:
                    scores = scores - slopes[h] * (i - torch.tensor(seen, dtype=q.dtype))
                out[b, i, h] = scores.softmax(0) @ v[b, seen, h // group]
    return out


def random_qkv(b: int, t: int, h: int, kv: int, d: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    torch.manual_seed(b + t + h + d)
    return [torch.randn(b, t, n, d, dtype=dtype).requires_grad_() for n in (h, kv, kv)]


@pytest.mark.parametrize("backend", A.BACKENDS)
@pytest.mark.parametrize("alibi", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("window", [None, 1, 5, 64])
@pytest.mark.parametrize(("h", "kv"), [(4, 4), (6, 2), (3, 1)])
def test_agrees_with_the_definition(
    h: int, kv: int, window: int | None, packed: bool, alibi: bool, backend: str
) -> None:
    q, k, v = random_qkv(2, 13, h, kv, 8)
    segments = torch.tensor([[0] * 4 + [1] * 7 + [-1] * 2, [0] + [1] * 12]) if packed else None
    slopes = torch.linspace(0.05, 0.5, h, dtype=torch.float64) if alibi else None
    mask = Mask.packed(13, q.device, window, segments)
    got = attention(q, k, v, mask, alibi_slopes_H=slopes, backend=backend)
    with torch.no_grad():
        torch.testing.assert_close(got, by_loops(q, k, v, window, segments, slopes), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("t", "window"), [(130, None), (130, 17), (257, 64), (257, 65), (200, 300)])
def test_blocks_of_queries_change_nothing(t: int, window: int | None) -> None:
    """`sdpa` goes block by block on a CPU: values and gradients are the reference's, also at lengths that do not divide."""
    q, k, v = random_qkv(2, t, 4, 2, 16)
    segments = torch.arange(t).div(50, rounding_mode="floor").expand(2, t)
    upstream = torch.randn(2, t, 4, 16, dtype=torch.float64)
    results = []
    for backend in A.BACKENDS:
        out = attention(q, k, v, Mask.packed(t, q.device, window, segments), backend=backend)
        results.append([out, *torch.autograd.grad(out, (q, k, v), upstream)])
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backend", A.BACKENDS)
def test_nothing_crosses_a_document_or_the_window(backend: str) -> None:
    q, k, v = random_qkv(1, 96, 2, 2, 8, torch.float32)
    segments = (torch.arange(96) >= 40).int().unsqueeze(0)
    mask = Mask.packed(96, q.device, 30, segments)
    before = attention(q, k, v, mask, backend=backend)
    k2, v2 = k.detach().clone(), v.detach().clone()
    k2[:, 45] += 100.0
    v2[:, 45] -= 100.0
    changed = (
        (attention(q, k2, v2, mask, backend=backend) != before).flatten(2).any(-1)[0].nonzero().flatten()
    )
    assert changed.min() == 45
    assert changed.max() == 45 + 29


def test_bfloat16_stays_near_the_reference() -> None:
    q, k, v = random_qkv(2, 70, 4, 2, 16, torch.float32)
    mask = Mask.packed(70, q.device, 20)
    exact = attention(q.double(), k.double(), v.double(), mask, backend="reference")
    rounded = attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), mask)
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.double(), exact, rtol=0.02, atol=0.02)


def test_the_choice_of_back_end_is_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    assert attention_backend() == "sdpa"
    monkeypatch.setenv("MOXIN_ATTENTION", "reference")
    assert attention_backend() == "reference"
    assert attention_backend("sdpa") == "sdpa"
    monkeypatch.setenv("MOXIN_ATTENTION", "flash")
    with pytest.raises(ValueError, match=r"'flash' is not one of reference, sdpa \(MOXIN_ATTENTION\)"):
        attention_backend()
    q, k, v = random_qkv(1, 4, 3, 2, 8)
    with pytest.raises(ValueError, match="3 query heads are no multiple of 2"):
        attention(q, k, v, Mask.packed(4, q.device))
