"""RMSNorm (Zhang and Sennrich, arXiv 1910.07467) and LayerNorm without a bias (Ba et al., arXiv 1607.06450), each alone or
fused with the addition to the residual stream before it; computed in float32 whatever the type of the input.

Back-ends: `reference`, `torch`, `numba`, `triton` (`MOXIN_NORM`). A back-end is a forward and a backward function, see
`Kernels`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.backend import choose, suited
from kernels.precision import accumulator_dtype

BACKENDS = ("reference", "torch", "numba", "triton")


def rms_norm(x: Tensor, weight_D: Tensor, eps: float, backend: str | None = None) -> Tensor:
    """`x / sqrt(mean(x²) + eps) * weight` over the last dimension; the result has the shape and type of `x`.

    `weight_D` may have another floating type (a float32 master of a bfloat16 model); its gradient has that type. Raises
    `ValueError` for a weight of another length, and where the `numba` or `triton` back-end is asked for and cannot run.
    """
    return _normalise(x, None, weight_D, eps, False, backend)[0]


def layer_norm(x: Tensor, weight_D: Tensor, eps: float, backend: str | None = None) -> Tensor:
    """`(x - mean(x)) / sqrt(var(x) + eps) * weight` over the last dimension, otherwise as `rms_norm`.

    MPT's low-precision LayerNorm: a bfloat16 input stays bfloat16, its statistics are float32, and there is no bias.
    """
    return _normalise(x, None, weight_D, eps, True, backend)[0]


def add_rms_norm(
    x: Tensor, delta: Tensor, weight_D: Tensor, eps: float, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """`(rms_norm(x + delta), x + delta)` in one pass: a residual addition and the norm that follows it.

    `x` and `delta` share their shape; the sum has the type of `x`, `delta` that type or a narrower one (a bfloat16 product
    on a float32 stream). What is normalised is the rounded sum. Both results are differentiable, and `x` and `delta` receive
    the same gradient, each in its type.
    """
    return _normalise(x, delta, weight_D, eps, False, backend)


def add_layer_norm(
    x: Tensor, delta: Tensor, weight_D: Tensor, eps: float, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """`(layer_norm(x + delta), x + delta)`, otherwise as `add_rms_norm`."""
    return _normalise(x, delta, weight_D, eps, True, backend)


def norm_backend(device: torch.device, backend: str | None = None, dtype: torch.dtype = torch.float32) -> str:
    """The back-end that a norm of `dtype` takes on `device`: the argument, else `MOXIN_NORM`, else what suits both."""
    return choose("norm", BACKENDS, suited(device, dtype), backend)


def rms_norm_reference(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    wide = x.to(accumulator_dtype(x.dtype))
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight_D).to(x.dtype)


def layer_norm_reference(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    wide = x.to(accumulator_dtype(x.dtype))
    wide = wide - wide.mean(-1, keepdim=True)
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight_D).to(x.dtype)


class Kernels(NamedTuple):
    """What a back-end supplies. `centred` is True for LayerNorm; `mean` and `scale` are one number a row, [..., 1].

    `forward(x, delta | None, weight_D, eps, centred) -> (normed, x + delta or x, mean | None, scale)`;
    `backward(grad, grad_sum | None, x, weight_D, mean | None, scale) -> (grad_x, grad_weight_D)`, `x` being the sum.
    """

    forward: Callable[
        [Tensor, Tensor | None, Tensor, float, bool], tuple[Tensor, Tensor, Tensor | None, Tensor]
    ]
    backward: Callable[[Tensor, Tensor | None, Tensor, Tensor, Tensor | None, Tensor], tuple[Tensor, Tensor]]


def _normalise(
    x: Tensor, delta: Tensor | None, weight_D: Tensor, eps: float, centred: bool, backend: str | None
) -> tuple[Tensor, Tensor]:
    if weight_D.shape != x.shape[-1:]:
        raise ValueError(f"a norm over {x.shape[-1]} columns has a weight of shape {tuple(weight_D.shape)}")
    if delta is not None and (delta.shape != x.shape or torch.promote_types(x.dtype, delta.dtype) != x.dtype):
        raise ValueError(
            f"a norm of x + delta takes two tensors of one shape, delta of no wider type: x is {tuple(x.shape)} "
            f"{x.dtype}, delta {tuple(delta.shape)} {delta.dtype}"
        )
    chosen = norm_backend(x.device, backend, x.dtype)
    if chosen == "reference":
        total = x if delta is None else x + delta
        return (layer_norm_reference if centred else rms_norm_reference)(total, weight_D, eps), total
    if (
        not torch.is_grad_enabled()
    ):  # a forward pass of a few tokens has a dozen calls for each layer: no detour
        return _KERNELS[chosen]().forward(x, delta, weight_D, eps, centred)[:2]
    if delta is None:
        return _Norm.apply(x, weight_D, eps, centred, chosen), x
    return _AddNorm.apply(x, delta, weight_D, eps, centred, chosen)


class _Norm(torch.autograd.Function):
    """Keeps the input and one or two numbers a row; autograd would keep four tensors of the input's size."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float, centred: bool, backend: str) -> Tensor:
        ctx.kernels = _KERNELS[backend]()
        normed, x, mean, scale = ctx.kernels.forward(x, None, weight_D, eps, centred)
        ctx.save_for_backward(x, weight_D, mean, scale)
        return normed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        x, weight_D, mean, scale = ctx.saved_tensors
        grad_x, grad_weight_D = ctx.kernels.backward(grads[0], None, x, weight_D, mean, scale)
        return grad_x, grad_weight_D, None, None, None


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, delta: Tensor, weight_D: Tensor, eps: float, centred: bool, backend: str
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(
            False
        )  # after the last block nothing reads the sum: no tensor of zeros for it
        ctx.kernels = _KERNELS[backend]()
        normed, total, mean, scale = ctx.kernels.forward(x, delta, weight_D, eps, centred)
        ctx.save_for_backward(total, weight_D, mean, scale)
        return normed, total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        grad, grad_total = grads
        if grad is None:
            return grad_total, grad_total, None, None, None, None
        total, weight_D, mean, scale = ctx.saved_tensors
        grad_x, grad_weight_D = ctx.kernels.backward(grad, grad_total, total, weight_D, mean, scale)
        return grad_x, grad_x, grad_weight_D, None, None, None


