"""Attention's back-ends against plain loops in float64, and what packing promises.

Triton runs compiled on a GPU, and in its interpreter elsewhere. FlexAttention has no gradients on a CPU, so its are compared
on a GPU only. The kernels' own tests are in `test_attention_triton.py`, flash-attn's calls in `test_attention_flash.py`.
"""

import importlib.util
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kernels import attention as A
from kernels.attention import Mask, attention, attention_backend

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
HAS_TRITON = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
needs_cpu = pytest.mark.skipif(DEVICE.type != "cpu", reason="numba runs on a CPU")
SQUARE = (
    "reference",
    "sdpa",
    pytest.param("numba", marks=needs_cpu),
    pytest.param("triton", marks=needs_triton),
    "flex",
)
"""All back-ends but flash-attn, which needs a GPU."""

if HAS_TRITON and DEVICE.type == "cpu":
    from triton.runtime import interpreter

    patch: Callable[..., None] = interpreter._patch_lang_tensor

    def patch_and_index(tensor: type, scope: interpreter._LangPatchScope) -> None:
        """The interpreter turns loop bounds into numbers by int(array of one), which NumPy 2.4 has made an error."""
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patch_and_index


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
    generator = torch.Generator().manual_seed(b + t + h + d)
    tensors = (torch.randn(b, t, n, d, generator=generator, dtype=torch.float64) for n in (h, kv, kv))
    return [x.to(DEVICE, dtype).requires_grad_() for x in tensors]


def documents(b: int, t: int, padding: int = 0) -> Tensor:
    """Rows of documents of about twelve tokens, `padding` tokens of -1 behind them."""
    starts = torch.rand(b, t, generator=torch.Generator().manual_seed(b * t)) < 1 / 12
    segments = starts.cumsum(1)
    segments[:, t - padding :] = -1
    return segments.to(DEVICE)


