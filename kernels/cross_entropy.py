"""Cross-entropy fused with the output projection, in chunks of tokens: the full [tokens, vocabulary] logits never exist.

The idea is that of Liger-Kernel's fused linear cross-entropy (arXiv 2410.10989). There a scalar loss lets the gradient be
computed on the way forward; here every token has its own loss (DPO and evaluation need that), so the logits of a chunk are
computed again on the way back, except where one chunk holds them all.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.precision import accumulator_dtype

IGNORE = -100
"""Target of a token that is not in the loss."""
CHUNK_BYTES = 32 * 2**20
"""Most bytes of float32 logits held at a time: 256 tokens at a vocabulary of 32,000."""


def linear_cross_entropy(
    x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, chunk_bytes: int = CHUNK_BYTES
) -> Tensor:
    """`-log softmax(x @ weight.T)[target]` of every token, float32 (float64 for float64), 0 where the target is `IGNORE`.

    Ignored tokens cost nothing: they never reach the projection. `x` and `weight` share a type, targets are int64.
    """
    kept_M = (targets_N != IGNORE).nonzero().squeeze(1)
    if len(kept_M) == len(targets_N):
        return _LinearCrossEntropy.apply(x_ND, weight_VD, targets_N, chunk_bytes)
    nll_M = _LinearCrossEntropy.apply(x_ND[kept_M], weight_VD, targets_N[kept_M], chunk_bytes)
    return torch.zeros(len(targets_N), dtype=nll_M.dtype, device=nll_M.device).index_copy(0, kept_M, nll_M)


def linear_cross_entropy_reference(x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    logits_NV = (x_ND @ weight_VD.T).to(accumulator_dtype(x_ND.dtype))
    return F.cross_entropy(logits_NV, targets_N, ignore_index=IGNORE, reduction="none")


def _softmax(x_ND: Tensor, weight_VD: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities [N, V] and the logits they came from."""
    logits_NV = F.linear(x_ND, weight_VD).to(accumulator_dtype(x_ND.dtype))
    return logits_NV.softmax(-1), logits_NV


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, chunk_bytes: int) -> Tensor:
        chunk = max(1, chunk_bytes // (4 * len(weight_VD)))
        nll_N = torch.empty(len(x_ND), dtype=accumulator_dtype(x_ND.dtype), device=x_ND.device)
        kept: list[Tensor] = []
        for first in range(0, len(x_ND), chunk):
            rows = slice(first, first + chunk)
            probs_NV, logits_NV = _softmax(x_ND[rows], weight_VD)
            # log of the softmax's denominator, from the largest probability: no second pass of exponentials
            denominator_N = logits_NV.amax(-1) - probs_NV.amax(-1).log()
            nll_N[rows] = denominator_N - logits_NV.gather(1, targets_N[rows, None]).squeeze(1)
            if len(x_ND) <= chunk:
                kept.append(probs_NV)
        ctx.save_for_backward(x_ND, weight_VD, targets_N, *kept)
        ctx.chunk = chunk
        return nll_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor, None, None]:
        x_ND, weight_VD, targets_N, *kept = ctx.saved_tensors
        grad_N = grads[0]
        grad_x_ND = torch.empty_like(x_ND)
        # Chunks are summed in float32: bfloat16 sums would lose the smaller ones.
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=grad_N.dtype)
        for first in range(0, len(x_ND), ctx.chunk):
            rows = slice(first, first + ctx.chunk)
            probs_NV = kept[0] if kept else _softmax(x_ND[rows], weight_VD)[0]
            grad_logits_NV = probs_NV * grad_N[rows, None]
            grad_logits_NV.scatter_add_(1, targets_N[rows, None], -grad_N[rows, None])
            grad_logits_NV = grad_logits_NV.to(x_ND.dtype)
            torch.mm(grad_logits_NV, weight_VD, out=grad_x_ND[rows])
            if grad_weight_VD.dtype == x_ND.dtype:
                grad_weight_VD.addmm_(grad_logits_NV.T, x_ND[rows])
            else:
                grad_weight_VD += grad_logits_NV.T @ x_ND[rows]
        return grad_x_ND, grad_weight_VD.to(weight_VD.dtype), None, None