def _forward(
    x: Tensor, delta: Tensor | None, weight_D: Tensor, eps: float, centred: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    if delta is not None:
        x = x + delta
    wide = x.to(accumulator_dtype(x.dtype))
    mean = None
    if centred:
        mean = wide.mean(-1, keepdim=True)
        wide = wide - mean
    norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)  # one pass, no square in memory
    scale = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return (wide * scale).mul_(weight_D).to(x.dtype), x, mean, scale


def _backward(
    grad: Tensor, grad_sum: Tensor | None, x: Tensor, weight_D: Tensor, mean: Tensor | None, scale: Tensor
) -> tuple[Tensor, Tensor]:
    d = x.shape[-1]
    wide = x.to(scale.dtype)
    unit = (wide if mean is None else wide - mean) * scale
    weight = weight_D.to(scale.dtype)
    grad = grad.to(scale.dtype)
    product = grad * unit
    grad_weight_D = product.reshape(-1, d).sum(0)
    # The part of the gradient that would change the norm, and for LayerNorm the part that would change the mean.
    along = (product @ weight).unsqueeze(-1).div_(-d)
    grad_x = (grad * weight).addcmul_(unit, along)
    if mean is not None:
        grad_x -= (grad @ weight).unsqueeze(-1).div_(d)
    grad_x.mul_(scale)
    if grad_sum is not None:
        grad_x += grad_sum
    return grad_x.to(x.dtype), grad_weight_D.to(weight_D.dtype)


def _torch_kernels() -> Kernels:
    return Kernels(_forward, _backward)


def _numba_kernels() -> Kernels:
    from kernels import norm_numba  # only where it is chosen: numba takes 0.3 s to import

    return Kernels(norm_numba.forward, norm_numba.backward)


def _triton_kernels() -> Kernels:
    from kernels import norm_triton  # only where it is chosen: a machine without a GPU may have no Triton

    return Kernels(norm_triton.forward, norm_triton.backward)


_KERNELS: dict[str, Callable[[], Kernels]] = {
    "torch": _torch_kernels,
    "numba": _numba_kernels,
    "triton": _triton_kernels,
}
