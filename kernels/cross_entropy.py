"""Cross-entropy fused with the output projection, in chunks of tokens: the full [tokens, vocabulary] logits never exist.

The idea is that of Liger-Kernel's fused linear cross-entropy (arXiv 2410.10989). Three functions share one core:
`linear_cross_entropy_sum` is for training: its loss is one number, so the gradient of a chunk's logits is known as soon as
the logits are, and everything is done on the way forward. `linear_cross_entropy` and `linear_cross_entropy_lse` give every
token its own loss (DPO, evaluation): the logits are computed again on the way back, except where one chunk holds them all.

Letters of tensor names: N tokens, M those of a chunk that are in the loss, D the width, V the vocabulary.
Back-ends: `reference`, `torch`, `numba`, `triton` (`MOXIN_CROSS_ENTROPY`). Matrix products are PyTorch's in each; a back-end
works on the rows of a chunk of logits, see `Rows`.
"""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.backend import choose, suited
from kernels.precision import accumulator_dtype

BACKENDS = ("reference", "torch", "numba", "triton")
IGNORE = -100
"""Target of a token that is not in the loss."""
CHUNK_BYTES_CPU = 32 * 2**20
CHUNK_BYTES_GPU = 512 * 2**20
"""Most bytes of float32 logits held at a time: 262 or 4194 tokens at a vocabulary of 32,000. After each chunk the whole
gradient of the weight is read and written: on an H100, by arithmetic, a tenth of the products' time at this size."""


def linear_cross_entropy(
    x_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    chunk_bytes: int | None = None,
    backend: str | None = None,
) -> Tensor:
    """`-log softmax(x @ weight.T)[target]` of every token, float32 (float64 for float64), 0 where the target is `IGNORE`.

    Ignored tokens cost nothing: they never reach the projection (to find the others the host waits for a GPU once).
    `x` and `weight` share a floating type, targets are int64. `chunk_bytes` bounds the float32 size of the logits held at a
    time; by default `CHUNK_BYTES_CPU` or `CHUNK_BYTES_GPU`. Raises `ValueError` for shapes or types that do not go together
    and for a target outside the vocabulary; on a GPU, where reading the targets would be another wait, such a target is a
    device assertion.
    """
    return linear_cross_entropy_lse(x_ND, weight_VD, targets_N, chunk_bytes, backend)[0]


