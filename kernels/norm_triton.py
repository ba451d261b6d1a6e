# mypy: disable-error-code="no-untyped-def"
"""RMSNorm and LayerNorm in Triton: a row is read once, normalised in registers and written once.

The gradient of the weight is a sum over rows. Every program sums its own rows in float32 and writes one partial sum; those
are added up afterwards, always in the same order: no atomics, the same bits every time on the same card.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.checks import require, rows_of

LONGEST_ROW = 65_536


def forward(
    x: Tensor, delta: Tensor | None, weight_D: Tensor, eps: float, centred: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """See `kernels.norm.Kernels`."""
    require("norm", x, weight_D)
    x_RD = rows_of(x)
    delta_RD = x_RD if delta is None else rows_of(delta)
    n_rows, d = x_RD.shape
    block, n_warps = _block(d)
    normed = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    total = x if delta is None else torch.empty_like(normed)
    scale = torch.empty((*x.shape[:-1], 1), dtype=torch.float32, device=x.device)
    mean = torch.empty_like(scale) if centred else None
    if n_rows:
        with torch.cuda.device_of(x):
            _forward_kernel[(n_rows,)](
                x_RD,
                delta_RD,
                weight_D.contiguous(),
                normed,
                total,
                scale if mean is None else mean,
                scale,
                x_RD.stride(0),
                delta_RD.stride(0),
                d,
                float(eps),
                CENTRED=centred,
                ADD=delta is not None,
                BLOCK=block,
                num_warps=n_warps,
            )
    return normed, total, mean, scale


def backward(
    grad: Tensor, grad_sum: Tensor | None, x: Tensor, weight_D: Tensor, mean: Tensor | None, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """See `kernels.norm.Kernels`."""
    grad_RD, x_RD = rows_of(grad), rows_of(x)
    sum_RD = grad_RD if grad_sum is None else rows_of(grad_sum)
    n_rows, d = x_RD.shape
    block, n_warps = _block(d)
    n_programs = max(1, min(n_rows, _n_programs(x.device, block)))
    grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    partial_PD = torch.empty((n_programs, d), dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        _backward_kernel[(n_programs,)](
            grad_RD,
            sum_RD,
            x_RD,
            weight_D.contiguous(),
            scale if mean is None else mean,
            scale,
            grad_x,
            partial_PD,
            grad_RD.stride(0),
            sum_RD.stride(0),
            x_RD.stride(0),
            n_rows,
            triton.cdiv(n_rows, n_programs),
            d,
            CENTRED=mean is not None,
            ADD=grad_sum is not None,
            BLOCK=block,
            num_warps=n_warps,
        )
    return grad_x, partial_PD.sum(0).to(weight_D.dtype)


def _block(d: int) -> tuple[int, int]:
    """Columns that a program holds, a power of two, and its warps: up to 8192 columns, 16 values a thread at most."""
    if d > LONGEST_ROW:
        raise ValueError(f"norm: the triton back-end holds a row of {LONGEST_ROW} columns at most, not {d}")
    block = triton.next_power_of_2(d)
    return block, min(16, max(4, block // 512))


def _n_programs(device: torch.device, block: int) -> int:
    if device.type != "cuda":
        return 4  # the interpreter: enough that partial sums are more than one
    return torch.cuda.get_device_properties(device).multi_processor_count * min(8, max(1, 8192 // block))


@triton.jit
def _forward_kernel(
    x, delta, weight, normed, total, mean, scale, x_stride, delta_stride, d, eps,
    CENTRED: tl.constexpr, ADD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < d
    value = tl.load(x + row * x_stride + columns, mask=inside, other=0.0)
    if ADD:
        other = tl.load(delta + row * delta_stride + columns, mask=inside, other=0.0)
        value = (value.to(tl.float32) + other.to(tl.float32)).to(total.dtype.element_ty)
        tl.store(total + row * d + columns, value, mask=inside)
    wide = value.to(tl.float32)
    if CENTRED:
        middle = tl.sum(wide, 0) / d
        tl.store(mean + row, middle)
        wide = tl.where(inside, wide - middle, 0.0)
    factor = 1.0 / tl.sqrt(tl.sum(wide * wide, 0) / d + eps)
    tl.store(scale + row, factor)
    w = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(normed + row * d + columns, (wide * factor * w).to(normed.dtype.element_ty), mask=inside)


@triton.jit
def _backward_kernel(
    grad, grad_sum, x, weight, mean, scale, grad_x, partial, grad_stride, sum_stride, x_stride, n_rows,
    rows_each, d,
    CENTRED: tl.constexpr, ADD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < d
    w = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    grad_w = tl.zeros([BLOCK], dtype=tl.float32)
    row = program * rows_each
    end = tl.minimum(row + rows_each, n_rows)
    while row < end:
        wide = tl.load(x + row * x_stride + columns, mask=inside, other=0.0).to(tl.float32)
        g = tl.load(grad + row * grad_stride + columns, mask=inside, other=0.0).to(tl.float32)
        factor = tl.load(scale + row)
        if CENTRED:
            wide -= tl.load(mean + row)
        unit = wide * factor
        grad_w += g * unit  # g is 0 outside
        g *= w
        along = tl.sum(g * unit, 0) / d
        result = g - unit * along
        if CENTRED:
            result -= tl.sum(g, 0) / d
        result *= factor
        if ADD:
            result += tl.load(grad_sum + row * sum_stride + columns, mask=inside, other=0.0).to(tl.float32)
        tl.store(grad_x + row * d + columns, result.to(grad_x.dtype.element_ty), mask=inside)
        row += 1
    tl.store(partial + program * d + columns, grad_w, mask=inside)