@pytest.mark.parametrize("backend", SQUARE)
@pytest.mark.parametrize("alibi", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("window", [None, 1, 5, 64])
@pytest.mark.parametrize(("h", "kv"), [(4, 4), (6, 2), (3, 1)])
def test_agrees_with_the_definition(
    h: int, kv: int, window: int | None, packed: bool, alibi: bool, backend: str
) -> None:
    exact = backend in ("reference", "sdpa")
    q, k, v = (x.detach() for x in random_qkv(2, 13, h, kv, 16, torch.float64))
    segments = torch.tensor([[0] * 4 + [1] * 7 + [-1] * 2, [0] + [1] * 12], device=DEVICE) if packed else None
    slopes = torch.linspace(0.05, 0.5, h, dtype=torch.float64, device=DEVICE) if alibi else None
    mask = Mask.packed(13, q.device, window, segments)
    inputs = [q, k, v] if exact else [x.float() for x in (q, k, v)]
    got = attention(
        *inputs, mask, alibi_slopes_H=slopes if slopes is None or exact else slopes.float(), backend=backend
    )
    tolerance = 1e-9 if exact else 1e-5
    expected = by_loops(
        *(x.cpu() for x in (q, k, v)), window, segments, None if slopes is None else slopes.cpu()
    )
    torch.testing.assert_close(got.double().cpu(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("backend", SQUARE)
def test_nothing_crosses_a_document_or_the_window(backend: str) -> None:
    q, k, v = (x.detach() for x in random_qkv(1, 96, 2, 2, 16, torch.float32))
    segments = (torch.arange(96, device=DEVICE) >= 40).int().unsqueeze(0)
    mask = Mask.packed(96, q.device, 30, segments)

    def changed_by(position: int) -> list[int]:
        before = attention(q, k, v, mask, backend=backend)
        k2, v2 = k.clone(), v.clone()
        k2[:, position] += 100.0
        v2[:, position] -= 100.0
        after = attention(q, k2, v2, mask, backend=backend)
        return (after != before).flatten(2).any(-1)[0].nonzero().flatten().tolist()

    inside = changed_by(45)
    assert (min(inside), max(inside)) == (45, 45 + 29)  # the window ends it
    across = changed_by(39)
    assert across == [39]  # the document ends it


@pytest.mark.parametrize("backend", SQUARE)
def test_packed_is_unpacked(backend: str) -> None:
    lengths = (7, 33, 1, 20)
    q, k, v = (x.detach() for x in random_qkv(1, sum(lengths), 4, 2, 16, torch.float32))
    number = torch.arange(len(lengths), device=DEVICE)
    segments = number.repeat_interleave(torch.tensor(lengths, device=DEVICE)).unsqueeze(0)
    slopes = torch.tensor([0.5, 0.25, 0.1, 0.0], device=DEVICE)
    packed = attention(
        q, k, v, Mask.packed(q.shape[1], DEVICE, 9, segments), alibi_slopes_H=slopes, backend=backend
    )
    alone = [
        attention(*parts, Mask.packed(parts[0].shape[1], DEVICE, 9), alibi_slopes_H=slopes, backend=backend)
        for parts in zip(*(x.split(lengths, 1) for x in (q, k, v)), strict=True)
    ]
    torch.testing.assert_close(packed, torch.cat(alone, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["reference", "sdpa", "flex"])
def test_a_mask_that_is_not_causal_sees_both_ways(backend: str) -> None:
    q, k, v = (x.detach() for x in random_qkv(2, 70, 2, 1, 16, torch.float32))
    segments = documents(2, 70)
    index = torch.arange(70, device=DEVICE)
    seen = (index.unsqueeze(1) - index).abs() < 9
    seen = (seen & (segments.unsqueeze(2) == segments.unsqueeze(1))).unsqueeze(1)
    scores = torch.einsum("bthd,bsd->bhts", q, k[:, :, 0]) / 4
    expected = torch.einsum("bhts,bsd->bthd", scores.masked_fill(~seen, -math.inf).softmax(-1), v[:, :, 0])
    got = attention(q, k, v, Mask.packed(70, DEVICE, 9, segments, causal=False), backend=backend)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_bfloat16_stays_near_the_reference() -> None:
    q, k, v = random_qkv(2, 70, 4, 2, 16, torch.float32)
    mask = Mask.packed(70, q.device, 20)
    exact = attention(q.double(), k.double(), v.double(), mask, backend="reference")
    rounded = attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), mask)
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.double(), exact, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("window", [None, 1, 5, 64])
def test_first_and_end_say_what_is_seen(window: int | None) -> None:
    """Ranges derived from documents and window are those of the comparison of all pairs; both rise, so blocks can skip."""
    segments = documents(3, 50, padding=6)
    segments[1] = 0
    mask = Mask.packed(50, DEVICE, window, segments)
    index = torch.arange(50, device=DEVICE)
    back = index.unsqueeze(1) - index
    seen = (back >= 0) & (back < (window or 50)) & (segments.unsqueeze(2) == segments.unsqueeze(1))
    assert torch.equal(mask.dense, seen)
    assert torch.equal(mask.first_BT.long(), seen.int().argmax(2))
    assert torch.equal(mask.end_BT.long(), 50 - seen.flip(1).int().argmax(1))
    assert (mask.first_BT.dtype, mask.end_BT.dtype) == (torch.int32, torch.int32)
    assert bool((mask.first_BT.diff() >= 0).all() & (mask.end_BT.diff() >= 0).all())
    assert mask.first_BT is mask.first_BT  # once for all layers


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 200])
@pytest.mark.parametrize("t", [640, 600])
def test_flex_lists_the_blocks_that_are_seen(t: int, window: int | None, causal: bool) -> None:
    """Against PyTorch's own, which looks at all pairs; it calls no block of a row's ragged end wholly seen."""
    from torch.nn.attention.flex_attention import create_block_mask

    from kernels.attention_flex import block_mask

    segments = (torch.arange(t, device=DEVICE) >= torch.tensor([[150], [384]], device=DEVICE)).int()
    mask = Mask.packed(t, DEVICE, window, segments, causal=causal)
    ours = block_mask(mask)
    theirs = create_block_mask(ours.mask_mod, 2, None, t, t, device=DEVICE)
    assert torch.equal(ours.to_dense(), theirs.to_dense())
    if t % 128 == 0:
        assert ours.full_kv_num_blocks is not None
        assert torch.equal(ours.full_kv_num_blocks, theirs.full_kv_num_blocks)
    assert block_mask(mask) is ours  # once for all layers


def test_sequence_starts_run_over_all_rows() -> None:
    segments = torch.tensor([[0, 0, 1, 1, 1, -1], [4, 4, 4, 4, 4, 4]], device=DEVICE)
    starts, longest = Mask.packed(6, DEVICE, None, segments).cu_seqlens(2)
    assert (starts.tolist(), starts.dtype, longest) == ([0, 2, 5, 6, 12], torch.int32, 6)
    shared = Mask.packed(6, DEVICE)  # one row of indices stands for any number of rows
    assert [shared.cu_seqlens(n)[0].tolist() for n in (1, 3)] == [[0, 6], [0, 6, 12, 18]]
    assert Mask.packed(6, DEVICE, None, segments[:1]).cu_seqlens(2)[0].tolist() == [0, 2, 5, 6, 8, 11, 12]


