# mypy: disable-error-code="no-untyped-def"
"""Rotary embedding in numba: each token's heads are copied, unless they are rotated in place, and rotated in the cache."""

import torch
from numba import float32, prange
from torch import Tensor

from kernels.numba_math import LIKE, get, kernel, part, put, require, row_at, threads_for

TOKENS = 16
"""A thread takes so many tokens at a time."""
WIDE = LIKE[torch.float32]


def rotate(x_BTHD: Tensor, cos: Tensor, sin: Tensor, sign: float, n_rotated: int, out_BTHD: Tensor) -> None:
    """See `kernels.rope.Rotate`; `x` and `out` may be strided, `out` with a contiguous last dimension."""
    require("rope", x_BTHD, cos, sin)
    assert (out_BTHD.dtype, out_BTHD.shape) == (x_BTHD.dtype, x_BTHD.shape)
    b, t, h, d = x_BTHD.shape
    if out_BTHD.stride(3) != 1 and d > 1:
        raise ValueError(
            f"rope: heads are rotated in place where the last dimension is contiguous, not {x_BTHD.stride()}"
        )
    if x_BTHD.stride(3) != 1:
        x_BTHD = x_BTHD.contiguous()
    cos, sin = cos.float().contiguous(), sin.float().contiguous()
    threads_for(x_BTHD.numel())
    _rotate(
        x_BTHD.data_ptr(),
        *x_BTHD.stride()[:3],
        out_BTHD.data_ptr(),
        *out_BTHD.stride()[:3],
        LIKE[x_BTHD.dtype],
        cos.data_ptr(),
        sin.data_ptr(),
        0 if len(cos) == 1 else t * (d // 2),
        sign,
        n_rotated,
        b * t,
        t,
        h,
        d // 2,
    )


@part
def rotate_tokens(
    first, last, x_at, x_stride_b, x_stride_t, x_stride_h, out_at, out_stride_b, out_stride_t, out_stride_h, like, cos_at,
    sin_at, angle_stride_b, sign, n_rotated, t, n_heads, half,
):  # fmt: skip
    """Some of the tokens."""
    wide_sign = float32(sign)
    for token in range(first, last):
        b, at = token // t, token % t
        x_offset, out_offset = b * x_stride_b + at * x_stride_t, b * out_stride_b + at * out_stride_t
        if x_at != out_at:
            for head in range(n_heads):
                x = row_at(x_at, x_offset + head * x_stride_h, 2 * half, like)
                out = row_at(out_at, out_offset + head * out_stride_h, 2 * half, like)
                for i in range(2 * half):
                    out[i] = x[i]
        angles = b * angle_stride_b + at * half
        cos, sin = row_at(cos_at, angles, half, WIDE), row_at(sin_at, angles, half, WIDE)
        for head in range(n_rotated):
            low = row_at(out_at, out_offset + head * out_stride_h, half, like)
            high = row_at(out_at, out_offset + head * out_stride_h + half, half, like)
            for i in range(half):
                left, right, c, s = get(low, i), get(high, i), cos[i], sin[i] * wide_sign
                put(low, i, left * c - right * s)
                put(high, i, right * c + left * s)


@kernel
def _rotate(
    x_at, x_stride_b, x_stride_t, x_stride_h, out_at, out_stride_b, out_stride_t, out_stride_h, like, cos_at,
    sin_at, angle_stride_b, sign, n_rotated, n_tokens, t, n_heads, half,
):  # fmt: skip
    for block in prange((n_tokens + TOKENS - 1) // TOKENS):
        rotate_tokens(
            block * TOKENS, min(block * TOKENS + TOKENS, n_tokens), x_at, x_stride_b, x_stride_t, x_stride_h, out_at,
            out_stride_b, out_stride_t, out_stride_h, like, cos_at, sin_at, angle_stride_b, sign, n_rotated, t, n_heads,
            half,
        )  # fmt: skip
