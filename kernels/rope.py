"""Rotary position embedding (Su et al., arXiv 2104.09864) in the half-split layout of Llama and Mistral checkpoints:
dimension i is rotated with dimension i + D/2."""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from kernels.precision import accumulator_dtype

Rotation = tuple[Tensor, Tensor]
"""cos and sin, each [B or 1, T, 1, D/2], float32."""


def rotation(positions_BT: Tensor, head_dim: int, theta: float) -> Rotation:
    """cos and sin of every position's angles `position * theta^(-2i/D)`, from a table that is kept between calls.

    Negative positions mark tokens that are not there; they are given those of position 0.
    """
    positions = positions_BT.clamp(min=0)
    longest = int(positions.max()) + 1 if positions.numel() else 1
    size = max(1024, 1 << (longest - 1).bit_length())
    cos, sin = _table(head_dim, theta, size, positions.device)
    return cos[positions].unsqueeze(2), sin[positions].unsqueeze(2)


def apply_rope(x_BTHD: Tensor, by: Rotation) -> Tensor:
    """Every head of every token rotated by its position; the result has the type of `x`."""
    return _Rope.apply(x_BTHD, *by)


def apply_rope_reference(x_BTHD: Tensor, by: Rotation) -> Tensor:
    cos, sin = (torch.cat([part, part], -1) for part in by)
    low, high = x_BTHD.to(accumulator_dtype(x_BTHD.dtype)).chunk(2, -1)
    return (torch.cat([low, high], -1) * cos + torch.cat([-high, low], -1) * sin).to(x_BTHD.dtype)


@lru_cache(maxsize=8)
def _table(head_dim: int, theta: float, size: int, device: torch.device) -> Rotation:
    # The frequencies are rounded to float32 as in the published models, whose weights have learned them so.
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    angles = torch.outer(torch.arange(size, dtype=torch.float32), 1.0 / theta**exponent)
    return angles.cos().to(device), angles.sin().to(device)


def _rotate(x_BTHD: Tensor, cos: Tensor, sin: Tensor, sign: float) -> Tensor:
    low, high = x_BTHD.to(accumulator_dtype(x_BTHD.dtype)).chunk(2, -1)
    out = torch.empty(x_BTHD.shape, dtype=low.dtype, device=low.device)
    out_low, out_high = out.chunk(2, -1)
    torch.mul(low, cos, out=out_low).addcmul_(high, sin, value=-sign)
    torch.mul(high, cos, out=out_high).addcmul_(low, sin, value=sign)
    return out.to(x_BTHD.dtype)


class _Rope(torch.autograd.Function):
    """The gradient of a rotation is the rotation back: nothing but the angles is kept."""

    @staticmethod
    def forward(ctx: Any, x_BTHD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate(x_BTHD, cos, sin, 1.0)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotate(grads[0], cos, sin, -1.0), None, None
