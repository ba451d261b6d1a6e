# mypy: disable-error-code="no-untyped-def"
"""Softmax statistics and the gradient of a chunk of logits in numba: a row stays in the cache from first to last look.

The exponentials are computed once: kept in float32 in a row of memory for each thread, then scaled into the gradient.
"""

import numpy as np
import torch
from numba import float32, get_thread_id, int32, prange
from torch import Tensor

from kernels.numba_math import (
    INFINITY,
    LIKE,
    exp32,
    from_sortable,
    get,
    kernel,
    magnitude,
    put,
    put_one,
    require,
    row_at,
    sortable,
    threads_for,
)

ROWS = 4
"""A thread takes so many rows at a time."""
WIDE = LIKE[torch.float32]
INDICES = np.empty(0, np.int64)


class NumbaRows:
    """See `kernels.cross_entropy.Rows`; logits are float32 or bfloat16 with adjacent columns, and become their gradient."""

    def __init__(self) -> None:
        self.scratch: Tensor | None = None

    def measure(self, logits_MV: Tensor, targets_M: Tensor) -> tuple[Tensor, Tensor]:
        return self._measure(logits_MV, targets_M, 0.0, False)

    def differentiate(
        self, logits_MV: Tensor, targets_M: Tensor, lse_M: Tensor, grad_nll_M: Tensor, grad_lse_M: Tensor
    ) -> Tensor:
        require("cross_entropy", logits_MV)
        assert lse_M.dtype == grad_nll_M.dtype == grad_lse_M.dtype == torch.float32
        targets_M = targets_M.contiguous()
        lse_M, grad_nll_M, grad_lse_M = (x.contiguous() for x in (lse_M, grad_nll_M, grad_lse_M))
        assert logits_MV.stride(1) == 1, "the buffer of logits has adjacent columns"
        assert (targets_M.dtype, targets_M.device.type) == (torch.int64, "cpu")
        threads_for(logits_MV.numel())
        _differentiate(
            logits_MV.data_ptr(),
            logits_MV.stride(0),
            LIKE[logits_MV.dtype],
            targets_M.data_ptr(),
            lse_M.data_ptr(),
            grad_nll_M.data_ptr(),
            grad_lse_M.data_ptr(),
            *logits_MV.shape,
        )
        return logits_MV

    def measure_and_differentiate(
        self, logits_MV: Tensor, targets_M: Tensor, z_loss: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        return *self._measure(logits_MV, targets_M, z_loss, True), logits_MV

    def _measure(
        self, logits_MV: Tensor, targets_M: Tensor, z_loss: float, differentiate: bool
    ) -> tuple[Tensor, Tensor]:
        require("cross_entropy", logits_MV)
        assert logits_MV.stride(1) == 1, "the buffer of logits has adjacent columns"
        assert (targets_M.dtype, targets_M.device.type) == (torch.int64, "cpu")
        targets_M = targets_M.contiguous()
        nll_M, lse_M = torch.empty(2, len(logits_MV)).unbind(0)
        n_threads = threads_for(logits_MV.numel())
        if self.scratch is None or self.scratch.numel() < n_threads * logits_MV.shape[1]:
            self.scratch = torch.empty(n_threads, logits_MV.shape[1])
        _measure(
            logits_MV.data_ptr(),
            logits_MV.stride(0),
            LIKE[logits_MV.dtype],
            targets_M.data_ptr(),
            nll_M.data_ptr(),
            lse_M.data_ptr(),
            self.scratch.data_ptr(),
            *logits_MV.shape,
            z_loss,
            differentiate,
        )
        return nll_M, lse_M


@kernel
def _measure(
    logits_at, stride, like, targets_at, nll_at, lse_at, scratch_at, n_rows, vocabulary, z_loss, differentiate
):  # fmt: skip
    for block in prange((n_rows + ROWS - 1) // ROWS):
        targets = row_at(targets_at, 0, n_rows, INDICES)
        nll, lse = row_at(nll_at, 0, n_rows, WIDE), row_at(lse_at, 0, n_rows, WIDE)
        scratch = row_at(scratch_at, get_thread_id() * vocabulary, vocabulary, WIDE)
        for row in range(block * ROWS, min(block * ROWS + ROWS, n_rows)):
            logits = row_at(logits_at, row * stride, vocabulary, like)
            target = targets[row]
            of_target = get(logits, target)
            key, largest = int32(-(2**31)), int32(0)
            for j in range(vocabulary):
                value = get(logits, j)
                key = max(key, sortable(value))
                largest = max(largest, magnitude(value))
            top, total = from_sortable(key), float32(0)
            for j in range(vocabulary):
                e = exp32(get(logits, j) - top)
                scratch[j] = e
                total += e
            denominator = top + np.log(total)
            # `sortable` puts a NaN with a sign below every number, and `exp32` bounds an infinite argument: none may hide.
            if largest > int32(INFINITY) or magnitude(top) == int32(INFINITY):
                denominator = float32(np.nan)
            lse[row] = denominator
            nll[row] = denominator - of_target
            if differentiate:
                of_lse = float32(2.0 * z_loss) * denominator
                factor = (float32(1) + of_lse) / total
                if denominator != denominator:
                    factor = denominator
                for j in range(vocabulary):
                    put(logits, j, scratch[j] * factor)
                put_one(logits, target, scratch[target] * factor - float32(1))


@kernel
def _differentiate(
    logits_at, stride, like, targets_at, lse_at, grad_nll_at, grad_lse_at, n_rows, vocabulary
):  # fmt: skip
    for block in prange((n_rows + ROWS - 1) // ROWS):
        targets, lse = row_at(targets_at, 0, n_rows, INDICES), row_at(lse_at, 0, n_rows, WIDE)
        grad_nll, grad_lse = row_at(grad_nll_at, 0, n_rows, WIDE), row_at(grad_lse_at, 0, n_rows, WIDE)
        for row in range(block * ROWS, min(block * ROWS + ROWS, n_rows)):
            logits = row_at(logits_at, row * stride, vocabulary, like)
            target, denominator = targets[row], lse[row]
            factor = grad_nll[row] + grad_lse[row]
            if denominator != denominator:
                factor = denominator
            of_target = exp32(get(logits, target) - denominator) * factor - grad_nll[row]
            for j in range(vocabulary):
                put(logits, j, exp32(get(logits, j) - denominator) * factor)
            put_one(logits, target, of_target)