def test_the_choice_of_back_end_is_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MOXIN_ATTENTION", raising=False)
    assert attention_backend() == "numba"
    assert attention_backend(dtype=torch.float64) == "sdpa"
    assert attention_backend(mask=Mask.packed(4, torch.device("cpu"), causal=False)) == "sdpa"
    monkeypatch.setenv("MOXIN_ATTENTION", "reference")
    assert attention_backend() == "reference"
    assert attention_backend("sdpa") == "sdpa"
    monkeypatch.setenv("MOXIN_ATTENTION", "fast")
    with pytest.raises(ValueError, match=r"'fast' is not one of .*reference, sdpa.* \(MOXIN_ATTENTION\)"):
        attention_backend()
    monkeypatch.setenv("MOXIN_ATTENTION", "flash")
    with pytest.raises(
        ValueError, match="'flash' needs a CUDA device, not cpu; choose another with MOXIN_ATTENTION"
    ):
        attention_backend()


@needs_triton
def test_the_automatic_choice_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MOXIN_ATTENTION", raising=False)
    monkeypatch.setattr(A, "flash_refuses", lambda *_: "is not available")
    full, window = Mask.packed(64, DEVICE), Mask.packed(64, DEVICE, 8)
    assert attention_backend(device="cuda", mask=full) == "sdpa"
    assert attention_backend(device="cuda", mask=full, alibi=True) == "triton"
    assert attention_backend(device="cuda", mask=window, dtype=torch.bfloat16, head_dim=112) == "triton"
    assert attention_backend(device="cuda", mask=window, dtype=torch.float64) == "sdpa"
    monkeypatch.setattr(A, "flash_refuses", lambda *_: None)
    assert attention_backend(device="cuda", mask=window) == "flash"


@pytest.mark.parametrize("chosen", ["triton", "flash", "flex", "sdpa", "automatic"])
def test_a_cache_is_served_whatever_is_chosen(chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two new tokens against a ring of five entries of which one is empty, in an order of its own."""
    monkeypatch.setenv("MOXIN_ATTENTION", chosen)
    q, k, v = (x.detach() for x in random_qkv(1, 5, 2, 1, 16, torch.float64))
    mask = Mask(torch.tensor([[7, 8]], device=DEVICE), torch.tensor([[-1, 8, 5, 6, 7]], device=DEVICE), 3)
    got = attention(q[:, :2], k, v, mask)
    for i, seen in enumerate(([2, 3, 4], [1, 3, 4])):
        scores = torch.einsum("hd,sd->hs", q[0, i], k[0, seen, 0]) / 4
        torch.testing.assert_close(got[0, i], scores.softmax(-1) @ v[0, seen, 0])


def test_errors_name_the_values_and_the_fix() -> None:
    q, k, v = random_qkv(1, 4, 3, 2, 8)
    with pytest.raises(ValueError, match=r"3 query heads are no multiple of 2 .* n_heads or n_kv_heads"):
        attention(q, k, v, Mask.packed(4, q.device))
    with pytest.raises(ValueError, match=r"sliding_window=0: .* set it to 1 or more"):
        Mask.packed(4, q.device, 0)
    with pytest.raises(
        ValueError, match=r"are torch.float64, torch.float64 and torch.float32: give all one type"
    ):
        attention(k, k, v.float(), Mask.packed(4, q.device))
    with pytest.raises(ValueError, match="a mask of 5 queries and 5 keys does not fit 4 queries and 4 keys"):
        attention(k, k, v, Mask.packed(5, q.device))
    with pytest.raises(ValueError, match=r"segments_BT \[3, 4\] do not fit 1 rows of 4"):
        attention(k, k, v, Mask.packed(4, q.device, None, torch.zeros(3, 4)))
    with pytest.raises(ValueError, match=r"one constant slope per query head: 2, not \[3\]"):
        attention(k, k, v, Mask.packed(4, q.device), alibi_slopes_H=torch.ones(3))
    with pytest.raises(ValueError, match=r"'triton' takes bfloat16, float16 or float32, not float64|needs"):
        attention(k, k, v, Mask.packed(4, q.device), backend="triton")