def linear_cross_entropy_lse(
    x_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    chunk_bytes: int | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Every token's loss, as `linear_cross_entropy`, and its `logsumexp(x @ weight.T)`, 0 where the target is `IGNORE`.

    Both are differentiable, e.g. for a z-loss (`z * lse²`, PaLM, arXiv 2204.02311, section 5).
    """
    chosen = _checked(x_ND, weight_VD, targets_N, backend)
    if chosen == "reference":
        return linear_cross_entropy_reference(x_ND, weight_VD, targets_N)
    return _PerToken.apply(x_ND, weight_VD, targets_N, chunk_bytes, chosen)


def linear_cross_entropy_sum(
    x_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    z_loss: float = 0.0,
    chunk_bytes: int | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """The sum of `nll + z_loss * lse²` over the tokens that are not ignored, and every token's `nll`; float32 (or float64).

    The first is the loss, a sum, so that micro-batches add up to the batch: divide by the count of the whole batch. Its
    gradient is computed on the way forward, in three matrix products instead of four, and kept for one backward pass
    (`RuntimeError` in a second one); with `torch.no_grad` none is computed. The second, [N], is for reporting and has no
    gradient. Otherwise as `linear_cross_entropy`.
    """
    chosen = _checked(x_ND, weight_VD, targets_N, backend)
    if chosen == "reference":
        nll_N, lse_N = linear_cross_entropy_reference(x_ND, weight_VD, targets_N)
        return (nll_N + z_loss * lse_N.square()).sum(), nll_N.detach()
    # Asked here: inside a Function gradients are always off.
    differentiate = torch.is_grad_enabled()
    return _Sum.apply(x_ND, weight_VD, targets_N, z_loss, chunk_bytes, chosen, differentiate)


def cross_entropy_backend(
    device: torch.device, backend: str | None = None, dtype: torch.dtype = torch.float32
) -> str:
    """The back-end for `dtype` on `device`: the argument, else `MOXIN_CROSS_ENTROPY`, else what suits both."""
    return choose("cross_entropy", BACKENDS, suited(device, dtype), backend)


def linear_cross_entropy_reference(
    x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor
) -> tuple[Tensor, Tensor]:
    """Loss and logsumexp of every token, from all logits at once."""
    logits_NV = (x_ND @ weight_VD.T).to(accumulator_dtype(x_ND.dtype))
    nll_N = F.cross_entropy(logits_NV, targets_N, ignore_index=IGNORE, reduction="none")
    return nll_N, logits_NV.logsumexp(-1).masked_fill(targets_N == IGNORE, 0.0)


class Rows(Protocol):
    """What a back-end does with the rows of a chunk of logits, [M, V]; made anew for every call, so it may keep buffers.

    Targets are int64 [M], statistics and their gradients float32 or float64 [M]; logits may be overwritten.
    """

    def measure(self, logits_MV: Tensor, targets_M: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and logsumexp of every row; the logits stay as they are."""

    def differentiate(
        self, logits_MV: Tensor, targets_M: Tensor, lse_M: Tensor, grad_nll_M: Tensor, grad_lse_M: Tensor
    ) -> Tensor:
        """The gradient of the logits, of their type: `grad_nll * (p - onehot) + grad_lse * p`."""

    def measure_and_differentiate(
        self, logits_MV: Tensor, targets_M: Tensor, z_loss: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, logsumexp, and the gradient that the sum of `nll + z_loss * lse²` gives the logits."""


class _TorchRows:
    def __init__(self) -> None:
        self.probs: Tensor | None = None

    def measure(self, logits_MV: Tensor, targets_M: Tensor) -> tuple[Tensor, Tensor]:
        probs_MV = self._softmax(logits_MV)
        # log of the softmax's denominator, from the largest probability: no second pass of exponentials
        lse_M = logits_MV.amax(-1).to(probs_MV.dtype) - probs_MV.amax(-1).log()
        return lse_M - logits_MV.gather(1, targets_M[:, None]).squeeze(1), lse_M

    def differentiate(
        self, logits_MV: Tensor, targets_M: Tensor, lse_M: Tensor, grad_nll_M: Tensor, grad_lse_M: Tensor
    ) -> Tensor:
        grad_MV = (
            logits_MV.to(lse_M.dtype).sub_(lse_M[:, None]).exp_().mul_((grad_nll_M + grad_lse_M)[:, None])
        )
        grad_MV.scatter_add_(1, targets_M[:, None], -grad_nll_M[:, None])
        return grad_MV.to(logits_MV.dtype)

    def measure_and_differentiate(
        self, logits_MV: Tensor, targets_M: Tensor, z_loss: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        nll_M, lse_M = self.measure(logits_MV, targets_M)
        grad_MV = self._buffer(logits_MV)
        if z_loss:
            grad_MV.mul_((1.0 + 2.0 * z_loss * lse_M)[:, None])
        grad_MV.scatter_add_(1, targets_M[:, None], grad_MV.new_full((len(targets_M), 1), -1.0))
        return nll_M, lse_M, grad_MV.to(logits_MV.dtype)

    def _softmax(self, logits_MV: Tensor) -> Tensor:
        probs_MV = self._buffer(logits_MV)
        return torch.softmax(logits_MV, -1, dtype=probs_MV.dtype, out=probs_MV)

    def _buffer(self, logits_MV: Tensor) -> Tensor:
        """Kept from chunk to chunk: to map 32 MiB of fresh memory takes twice as long as to fill it with a softmax."""
        if self.probs is None:
            self.probs = torch.empty_like(logits_MV, dtype=accumulator_dtype(logits_MV.dtype))
        return self.probs[: len(logits_MV)]


def _torch_rows() -> Rows:
    return _TorchRows()


def _numba_rows() -> Rows:
    from kernels import cross_entropy_numba  # only where it is chosen: numba takes 0.3 s to import

    return cross_entropy_numba.NumbaRows()


def _triton_rows() -> Rows:
    from kernels import (
        cross_entropy_triton,
    )  # only where it is chosen: a machine without a GPU may have no Triton

    return cross_entropy_triton.TritonRows()


_ROWS: dict[str, Callable[[], Rows]] = {"torch": _torch_rows, "numba": _numba_rows, "triton": _triton_rows}


def _checked(x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, backend: str | None) -> str:
    """The back-end; raises `ValueError` where the arguments do not go together."""
    fits = x_ND.ndim == 2 and weight_VD.ndim == 2 and x_ND.shape[1] == weight_VD.shape[1]
    if not fits or targets_N.shape != x_ND.shape[:1]:
        raise ValueError(
            f"cross-entropy takes x [N, D], weight [V, D] and targets [N], not {tuple(x_ND.shape)}, "
            f"{tuple(weight_VD.shape)} and {tuple(targets_N.shape)}"
        )
    if x_ND.dtype != weight_VD.dtype or targets_N.dtype != torch.int64:
        raise ValueError(
            f"cross-entropy takes x and weight of one type and int64 targets, not {x_ND.dtype}, "
            f"{weight_VD.dtype} and {targets_N.dtype}"
        )
    return cross_entropy_backend(x_ND.device, backend, x_ND.dtype)


class _Chunks:
    """The tokens that are in the loss, chunk by chunk."""

    def __init__(self, targets_N: Tensor, vocabulary: int, chunk_bytes: int | None) -> None:
        if chunk_bytes is None:
            chunk_bytes = CHUNK_BYTES_CPU if targets_N.device.type == "cpu" else CHUNK_BYTES_GPU
        kept_M = (targets_N != IGNORE).nonzero().squeeze(1)
        self.all_kept = len(kept_M) == len(targets_N)
        self.kept_M = kept_M
        self.targets_M = targets_N if self.all_kept else targets_N[kept_M]
        self.size = min(max(1, chunk_bytes // (4 * vocabulary)), max(1, len(kept_M)))
        self.one = self.size >= len(kept_M)
        _check_targets(self.targets_M, vocabulary)

    def __iter__(self) -> Iterator[tuple[slice | Tensor, Tensor]]:
        """Where a chunk's tokens are among all, and their targets."""
        for first in range(0, len(self.kept_M), self.size):
            rows = slice(first, first + self.size)
            yield (rows if self.all_kept else self.kept_M[rows]), self.targets_M[rows]


def _check_targets(targets_M: Tensor, vocabulary: int) -> None:
    if not len(targets_M):
        return
    if targets_M.device.type != "cpu":
        inside = ((targets_M >= 0) & (targets_M < vocabulary)).all()
        torch._assert_async(inside, f"cross-entropy: a target is outside the vocabulary of {vocabulary}")
        return
    least, most = (int(value) for value in targets_M.aminmax())
    if least < 0 or most >= vocabulary:
        worst = most if most >= vocabulary else least
        raise ValueError(
            f"target {worst} is outside the vocabulary of {vocabulary}: expected 0 to {vocabulary - 1}, "
            f"or {IGNORE} for a token that is not in the loss"
        )


class _Gradients:
    """The gradients of x and weight, one chunk after another; None for what needs none."""

    def __init__(
        self, x_ND: Tensor, weight_VD: Tensor, chunks: _Chunks, needs_x: bool, needs_weight: bool
    ) -> None:
        self.inputs = x_ND, weight_VD
        self.one = chunks.one
        self.needs_weight = needs_weight
        new = torch.empty_like if chunks.all_kept else torch.zeros_like
        self.x_ND = new(x_ND) if needs_x else None
        self.weight_VD: Tensor | None = None

    def add(self, where: slice | Tensor, grad_logits_MV: Tensor) -> None:
        x_ND, weight_VD = self.inputs
        if self.x_ND is not None:
            self.x_ND[where] = grad_logits_MV @ weight_VD
        if not self.needs_weight:
            return
        x_MD, wide = x_ND[where], accumulator_dtype(x_ND.dtype)
        if self.one or wide == x_ND.dtype:
            if self.weight_VD is None:
                self.weight_VD = grad_logits_MV.T @ x_MD
            else:
                self.weight_VD.addmm_(grad_logits_MV.T, x_MD)
        else:
            # Chunks are summed in float32: bfloat16 sums would lose the smaller ones. A GPU's product is float32 as well.
            if x_ND.device.type == "cuda":
                product_VD = torch.mm(grad_logits_MV.T, x_MD, out_dtype=wide)
            else:
                product_VD = (grad_logits_MV.T @ x_MD).to(wide)
            self.weight_VD = product_VD if self.weight_VD is None else self.weight_VD.add_(product_VD)

    def weight(self) -> Tensor | None:
        """The sum of what was added, still in the type that it was summed in."""
        if self.needs_weight and self.weight_VD is None:
            self.weight_VD = torch.zeros_like(self.inputs[1])
        return self.weight_VD


class _PerToken(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_ND: Tensor,
        weight_VD: Tensor,
        targets_N: Tensor,
        chunk_bytes: int | None,
        backend: str,
    ) -> tuple[Tensor, Tensor]:
        ctx.chunks = chunks = _Chunks(targets_N, len(weight_VD), chunk_bytes)
        ctx.rows = _ROWS[backend]()
        nll_N = torch.zeros(len(x_ND), dtype=accumulator_dtype(x_ND.dtype), device=x_ND.device)
        lse_N = torch.zeros_like(nll_N)
        kept: list[Tensor] = []
        logits_CV = x_ND.new_empty(chunks.size, len(weight_VD))
        for where, targets_M in chunks:
            logits_MV = torch.mm(x_ND[where], weight_VD.T, out=logits_CV[: len(targets_M)])
            nll_N[where], lse_N[where] = ctx.rows.measure(logits_MV, targets_M)
            if chunks.one and any(ctx.needs_input_grad):
                kept.append(logits_MV)
        ctx.save_for_backward(x_ND, weight_VD, lse_N, *kept)
        return nll_N, lse_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        x_ND, weight_VD, lse_N, *kept = ctx.saved_tensors
        grad_nll_N, grad_lse_N = grads
        sums = _Gradients(x_ND, weight_VD, ctx.chunks, *ctx.needs_input_grad[:2])
        logits_CV = None if kept else x_ND.new_empty(ctx.chunks.size, len(weight_VD))
        for where, targets_M in ctx.chunks:
            if logits_CV is None:
                logits_MV = kept[0].clone()  # there may be another backward pass
            else:
                logits_MV = torch.mm(x_ND[where], weight_VD.T, out=logits_CV[: len(targets_M)])
            grad_logits_MV = ctx.rows.differentiate(
                logits_MV, targets_M, lse_N[where], grad_nll_N[where], grad_lse_N[where]
            )
            sums.add(where, grad_logits_MV)
        grad_weight_VD = sums.weight()
        if grad_weight_VD is not None:
            grad_weight_VD = grad_weight_VD.to(weight_VD.dtype)
        return sums.x_ND, grad_weight_VD, None, None, None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_ND: Tensor,
        weight_VD: Tensor,
        targets_N: Tensor,
        z_loss: float,
        chunk_bytes: int | None,
        backend: str,
        differentiate: bool,
    ) -> tuple[Tensor, Tensor]:
        chunks = _Chunks(targets_N, len(weight_VD), chunk_bytes)
        rows = _ROWS[backend]()
        needs_x, needs_weight = (differentiate and needed for needed in ctx.needs_input_grad[:2])
        sums = _Gradients(x_ND, weight_VD, chunks, needs_x, needs_weight)
        nll_N = torch.zeros(len(x_ND), dtype=accumulator_dtype(x_ND.dtype), device=x_ND.device)
        lse_N = torch.zeros_like(nll_N)
        logits_CV = x_ND.new_empty(chunks.size, len(weight_VD))
        for where, targets_M in chunks:
            logits_MV = torch.mm(x_ND[where], weight_VD.T, out=logits_CV[: len(targets_M)])
            if needs_x or needs_weight:
                nll_M, lse_M, grad_logits_MV = rows.measure_and_differentiate(logits_MV, targets_M, z_loss)
                sums.add(where, grad_logits_MV)
            else:
                nll_M, lse_M = rows.measure(logits_MV, targets_M)
            nll_N[where], lse_N[where] = nll_M, lse_M
        ctx.gradients = sums.x_ND, sums.weight()
        ctx.weight_dtype = weight_VD.dtype
        nll = nll_N.sum()
        loss = nll + z_loss * lse_N.square().sum() if z_loss else nll
        ctx.mark_non_differentiable(nll_N)
        return loss, nll_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError(
                "linear_cross_entropy_sum keeps its gradient for one backward pass, and that has been; "
                "sum the result of linear_cross_entropy where several are needed"
            )
        (grad_x_ND, grad_weight_VD), ctx.gradients = ctx.gradients, None
        # One element, not zero-dimensional: so a 16-bit gradient is multiplied by the float32 factor, not by its rounding.
        by = grads[0].reshape(1)
        if grad_x_ND is not None:
            grad_x_ND.mul_(by)
        if grad_weight_VD is not None:
            grad_weight_VD = grad_weight_VD.mul_(by).to(ctx.weight_dtype)
        return grad_x_ND, grad_weight_VD, None, None, None, None, None
