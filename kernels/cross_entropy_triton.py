# mypy: disable-error-code="no-untyped-def"
"""Softmax statistics and the gradient of a chunk of logits in Triton, one program a row.

The largest logit and the sum of exponentials are found in one pass (Milakov and Gimelshein, arXiv 1805.02867); the gradient
is written over the logits in a second one, whose reads a GPU serves from its L2 cache.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.checks import require

LARGEST_BLOCK = 8192


class TritonRows:
    """See `kernels.cross_entropy.Rows`; logits are float32, bfloat16 or float16 with adjacent columns."""

    def measure(self, logits_MV: Tensor, targets_M: Tensor) -> tuple[Tensor, Tensor]:
        nll_M, lse_M = self._statistics(logits_MV)
        self._launch(logits_MV, targets_M, nll_M, lse_M, nll_M, lse_M, 0.0, measure=True, grad=False)
        return nll_M, lse_M

    def differentiate(
        self, logits_MV: Tensor, targets_M: Tensor, lse_M: Tensor, grad_nll_M: Tensor, grad_lse_M: Tensor
    ) -> Tensor:
        lse_M, grad_nll_M, grad_lse_M = (x.contiguous() for x in (lse_M, grad_nll_M, grad_lse_M))
        self._launch(
            logits_MV, targets_M, lse_M, lse_M, grad_nll_M, grad_lse_M, 0.0, measure=False, grad=True
        )
        return logits_MV

    def measure_and_differentiate(
        self, logits_MV: Tensor, targets_M: Tensor, z_loss: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        nll_M, lse_M = self._statistics(logits_MV)
        self._launch(logits_MV, targets_M, nll_M, lse_M, nll_M, lse_M, z_loss, measure=True, grad=True)
        return nll_M, lse_M, logits_MV

    @staticmethod
    def _statistics(logits_MV: Tensor) -> tuple[Tensor, Tensor]:
        require("cross_entropy", logits_MV)
        nll_M = torch.empty(len(logits_MV), dtype=torch.float32, device=logits_MV.device)
        return nll_M, torch.empty_like(nll_M)

    @staticmethod
    def _launch(
        logits_MV: Tensor,
        targets_M: Tensor,
        nll_M: Tensor,
        lse_M: Tensor,
        grad_nll_M: Tensor,
        grad_lse_M: Tensor,
        z_loss: float,
        measure: bool,
        grad: bool,
    ) -> None:
        assert logits_MV.stride(1) == 1, "the buffer of logits has adjacent columns"
        rows, vocabulary = logits_MV.shape
        # At least four columns a thread: no column is read by two threads, of which one might find the gradient there.
        block = min(LARGEST_BLOCK, max(1024, triton.next_power_of_2(vocabulary)))
        with torch.cuda.device_of(logits_MV):
            _rows_kernel[(rows,)](
                logits_MV,
                targets_M.contiguous(),
                nll_M,
                lse_M,
                grad_nll_M,
                grad_lse_M,
                logits_MV.stride(0),
                float(z_loss),
                VOCABULARY=vocabulary,
                MEASURE=measure,
                GRAD=grad,
                BLOCK=block,
                num_warps=8,
            )


@triton.jit
def _rows_kernel(
    logits, targets, nll, lse, grad_nll, grad_lse, stride, z_loss,
    VOCABULARY: tl.constexpr, MEASURE: tl.constexpr, GRAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    target = tl.load(targets + row)
    if MEASURE:
        # A target outside is reported by the caller; here it must not lead to memory outside.
        inside = (target >= 0) & (target < VOCABULARY)
        chosen = tl.load(logits + target, mask=inside, other=0.0).to(tl.float32)
        largest = -float("inf")
        total = 0.0
        for first in range(0, VOCABULARY, BLOCK):
            columns = first + tl.arange(0, BLOCK)
            value = tl.load(logits + columns, mask=columns < VOCABULARY, other=-float("inf")).to(tl.float32)
            new_largest = tl.maximum(largest, tl.max(value, 0))
            total = total * tl.exp(largest - new_largest) + tl.sum(tl.exp(value - new_largest), 0)
            largest = new_largest
        denominator = largest + tl.log(total)
        tl.store(nll + row, denominator - chosen)
        tl.store(lse + row, denominator)
        of_nll = 1.0
        of_lse = 2.0 * z_loss * denominator
    else:
        denominator = tl.load(lse + row)
        of_nll = tl.load(grad_nll + row)
        of_lse = tl.load(grad_lse + row)
    if GRAD:
        tl.debug_barrier()  # no warp overwrites a logit that another one has still to read
        for first in range(0, VOCABULARY, BLOCK):
            columns = first + tl.arange(0, BLOCK)
            inside_row = columns < VOCABULARY
            value = tl.load(logits + columns, mask=inside_row, other=-float("inf")).to(tl.float32)
            grad = tl.exp(value - denominator) * (of_nll + of_lse)
            grad -= tl.where(columns == target, of_nll, 0.0)
            tl.store(logits + columns, grad.to(logits.dtype.element_ty), mask=inside_row)
