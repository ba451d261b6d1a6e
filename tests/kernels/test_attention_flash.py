"""How flash-attn is called: stand-ins with its signatures compute what its documentation says, one document at a time.

Signatures and conventions: https://github.com/Dao-AILab/flash-attention, `flash_attn/flash_attn_interface.py` and
`flash_attn/cute/interface.py`. The real kernels run in `test_the_real_package` where a GPU and the package are there.
"""

import inspect
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from test_attention import DEVICE, documents, random_qkv
from torch import Tensor

from kernels import attention_flash
from kernels.attention import Mask, attention, attention_backend
from kernels.attention_flash import flash_attention


def by_documents(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    scale: float,
    causal: bool,
    window: tuple[int, int],
    slopes: Tensor | None,
) -> Tensor:
    """ "Query i attends to keys between i - left and i + right inclusive"; a number below 0 is no limit."""
    assert q.ndim == k.ndim == v.ndim == 3
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    assert cu_seqlens_q[0] == 0
    assert cu_seqlens_q[-1] == len(q)
    assert torch.equal(cu_seqlens_q, cu_seqlens_k)
    assert max_seqlen_q == max_seqlen_k == cu_seqlens_q.diff().max()
    assert slopes is None or slopes.dtype == torch.float32
    group = q.shape[1] // k.shape[1]
    outs = []
    for start, end in zip(cu_seqlens_q[:-1].tolist(), cu_seqlens_q[1:].tolist(), strict=True):
        qd, kd, vd = (
            x[start:end].double() for x in (q, k.repeat_interleave(group, 1), v.repeat_interleave(group, 1))
        )
        index = torch.arange(end - start)
        ahead = index - index.unsqueeze(1)
        seen = torch.ones_like(ahead, dtype=torch.bool)
        if causal:
            seen &= ahead <= 0
        if window[0] >= 0:
            seen &= ahead >= -window[0]
        if window[1] >= 0:
            seen &= ahead <= window[1]
        scores = torch.einsum("thd,shd->hts", qd, kd) * scale
        if slopes is not None:
            scores = scores - slopes.double().view(-1, 1, 1) * ahead.abs()
        outs.append(torch.einsum("hts,shd->thd", scores.masked_fill(~seen, -torch.inf).softmax(-1), vd))
    return torch.cat(outs).to(q.dtype)


def second(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
) -> Tensor:
    assert softmax_scale is not None
    lengths = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    return by_documents(q, k, v, *lengths, softmax_scale, causal, window_size, alibi_slopes)


def fourth(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    qv: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int | None, int | None] = (None, None),
    score_mod_bwd: Any = None,
    return_lse: bool = False,
) -> tuple[Tensor, None]:
    assert qv is None
    assert None not in (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale)
    window = tuple(-1 if x is None else x for x in window_size)
    lengths: Any = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale)
    return by_documents(q, k, v, *lengths, causal, window, None), None  # type: ignore[arg-type]


