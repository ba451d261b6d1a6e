"""RMSNorm (Zhang and Sennrich, arXiv 1910.07467), computed in float32 whatever the type of its input."""

from typing import Any

import torch
from torch import Tensor

from kernels.precision import accumulator_dtype


def rms_norm(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """`x / sqrt(mean(x²) + eps) * weight` over the last dimension; the result has the type of `x`."""
    return _RMSNorm.apply(x, weight_D, eps)


def rms_norm_reference(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    wide = x.to(accumulator_dtype(x.dtype))
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight_D).to(x.dtype)


class _RMSNorm(torch.autograd.Function):
    """Keeps the input and one number a row; autograd would keep four tensors of the input's size."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        wide = x.to(accumulator_dtype(x.dtype))
        norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)  # one pass, no square in memory
        scale = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight_D, scale)
        return (wide * scale).mul_(weight_D).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor, None]:
        x, weight_D, scale = ctx.saved_tensors
        d = x.shape[-1]
        unit = x.to(scale.dtype) * scale
        weight = weight_D.to(scale.dtype)
        grad = grads[0].to(scale.dtype)
        product = grad * unit
        grad_weight = product.view(-1, d).sum(0)
        along = (
            (product @ weight).unsqueeze(-1).div_(-d)
        )  # the part of the gradient that would change the norm
        grad_x = (grad * weight).addcmul_(unit, along).mul_(scale)
        return grad_x.to(x.dtype), grad_weight.to(weight_D.dtype), None
