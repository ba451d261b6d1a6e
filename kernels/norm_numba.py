# mypy: disable-error-code="no-untyped-def"
"""RMSNorm and LayerNorm in numba: a row is read from memory once, and every later look at it finds it in the cache.

The gradient of the weight is a sum over rows: each of `BLOCKS` ranges of rows is summed in float32, and the sums are added
in order. Ranges depend on the number of rows, not of threads: the result has the same bits with any number of threads.
"""

import numpy as np
import torch
from numba import float32, prange
from torch import Tensor

from kernels.checks import rows_of
from kernels.numba_math import LIKE, get, kernel, part, put, require, row_at, threads_for

BLOCKS = 64
WIDE = LIKE[torch.float32]


def forward(
    x: Tensor, delta: Tensor | None, weight_D: Tensor, eps: float, centred: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """See `kernels.norm.Kernels`."""
    require("norm", x, x if delta is None else delta, weight_D)
    normed = torch.empty(x.shape, dtype=x.dtype)
    total = x if delta is None else torch.empty_like(normed)
    scale = torch.empty((*x.shape[:-1], 1))
    mean = torch.empty_like(scale) if centred else None
    x_RD, weight_D = rows_of(x), weight_D.float().contiguous()
    delta_RD = x_RD if delta is None else rows_of(delta)
    threads_for(x.numel())
    _forward(
        x_RD.data_ptr(),
        x_RD.stride(0),
        LIKE[x.dtype],
        delta_RD.data_ptr(),
        delta_RD.stride(0),
        LIKE[delta_RD.dtype],
        weight_D.data_ptr(),
        normed.data_ptr(),
        total.data_ptr(),
        0 if mean is None else mean.data_ptr(),
        scale.data_ptr(),
        *x_RD.shape,
        eps,
        delta is not None,
        centred,
    )
    return normed, total, mean, scale


def backward(
    grad: Tensor, grad_sum: Tensor | None, x: Tensor, weight_D: Tensor, mean: Tensor | None, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """See `kernels.norm.Kernels`."""
    require("norm", x, grad, weight_D)
    assert all(g is None or (g.dtype, g.shape) == (x.dtype, x.shape) for g in (grad, grad_sum))
    grad_x = torch.empty(x.shape, dtype=x.dtype)
    grad_RD, x_RD, wide_D = rows_of(grad), rows_of(x), weight_D.float().contiguous()
    sum_RD = grad_RD if grad_sum is None else rows_of(grad_sum)
    n_rows, d = x_RD.shape
    partial_PD = torch.zeros(min(BLOCKS, n_rows), d)
    grad_weight_D = torch.zeros(d)
    threads_for(x.numel())
    _backward(
        grad_RD.data_ptr(),
        grad_RD.stride(0),
        sum_RD.data_ptr(),
        sum_RD.stride(0),
        x_RD.data_ptr(),
        x_RD.stride(0),
        wide_D.data_ptr(),
        0 if mean is None else mean.data_ptr(),
        scale.data_ptr(),
        grad_x.data_ptr(),
        LIKE[x.dtype],
        partial_PD.data_ptr(),
        grad_weight_D.data_ptr(),
        len(partial_PD),
        n_rows,
        d,
        grad_sum is not None,
        mean is not None,
    )
    return grad_x, grad_weight_D.to(weight_D.dtype)


@part
def normalise(
    first, last, x_at, x_stride, x_like, delta_at, delta_stride, delta_like, weight_at, normed_at, total_at, mean_at,
    scale_at, n_rows, d, eps, add, centred,
):  # fmt: skip
    """Some of the rows. `total` may be `x`."""
    weight = row_at(weight_at, 0, d, WIDE)
    scale, mean = row_at(scale_at, 0, n_rows, WIDE), row_at(mean_at, 0, n_rows, WIDE)
    for row in range(first, last):
        x = row_at(x_at, row * x_stride, d, x_like)
        of_row, squares = float32(0), float32(0)
        if add:
            delta = row_at(delta_at, row * delta_stride, d, delta_like)
            total = row_at(total_at, row * d, d, x_like)
            for j in range(d):
                put(total, j, get(x, j) + get(delta, j))
                value = get(total, j)
                of_row += value
                squares += value * value
            x = total
        else:
            for j in range(d):
                value = get(x, j)
                of_row += value
                squares += value * value
        middle = float32(0)
        if centred:
            middle = of_row / float32(d)
            mean[row] = middle
            squares = float32(0)
            for j in range(d):
                value = get(x, j) - middle
                squares += value * value
        factor = float32(1) / np.sqrt(squares / float32(d) + float32(eps))
        scale[row] = factor
        normed = row_at(normed_at, row * d, d, x_like)
        for j in range(d):
            put(normed, j, (get(x, j) - middle) * factor * weight[j])


@kernel
def _forward(
    x_at, x_stride, x_like, delta_at, delta_stride, delta_like, weight_at, normed_at, total_at, mean_at,
    scale_at, n_rows, d, eps, add, centred,
):  # fmt: skip
    n_blocks = min(n_rows, BLOCKS)
    for block in prange(n_blocks):
        normalise(
            block * n_rows // n_blocks, (block + 1) * n_rows // n_blocks, x_at, x_stride, x_like, delta_at, delta_stride,
            delta_like, weight_at, normed_at, total_at, mean_at, scale_at, n_rows, d, eps, add, centred,
        )  # fmt: skip


@kernel
def _backward(
    grad_at, grad_stride, sum_at, sum_stride, x_at, x_stride, weight_at, mean_at, scale_at, grad_x_at, like,
    partial_at, grad_weight_at, n_blocks, n_rows, d, add, centred,
):  # fmt: skip
    for block in prange(n_blocks):
        weight = row_at(weight_at, 0, d, WIDE)
        scale, mean = row_at(scale_at, 0, n_rows, WIDE), row_at(mean_at, 0, n_rows, WIDE)
        partial = row_at(partial_at, block * d, d, WIDE)
        for row in range(block * n_rows // n_blocks, (block + 1) * n_rows // n_blocks):
            x, grad = row_at(x_at, row * x_stride, d, like), row_at(grad_at, row * grad_stride, d, like)
            factor, middle = scale[row], float32(0)
            if centred:
                middle = mean[row]
            # The part of the gradient that would change the norm, and for LayerNorm the part that would change the mean.
            along, level = float32(0), float32(0)
            for j in range(d):
                g = get(grad, j)
                product = g * ((get(x, j) - middle) * factor)
                partial[j] += product
                along += product * weight[j]
                level += g * weight[j]
            along /= float32(d)
            level = level / float32(d) if centred else float32(0)
            grad_x = row_at(grad_x_at, row * d, d, like)
            if add:
                grad_sum = row_at(sum_at, row * sum_stride, d, like)
                for j in range(d):
                    inner = get(grad, j) * weight[j] - (get(x, j) - middle) * factor * along - level
                    put(grad_x, j, inner * factor + get(grad_sum, j))
            else:
                for j in range(d):
                    inner = get(grad, j) * weight[j] - (get(x, j) - middle) * factor * along - level
                    put(grad_x, j, inner * factor)
    grad_weight = row_at(grad_weight_at, 0, d, WIDE)
    for block in range(n_blocks):
        partial = row_at(partial_at, block * d, d, WIDE)
        for j in range(d):
            grad_weight[j] += partial[j]
