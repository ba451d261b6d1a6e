# mypy: disable-error-code="no-untyped-def"
"""Rotary embedding in Triton: each pair of dimensions is read once, rotated in float32 and written once, in place or not."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.checks import require

PAIRS = 2048
"""Most pairs of dimensions that a program rotates at a time."""


def rotate(x_BTHD: Tensor, cos: Tensor, sin: Tensor, sign: float, n_rotated: int, out_BTHD: Tensor) -> None:
    """See `kernels.rope.Rotate`; `x` and `out` may be strided, `out` with a contiguous last dimension."""
    require("rope", x_BTHD, cos, sin, out_BTHD)
    b, t, h, d = x_BTHD.shape
    if not x_BTHD.numel():
        return
    if out_BTHD.stride(3) != 1:
        raise ValueError(
            f"rope: heads are rotated in place where the last dimension is contiguous, not {x_BTHD.stride()}"
        )
    if x_BTHD.stride(3) != 1:
        x_BTHD = x_BTHD.contiguous()
    cos, sin = cos.contiguous(), sin.contiguous()
    half = triton.next_power_of_2(d // 2)
    heads = min(triton.next_power_of_2(h), max(1, PAIRS // half))
    with torch.cuda.device_of(x_BTHD):
        _rotate_kernel[(b * t, triton.cdiv(h, heads))](
            x_BTHD,
            out_BTHD,
            cos,
            sin,
            t,
            h,
            n_rotated,
            d // 2,
            *x_BTHD.stride()[:3],
            *out_BTHD.stride()[:3],
            0 if cos.shape[0] == 1 else t * (d // 2),
            sign,
            HEADS=heads,
            HALF=half,
            num_warps=4,
        )


@triton.jit
def _rotate_kernel(
    x, out, cos, sin, n_tokens, n_heads, n_rotated, half, x_stride_b, x_stride_t, x_stride_h, out_stride_b,
    out_stride_t, out_stride_h, angle_stride_b, sign,
    HEADS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    b = token // n_tokens
    t = token % n_tokens
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    pair = tl.arange(0, HALF)
    angle = b * angle_stride_b + t * half + pair
    c = tl.load(cos + angle, mask=pair < half, other=1.0)[None, :]
    s = tl.load(sin + angle, mask=pair < half, other=0.0)[None, :] * sign
    inside = (head < n_heads)[:, None] & (pair < half)[None, :]
    at = x + b * x_stride_b + t * x_stride_t + head[:, None] * x_stride_h + pair[None, :]
    low = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    high = tl.load(at + half, mask=inside, other=0.0).to(tl.float32)
    rotated = (head < n_rotated)[:, None]
    new_low = tl.where(rotated, low * c - high * s, low)
    new_high = tl.where(rotated, high * c + low * s, high)
    to = out + b * out_stride_b + t * out_stride_t + head[:, None] * out_stride_h + pair[None, :]
    tl.store(to, new_low.to(out.dtype.element_ty), mask=inside)
    tl.store(to + half, new_high.to(out.dtype.element_ty), mask=inside)