class Installed:
    """Puts stand-ins for the package's two generations in place, on a GPU of the given generation."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch
        self.called: list[str] = []

    def __call__(self, *generations: Any, capability: tuple[int, int] = (9, 0)) -> None:
        self.monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
        names = {second: "flash_attn", fourth: "flash_attn.cute"}
        for function, name in names.items():
            module: Any = ModuleType(name) if function in generations else None  # None: the import fails
            if module is not None:
                module.flash_attn_varlen_func = self._noting(function, name)
            self.monkeypatch.setitem(sys.modules, name, module)
        attention_flash._import.cache_clear()

    def _noting(self, function: Any, name: str) -> Any:
        def noted(*args: Any, **kwargs: Any) -> Any:
            self.called.append(name)
            return function(*args, **kwargs)

        noted.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
        return noted


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Installed]:
    monkeypatch.delenv("MOXIN_ATTENTION", raising=False)
    yield Installed(monkeypatch)
    monkeypatch.undo()
    attention_flash._import.cache_clear()


@pytest.mark.parametrize("function", [second, fourth])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("window", [None, 1, 5])
def test_a_call_means_what_the_mask_means(
    window: int | None, packed: bool, causal: bool, function: Any, installed: Installed
) -> None:
    installed(function)
    q, k, v = (x.detach().cpu() for x in random_qkv(2, 30, 6, 2, 16, torch.float32))
    segments = documents(2, 30, padding=4).cpu() if packed else None
    mask = Mask.packed(30, q.device, window, segments, causal=causal)
    slopes = [None, torch.linspace(0.5, 0.01, 6, dtype=torch.float64)] if function is second else [None]
    for slopes_H in slopes:
        got = flash_attention(q, k, v, mask, slopes_H, 0.3)
        expected = attention(q, k, v, mask, alibi_slopes_H=slopes_H, scale=0.3, backend="reference")
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_which_generation_is_called(installed: Installed) -> None:
    q, k, v = (x.detach().cpu() for x in random_qkv(1, 8, 2, 2, 16, torch.float32))
    mask, slopes = Mask.packed(8, q.device), torch.tensor([0.5, 0.25])
    for capability, expected in (
        ((9, 0), "flash_attn.cute"),
        ((8, 0), "flash_attn"),
        ((12, 0), "flash_attn"),
    ):
        installed(second, fourth, capability=capability)
        flash_attention(q, k, v, mask, None, 1.0)
        flash_attention(q, k, v, mask, slopes, 1.0)
        assert installed.called[-2:] == [expected, "flash_attn"]


def test_when_it_is_chosen(installed: Installed) -> None:
    case: dict[str, Any] = {
        "device": "cuda",
        "dtype": torch.bfloat16,
        "head_dim": 112,
        "mask": Mask.packed(64, DEVICE, 8),
    }
    installed(second)
    assert attention_backend(**case) == "flash"
    assert attention_backend(**case, alibi=True) == "flash"
    for wrong, message in (
        ({"dtype": torch.float32}, "takes bfloat16 or float16, not float32"),
        ({"head_dim": 100}, "a head_dim that is a multiple of 8 up to 256, not 100"),
        ({"head_dim": 320}, "a head_dim that is a multiple of 8 up to 256, not 320"),
        ({"device": "cpu"}, "needs a CUDA device, not cpu"),
    ):
        assert attention_backend(**(case | wrong)) != "flash"
        with pytest.raises(ValueError, match=f"'flash' .*{message}"):
            attention_backend("flash", **(case | wrong))
    installed(fourth)
    assert attention_backend(**case) == "flash"
    with pytest.raises(
        ValueError, match=r"'flash' is not available \(flash_attn is not installed; .*no ALiBi"
    ):
        attention_backend("flash", **case, alibi=True)
    installed()
    with pytest.raises(
        ValueError, match=r"flash_attn is not installed; flash_attn\.cute is not installed.*pip install"
    ):
        attention_backend("flash", **case)


def test_a_broken_installation_is_reported(installed: Installed, monkeypatch: pytest.MonkeyPatch) -> None:
    """An extension for another PyTorch fails to import: the automatic choice goes on, but says so."""
    installed()
    monkeypatch.setattr(attention_flash, "_import", lambda name: (None, f"{name}: undefined symbol"))
    attention_flash.warn_if_broken.cache_clear()
    with pytest.warns(UserWarning, match="flash-attn cannot be imported .*undefined symbol"):
        assert attention_backend(device="cuda", mask=Mask.packed(64, DEVICE)) == "sdpa"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("window", "alibi"), [(None, False), (100, False), (100, True)])
def test_the_real_package(window: int | None, alibi: bool) -> None:
    inputs = random_qkv(2, 300, 4, 2, 64, torch.bfloat16)
    mask = Mask.packed(300, DEVICE, window, documents(2, 300))
    slopes = torch.tensor([0.5, 0.25, 0.1, 0.02], device=DEVICE) if alibi else None
    if attention_flash.flash_refuses(DEVICE, torch.bfloat16, 64, alibi):
        pytest.skip("flash-attn is not installed")
    results = []
    for backend in ("flash", "reference"):
        out = attention(inputs[0], inputs[1], inputs[2], mask, alibi_slopes_H=slopes, backend=backend)
        results.append([out, *torch.autograd.grad(out.float().square().sum(), inputs)])
    torch.testing.assert_close(results[0], results[1], rtol=0.05, atol=0.05)
