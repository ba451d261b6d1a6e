# mypy: disable-error-code="no-untyped-def"
"""SwiGLU and GELU in numba: one pass over memory forward, one backward, computed in float32."""

import torch
from numba import float32, njit, prange
from torch import Tensor

from kernels.checks import rows_of
from kernels.numba_math import LIKE, exp32, get, kernel, part, put, require, row_at, threads_for

BLOCK = 4096
"""Elements that a thread takes at a time."""


def forward(gate_up: Tensor) -> Tensor:
    """[..., 2F] -> [..., F], see `kernels.swiglu.swiglu`."""
    require("swiglu", gate_up)
    rows = rows_of(gate_up)
    width = rows.shape[1] // 2
    out = torch.empty((*gate_up.shape[:-1], width), dtype=gate_up.dtype)
    threads_for(gate_up.numel())
    _forward(rows.data_ptr(), rows.stride(0), out.data_ptr(), LIKE[out.dtype], len(rows), width)
    return out


def backward(grad: Tensor, gate_up: Tensor) -> Tensor:
    """The gradient [..., 2F] of `gate_up` from that of the result, [..., F]."""
    require("swiglu", gate_up, grad)
    assert grad.dtype == gate_up.dtype
    rows, grad_rows = rows_of(gate_up), rows_of(grad)
    grad_gate_up = torch.empty(gate_up.shape, dtype=gate_up.dtype)
    threads_for(gate_up.numel())
    _backward(
        grad_rows.data_ptr(),
        grad_rows.stride(0),
        rows.data_ptr(),
        rows.stride(0),
        grad_gate_up.data_ptr(),
        LIKE[gate_up.dtype],
        len(rows),
        rows.shape[1] // 2,
    )
    return grad_gate_up


def gelu_forward(x: Tensor) -> Tensor:
    """`x * Phi(x)`, see `kernels.swiglu.gelu`."""
    require("gelu", x)
    x = x.contiguous()
    out = torch.empty_like(x)
    threads_for(x.numel())
    _gelu_forward(x.data_ptr(), out.data_ptr(), LIKE[x.dtype], x.numel())
    return out


def gelu_backward(grad: Tensor, x: Tensor) -> Tensor:
    """The gradient of `x`: `grad * (Phi(x) + x * Phi'(x))`."""
    require("gelu", x, grad)
    assert grad.dtype == x.dtype
    grad, x = grad.contiguous(), x.contiguous()
    grad_x = torch.empty_like(x)
    threads_for(x.numel())
    _gelu_backward(grad.data_ptr(), x.data_ptr(), grad_x.data_ptr(), LIKE[x.dtype], x.numel())
    return grad_x


@part
def gated(first, last, gate_up_at, stride, out_at, like, width):
    """Some of the rows."""
    for row in range(first, last):
        gate = row_at(gate_up_at, row * stride, width, like)
        up = row_at(gate_up_at, row * stride + width, width, like)
        out = row_at(out_at, row * width, width, like)
        for j in range(width):
            g = get(gate, j)
            put(out, j, g / (float32(1) + exp32(-g)) * get(up, j))


@kernel
def _forward(gate_up_at, stride, out_at, like, n_rows, width):
    each = max(1, BLOCK // max(1, width))
    for block in prange((n_rows + each - 1) // each):
        gated(block * each, min(block * each + each, n_rows), gate_up_at, stride, out_at, like, width)


@kernel
def _backward(grad_at, grad_stride, gate_up_at, stride, grad_gate_up_at, like, n_rows, width):
    each = max(1, BLOCK // max(1, width))
    for block in prange((n_rows + each - 1) // each):
        for row in range(block * each, min(block * each + each, n_rows)):
            grad = row_at(grad_at, row * grad_stride, width, like)
            gate = row_at(gate_up_at, row * stride, width, like)
            up = row_at(gate_up_at, row * stride + width, width, like)
            grad_gate = row_at(grad_gate_up_at, row * 2 * width, width, like)
            grad_up = row_at(grad_gate_up_at, row * 2 * width + width, width, like)
            for j in range(width):
                upstream, g = get(grad, j), get(gate, j)
                sigmoid = float32(1) / (float32(1) + exp32(-g))
                silu = g * sigmoid
                put(grad_gate, j, upstream * get(up, j) * (sigmoid + silu * (float32(1) - sigmoid)))
                put(grad_up, j, upstream * silu)


# Phi and the derivative of x Phi(x) are 1/2 and an odd function of x, here x P(x²) / Q(x²) up to an `END` beyond which they
# are 0 or 1 to 4e-8. P and Q are fitted to the least largest error: 2e-7 and 4e-7 with rounding. No exponential.
PHI_END, PHI_P, PHI_Q = (
    5.4,
    (3.989422454e-01, 3.337227138e-02, 4.650854013e-03, 1.643221574e-04, 6.360025428e-06, 2.338671871e-08),
    (1.0, 2.503179680e-01, 2.837871246e-02, 1.858984104e-03, 7.240034504e-05, 1.216590922e-06),
)
SLOPE_END, SLOPE_P, SLOPE_Q = (
    6.0,
    (7.978845319e-01, -3.074343657e-02, 1.420917304e-02, 2.418438867e-05, 3.585057135e-05, 1.908849950e-07),
    (1.0, 2.948056985e-01, 4.106470264e-02, 3.528762618e-03, 1.935199548e-04, 8.887474983e-06),
)


@njit(inline="always")
def _polynomial(s, c):
    p = float32(c[5]) * s + float32(c[4])
    p = p * s + float32(c[3])
    p = p * s + float32(c[2])
    p = p * s + float32(c[1])
    return p * s + float32(c[0])


@njit(inline="always")
def _step(x, end, p, q):
    """From 0 at -end and below to 1 at `end` and above."""
    bounded = min(max(x, float32(-end)), float32(end))
    s = bounded * bounded
    value = float32(0.5) + bounded * _polynomial(s, p) / _polynomial(s, q)
    return float32(0) if x < float32(-end) else value


@part
def gelu_of(x_at, out_at, like, start, n):
    """`n` elements from `start`."""
    x, out = row_at(x_at, start, n, like), row_at(out_at, start, n, like)
    for j in range(n):
        value = get(x, j)
        put(out, j, value * _step(value, PHI_END, PHI_P, PHI_Q))


@kernel
def _gelu_forward(x_at, out_at, like, n):
    for block in prange((n + BLOCK - 1) // BLOCK):
        gelu_of(x_at, out_at, like, block * BLOCK, min(BLOCK, n - block * BLOCK))


@kernel
def _gelu_backward(grad_at, x_at, grad_x_at, like, n):
    for block in prange((n + BLOCK - 1) // BLOCK):
        here = min(BLOCK, n - block * BLOCK)
        grad, x = row_at(grad_at, block * BLOCK, here, like), row_at(x_at, block * BLOCK, here, like)
        grad_x = row_at(grad_x_at, block * BLOCK, here, like)
        for j in range(here):
            put(grad_x, j, get(grad, j) * _step(get(x, j), SLOPE_END, SLOPE_P, SLOPE_Q))
