# mypy: disable-error-code="no-untyped-def"
"""SwiGLU in Triton: one pass over the fused projection forward, one backward, computed in float32."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.checks import require, rows_of

BLOCK = 1024


def forward(gate_up: Tensor) -> Tensor:
    """[..., 2F] -> [..., F], see `kernels.swiglu.swiglu`."""
    require("swiglu", gate_up)
    rows = rows_of(gate_up)
    width = rows.shape[1] // 2
    out = torch.empty((*gate_up.shape[:-1], width), dtype=gate_up.dtype, device=gate_up.device)
    if out.numel():
        with torch.cuda.device_of(out):
            _forward_kernel[(len(rows), triton.cdiv(width, BLOCK))](
                rows, out, rows.stride(0), width, BLOCK=BLOCK, num_warps=4
            )
    return out


def backward(grad: Tensor, gate_up: Tensor) -> Tensor:
    """The gradient [..., 2F] of `gate_up` from that of the result, [..., F]."""
    rows, grad_rows = rows_of(gate_up), rows_of(grad)
    width = rows.shape[1] // 2
    grad_gate_up = torch.empty(gate_up.shape, dtype=gate_up.dtype, device=gate_up.device)
    if grad_gate_up.numel():
        with torch.cuda.device_of(grad):
            _backward_kernel[(len(rows), triton.cdiv(width, BLOCK))](
                grad_rows,
                rows,
                grad_gate_up,
                grad_rows.stride(0),
                rows.stride(0),
                width,
                BLOCK=BLOCK,
                num_warps=4,
            )
    return grad_gate_up


@triton.jit
def _forward_kernel(gate_up, out, stride, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    at = gate_up + row * stride + columns
    gate = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(at + width, mask=inside, other=0.0).to(tl.float32)
    value = gate * tl.sigmoid(gate) * up
    tl.store(out + row * width + columns, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _backward_kernel(grad, gate_up, grad_gate_up, grad_stride, stride, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    at = gate_up + row * stride + columns
    gate = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(at + width, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(grad + row * grad_stride + columns, mask=inside, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    silu = gate * sigmoid
    grad_gate = g * up * (sigmoid + silu * (1.0 - sigmoid))
    to = grad_gate_up + row * 2 * width + columns
    tl.store(to, grad_gate.to(grad_gate_up.dtype.element_ty), mask=inside)
    tl.store(to + width, (g * silu).to(grad_gate_up.dtype.element_ty), mask=inside)
