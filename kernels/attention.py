"""Scaled dot-product attention with one signature for every use: causal, sliding window, documents packed in one row,
grouped-query heads, ALiBi, and queries against a cache.

Letters of tensor names: B rows of the batch, T queries, S keys, H query heads, K key/value heads (H a multiple of K),
D the head's width.

What a query sees is a `Mask`: positions, window and documents, from which each back-end makes what it needs, once for all
layers of a forward pass. Back-ends, all with gradients:

| name        | masks  | ALiBi | skips what is not seen | needs                                             |
| ----------- | ------ | ----- | ---------------------- | ------------------------------------------------- |
| `reference` | all    | yes   | no                     | nothing: mathematics in float32 or float64        |
| `sdpa`      | all    | yes   | CPU; CUDA if full      | nothing: PyTorch's `scaled_dot_product_attention` |
| `triton`    | square | yes   | yes                    | CUDA; bfloat16, float16, float32; D up to 256     |
| `flash`     | square | yes   | yes                    | CUDA and flash-attn; 16 bits; D % 8 = 0, to 256   |
| `flex`      | square | yes   | yes                    | CUDA (CPU: no gradients); compiles for a minute   |

A mask against a cache is not square. It is served by `sdpa` whatever fast back-end is chosen, so that a model trained with
`MOXIN_ATTENTION=triton` also generates with it.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.attention_flash import flash_attention, flash_refuses, warn_if_broken
from kernels.attention_mask import Mask
from kernels.backend import choose, has_numba, has_triton, runs_triton
from kernels.precision import accumulator_dtype

__all__ = ["BACKENDS", "Mask", "attention", "attention_backend"]

BACKENDS = ("reference", "sdpa", "numba", "triton", "flash", "flex")


def attention_backend(
    backend: str | None = None,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    head_dim: int | None = None,
    mask: Mask | None = None,
    alibi: bool = False,
) -> str:
    """The back-end that `attention` takes: `backend`, else the variable `MOXIN_ATTENTION`, else `automatic`.

    Automatic is `numba` on a CPU, and `sdpa` where that does not serve the case. On CUDA it is `flash` where flash-attn is
    installed and serves the case; else `sdpa` for full causal attention, which PyTorch gives to cuDNN or its own
    FlashAttention; else `triton`; else `sdpa` with a mask.
    What is left out is taken as unproblematic: a square, full causal mask, a type and a width that every back-end takes.

    Raises `ValueError` for an unknown name, and for a chosen back-end that cannot serve a square mask, with the reason.
    """
    device = torch.device(device)
    chosen = choose("attention", ("automatic", *BACKENDS), "automatic", backend)
    if mask is not None and not mask.square:
        return "reference" if chosen == "reference" else "sdpa"
    if chosen != "automatic":
        if why := _refuses(chosen, device, dtype, head_dim, mask, alibi):
            fix = "choose another with MOXIN_ATTENTION or backend=, or 'automatic'"
            raise ValueError(f"attention back-end {chosen!r} {why}; {fix}")
        return chosen
    if device.type != "cuda":
        return "sdpa" if _refuses("numba", device, dtype, head_dim, mask, alibi) else "numba"
    if _refuses("flash", device, dtype, head_dim, mask, alibi) is None:
        return "flash"
    warn_if_broken()
    plain = (mask is None or (mask.full and mask.causal)) and not alibi
    return "sdpa" if plain or _refuses("triton", device, dtype, head_dim, mask, alibi) else "triton"


def _refuses(
    name: str,
    device: torch.device,
    dtype: torch.dtype | None,
    head_dim: int | None,
    mask: Mask | None,
    alibi: bool,
) -> str | None:
    """Why a back-end cannot serve a square mask, or None."""
    if name == "numba":
        if device.type != "cpu" or not has_numba():
            return f"needs the package numba and a CPU, not {device}"
        if dtype not in (None, torch.bfloat16, torch.float32):
            return f"takes bfloat16 or float32, not {str(dtype).removeprefix('torch.')}"
        return None if mask is None or mask.causal else "serves causal masks only"
    if name == "flash":
        return flash_refuses(device, dtype, head_dim, alibi)
    if name == "flex":
        from kernels.attention_flex import flex_refuses  # costs a second that most runs need not pay

        return flex_refuses(device, dtype, head_dim)
    if name == "triton":
        if not runs_triton(device):
            missing = "" if has_triton() else "the package triton and "
            return f"needs {missing}a CUDA device, not {device} (or TRITON_INTERPRET=1, for tests)"
        if dtype not in (None, torch.float16, torch.bfloat16, torch.float32):
            return f"takes bfloat16, float16 or float32, not {str(dtype).removeprefix('torch.')}"
        if head_dim is not None and head_dim > 256:
            return f"takes a head_dim up to 256, not {head_dim}"
        if alibi and mask is not None and not mask.causal:
            return "has ALiBi for causal masks only"
    return None


def attention(
    q_BTHD: Tensor,
    k_BSKD: Tensor,
    v_BSKD: Tensor,
    mask: Mask,
    *,
    alibi_slopes_H: Tensor | None = None,
    scale: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """`softmax(scale q k + bias) v` of every query over the keys it sees, [B, T, H, D] in the type of `q`.

    Query head h uses key/value head h // (H / K). `scale` is 1/sqrt(D) by default. `alibi_slopes_H` [H] are constants
    (arXiv 2108.12409): the bias is minus slope times distance. Inputs may be views of one fused projection.

    Raises `ValueError` where heads or shapes do not fit each other or the mask, for a scale that is not positive, for slopes
    that want gradients, and for a back-end that is unknown or cannot serve the case (`attention_backend`).
    """
    _check(q_BTHD, k_BSKD, v_BSKD, mask, alibi_slopes_H)
    scale = q_BTHD.shape[3] ** -0.5 if scale is None else scale
    if not scale > 0:
        raise ValueError(f"scale={scale} of attention is not positive; leave it out for 1/sqrt(head_dim)")
    name = attention_backend(
        backend,
        device=q_BTHD.device,
        dtype=q_BTHD.dtype,
        head_dim=q_BTHD.shape[3],
        mask=mask,
        alibi=alibi_slopes_H is not None,
    )
    arguments = (q_BTHD, k_BSKD, v_BSKD, mask, alibi_slopes_H, scale)
    if name == "numba":
        from kernels.attention_numba import numba_attention

        return numba_attention(*arguments)
    if name == "triton":
        from kernels.attention_triton import triton_attention

        return triton_attention(*arguments)
    if name == "flex":
        from kernels.attention_flex import flex_attention_of

        return flex_attention_of(*arguments)
    return {"reference": _reference, "sdpa": _sdpa, "flash": flash_attention}[name](*arguments)


def _check(q_BTHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, mask: Mask, slopes_H: Tensor | None) -> None:
    (b, t, h, d), (s, n_kv) = q_BTHD.shape, k_BSKD.shape[1:3]
    if h % n_kv:
        raise ValueError(
            f"{h} query heads are no multiple of {n_kv} key/value heads: change n_heads or n_kv_heads of the model"
        )
    if k_BSKD.shape != v_BSKD.shape or k_BSKD.shape != (b, s, n_kv, d):
        shapes = ", ".join(str(list(x.shape)) for x in (q_BTHD, k_BSKD, v_BSKD))
        raise ValueError(f"queries, keys and values {shapes} differ in rows or head_dim")
    if not q_BTHD.dtype == k_BSKD.dtype == v_BSKD.dtype:
        raise ValueError(
            f"queries, keys and values are {q_BTHD.dtype}, {k_BSKD.dtype} and {v_BSKD.dtype}: give all one type"
        )
    if (mask.q_index_BT.shape[1], mask.k_index_BS.shape[1]) != (t, s):
        of = (mask.q_index_BT.shape[1], mask.k_index_BS.shape[1])
        raise ValueError(f"a mask of {of[0]} queries and {of[1]} keys does not fit {t} queries and {s} keys")
    if mask.q_segments_BT is not None and mask.q_segments_BT.shape not in ((1, t), (b, t)):
        raise ValueError(f"segments_BT {list(mask.q_segments_BT.shape)} do not fit {b} rows of {t} tokens")
    if slopes_H is not None and (slopes_H.shape != (h,) or slopes_H.requires_grad):
        grad = ", with gradients" if slopes_H.requires_grad else ""
        raise ValueError(
            f"ALiBi takes one constant slope per query head: {h}, not {list(slopes_H.shape)}{grad}; detach() them"
        )


def _reference(
    q_BTHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, mask: Mask, slopes_H: Tensor | None, scale: float
) -> Tensor:
    groups = q_BTHD.shape[2] // k_BSKD.shape[2]
    wide = accumulator_dtype(q_BTHD.dtype)
    q, k, v = (
        x.to(wide) for x in (q_BTHD, k_BSKD.repeat_interleave(groups, 2), v_BSKD.repeat_interleave(groups, 2))
    )
    scores_BHTS = torch.einsum("bthd,bshd->bhts", q, k) * scale
    if slopes_H is not None:
        scores_BHTS = scores_BHTS + mask.alibi(slopes_H.to(wide))
    scores_BHTS = scores_BHTS.masked_fill(~mask.dense.unsqueeze(1), -math.inf)
    return torch.einsum("bhts,bshd->bthd", scores_BHTS.softmax(-1), v).to(q_BTHD.dtype)


def _sdpa(
    q_BTHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, mask: Mask, slopes_H: Tensor | None, scale: float
) -> Tensor:
    q_BHTD, k_BKSD, v_BKSD = (x.transpose(1, 2) for x in (q_BTHD, k_BSKD, v_BSKD))
    on_cpu = q_BHTD.device.type == "cpu"
    if mask.full and slopes_H is None:
        out_BHTD = F.scaled_dot_product_attention(
            q_BHTD, k_BKSD, v_BKSD, is_causal=mask.causal, scale=scale, enable_gqa=True
        )
        return out_BHTD.transpose(1, 2)
    if slopes_H is None:
        seen = mask.dense.unsqueeze(1)
    else:  # distances in 16 bits would be whole numbers only up to 256
        seen = mask.alibi(slopes_H.to(accumulator_dtype(q_BHTD.dtype))).to(q_BHTD.dtype)
    if not on_cpu:  # with a mask, CUDA's fast kernels take as many key/value heads as query heads
        groups = q_BHTD.shape[1] // k_BKSD.shape[1]
        k_BKSD, v_BKSD = k_BKSD.repeat_interleave(groups, 1), v_BKSD.repeat_interleave(groups, 1)
    out_BHTD = F.scaled_dot_product_attention(
        q_BHTD, k_BKSD, v_BKSD, attn_mask=seen, scale=scale, enable_gqa=on_cpu
    )
    return out_BHTD.transpose(1, 2)
