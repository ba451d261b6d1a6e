"""Rotary position embedding (Su et al., arXiv 2104.09864) in the half-split layout of Llama and Mistral checkpoints:
dimension i is rotated with dimension i + D/2.

Letters of tensor names: B rows of the batch, T tokens, H heads, D the head's width, X the heads of a fused projection
(queries, keys, values). Back-ends: `reference`, `torch`, `numba`, `triton` (`MOXIN_ROPE`).
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.backend import choose, suited
from kernels.precision import accumulator_dtype

BACKENDS = ("reference", "torch", "numba", "triton")

Rotation = tuple[Tensor, Tensor]
"""cos and sin, each [B or 1, T, 1, D/2], float32."""


def rotation(positions_BT: Tensor, head_dim: int, theta: float, longest: int | None = None) -> Rotation:
    """cos and sin of every position's angles `position * theta^(-2i/D)`, from a table that is kept between calls.

    Every position is below `longest`; without it the largest position is looked up, for which the host waits for a GPU.
    Negative positions mark tokens that are not there; they are given those of position 0. Raises `ValueError` for an odd
    `head_dim`; a position beyond the table is an `IndexError` on a CPU and a device assertion on a GPU.
    """
    if head_dim % 2:
        raise ValueError(
            f"rotary embedding pairs up a head's dimensions: head_dim must be even, not {head_dim}"
        )
    positions = positions_BT.clamp(min=0)
    if longest is None:
        longest = int(positions.max()) + 1 if positions.numel() else 1
    size = max(1024, 1 << (longest - 1).bit_length())
    cos, sin = _table(head_dim, theta, size, positions.device)
    return cos[positions].unsqueeze(2), sin[positions].unsqueeze(2)


def apply_rope(x_BTHD: Tensor, by: Rotation, backend: str | None = None) -> Tensor:
    """Every head of every token rotated by its position, in a new tensor of the type of `x`; `x` may be strided.

    Raises `ValueError` where the rotation is not one for these tokens and heads.
    """
    chosen = _checked(x_BTHD, by, backend)
    if chosen == "reference":
        return apply_rope_reference(x_BTHD, by)
    return _Rope.apply(x_BTHD, *by, chosen)


def rope_(x_BTXD: Tensor, by: Rotation, n_rotated: int, backend: str | None = None) -> Tensor:
    """Rotates the first `n_rotated` heads IN PLACE and returns `x`; the heads after them (values) stay as they are.

    `x` may be a strided view whose last dimension is contiguous. As with PyTorch's own in-place operations, the values
    before the rotation are gone for whatever still needs them to differentiate, which then raises; a projection does not.
    Autograd copies the gradient of a *view* that was changed in place; a tensor that is no view costs no such copy. The
    incoming gradient is never changed. Raises `ValueError` as `apply_rope`, and for an impossible `n_rotated`.
    """
    chosen = _checked(x_BTXD, by, backend)
    if not 0 <= n_rotated <= x_BTXD.shape[2]:
        raise ValueError(f"n_rotated is {n_rotated}: expected 0 to {x_BTXD.shape[2]}, the heads of x")
    if chosen == "reference":
        rotated = apply_rope_reference(x_BTXD[:, :, :n_rotated].clone(), by)
        x_BTXD[:, :, :n_rotated] = rotated
        return x_BTXD
    if not torch.is_grad_enabled():
        rotated = x_BTXD[:, :, :n_rotated]
        _ROTATE[chosen]()(rotated, *by, 1.0, n_rotated, rotated)
        return x_BTXD
    return _RopeInPlace.apply(x_BTXD, *by, n_rotated, chosen)


def rope_backend(device: torch.device, backend: str | None = None, dtype: torch.dtype = torch.float32) -> str:
    """The back-end that a rotation of `dtype` takes on `device`: the argument, else `MOXIN_ROPE`, else what suits both."""
    return choose("rope", BACKENDS, suited(device, dtype), backend)


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


def _checked(x_BTHD: Tensor, by: Rotation, backend: str | None) -> str:
    """The back-end; raises `ValueError` where `by` does not fit `x`."""
    b, t, _, d = x_BTHD.shape
    for part in by:
        if part.shape not in ((1, t, 1, d // 2), (b, t, 1, d // 2)) or d % 2:
            raise ValueError(
                f"a rotation of shape {tuple(part.shape)} does not fit x of shape {tuple(x_BTHD.shape)}: "
                f"expected [{b} or 1, {t}, 1, {d} / 2]"
            )
    return rope_backend(x_BTHD.device, backend, x_BTHD.dtype)


class _Rope(torch.autograd.Function):
    """The gradient of a rotation is the rotation back: nothing but the angles is kept."""

    @staticmethod
    def forward(ctx: Any, x_BTHD: Tensor, cos: Tensor, sin: Tensor, backend: str) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.rotate = _ROTATE[backend]()
        out = torch.empty(x_BTHD.shape, dtype=x_BTHD.dtype, device=x_BTHD.device)
        ctx.rotate(x_BTHD, cos, sin, 1.0, x_BTHD.shape[2], out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        out = torch.empty(grads[0].shape, dtype=grads[0].dtype, device=grads[0].device)
        ctx.rotate(grads[0], *ctx.saved_tensors, -1.0, out.shape[2], out)
        return out, None, None, None


class _RopeInPlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BTXD: Tensor, cos: Tensor, sin: Tensor, n_rotated: int, backend: str) -> Tensor:
        ctx.mark_dirty(x_BTXD)
        ctx.save_for_backward(cos, sin)
        ctx.rotate, ctx.n_rotated = _ROTATE[backend](), n_rotated
        rotated = x_BTXD[:, :, :n_rotated]
        ctx.rotate(rotated, cos, sin, 1.0, n_rotated, rotated)
        return x_BTXD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        out = torch.empty(grads[0].shape, dtype=grads[0].dtype, device=grads[0].device)
        ctx.rotate(grads[0], *ctx.saved_tensors, -1.0, ctx.n_rotated, out)
        return out, None, None, None, None


Rotate = Callable[[Tensor, Tensor, Tensor, float, int, Tensor], None]
"""What a back-end supplies: `rotate(x_BTHD, cos, sin, sign, n_rotated, out_BTHD)` writes to `out`, which may be `x`, the
first `n_rotated` heads rotated (back, where `sign` is -1) and the others as they are."""


def _rotate(x_BTHD: Tensor, cos: Tensor, sin: Tensor, sign: float, n_rotated: int, out_BTHD: Tensor) -> None:
    wide = accumulator_dtype(x_BTHD.dtype)
    low, high = x_BTHD[:, :, :n_rotated].to(wide).chunk(2, -1)
    to = out_BTHD[:, :, :n_rotated]
    direct = out_BTHD.dtype == wide and out_BTHD is not x_BTHD
    rotated = to if direct else torch.empty(to.shape, dtype=wide, device=to.device)
    to_low, to_high = rotated.chunk(2, -1)
    torch.mul(low, cos, out=to_low).addcmul_(high, sin, value=-sign)
    torch.mul(high, cos, out=to_high).addcmul_(low, sin, value=sign)
    if not direct:
        to.copy_(rotated)
    if out_BTHD is not x_BTHD:
        out_BTHD[:, :, n_rotated:] = x_BTHD[:, :, n_rotated:]


def _torch_rotate() -> Rotate:
    return _rotate


def _numba_rotate() -> Rotate:
    from kernels import rope_numba  # only where it is chosen: numba takes 0.3 s to import

    return rope_numba.rotate


def _triton_rotate() -> Rotate:
    from kernels import rope_triton  # only where it is chosen: a machine without a GPU may have no Triton

    return rope_triton.rotate


_ROTATE: dict[str, Callable[[], Rotate]] = {
    "torch": _torch_rotate,
    "numba": _numba_rotate,
    "triton": _triton_rotate,
}
