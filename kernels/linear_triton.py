# mypy: disable-error-code="no-untyped-def, no-untyped-call"
"""Products of up to 64 rows with int8 or 4-bit weights in Triton: the weight is read as stored and widened in registers.

A program makes a block of outputs for all rows; sums are float32. Letters of tensor names as in `kernels.linear`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.attention_triton_forward import product
from kernels.checks import require

GROUP = 32


def multiply(x_NI: Tensor, values: Tensor, scales: Tensor | None) -> Tensor:
    """`x @ weight.T`, [N, O] in the type of `x`; the weight as of `kernels.linear.Weight`, quantised."""
    assert scales is not None
    require("linear", x_NI, values, scales)
    (n_rows, n_inputs), n_outputs = x_NI.shape, len(values)
    out_NO = torch.empty(n_rows, n_outputs, dtype=x_NI.dtype, device=x_NI.device)
    four = values.dtype == torch.uint8
    block_n = max(16, triton.next_power_of_2(n_rows))
    block_o = 32 if n_outputs < 16_384 else 64
    kernel = _int4_kernel if four else _int8_kernel
    with torch.cuda.device_of(x_NI):
        kernel[(triton.cdiv(n_outputs, block_o),)](
            x_NI,
            values,
            scales,
            out_NO,
            n_rows,
            n_outputs,
            n_inputs,
            BLOCK_N=block_n,
            BLOCK_O=block_o,
            BLOCK_I=64 if four else 128,
            WIDEN=x_NI.device.type != "cuda",
            num_warps=4,
            num_stages=4,
        )
    return out_NO


@triton.jit
def _store(acc, out, rows, outputs, n_rows, n_outputs):
    inside = (rows[:, None] < n_rows) & (outputs[None, :] < n_outputs)
    where = out + rows[:, None].to(tl.int64) * n_outputs + outputs[None, :]
    tl.store(where, acc.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _int8_kernel(
    x, values, scales, out, n_rows, n_outputs, n_inputs,
    BLOCK_N: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    rows = tl.arange(0, BLOCK_N)
    outputs = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    acc = tl.zeros([BLOCK_N, BLOCK_O], tl.float32)
    for start in range(0, n_inputs, BLOCK_I):
        i = start + tl.arange(0, BLOCK_I)
        x_tile = tl.load(
            x + rows[:, None] * n_inputs + i[None, :],
            mask=(rows[:, None] < n_rows) & (i[None, :] < n_inputs),
            other=0.0,
        )
        w_tile = tl.load(
            values + outputs[:, None].to(tl.int64) * n_inputs + i[None, :],
            mask=(outputs[:, None] < n_outputs) & (i[None, :] < n_inputs),
            other=0,
        )
        acc = product(x_tile, tl.trans(w_tile.to(tl.float32).to(x_tile.dtype)), acc, WIDEN)
    scale = tl.load(scales + outputs, mask=outputs < n_outputs, other=0.0)
    _store(acc * scale[None, :], out, rows, outputs, n_rows, n_outputs)


@triton.jit
def _int4_kernel(
    x, values, scales, out, n_rows, n_outputs, n_inputs,
    BLOCK_N: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """BLOCK_I bytes at a time, 16 to a group: their low halves are a group's first 16 inputs, the high ones its others."""
    rows = tl.arange(0, BLOCK_N)
    outputs = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    n_bytes = n_inputs // 2
    acc = tl.zeros([BLOCK_N, BLOCK_O], tl.float32)
    for start in range(0, n_bytes, BLOCK_I):
        byte = start + tl.arange(0, BLOCK_I)
        inside_w = (outputs[:, None] < n_outputs) & (byte[None, :] < n_bytes)
        bits = tl.load(
            values + outputs[:, None].to(tl.int64) * n_bytes + byte[None, :], mask=inside_w, other=0
        ).to(tl.int32)
        group = byte // 16
        scale = tl.load(
            scales + outputs[:, None] * (n_inputs // 32) + group[None, :], mask=inside_w, other=0.0
        )
        i = group * 32 + byte % 16
        inside_x = (rows[:, None] < n_rows) & (byte[None, :] < n_bytes)
        for half in tl.static_range(2):
            x_tile = tl.load(x + rows[:, None] * n_inputs + i[None, :] + 16 * half, mask=inside_x, other=0.0)
            integers = ((bits >> (4 * half)) & 15) - 8
            w_tile = (integers.to(tl.float32) * scale).to(x_tile.dtype)
            acc = product(x_tile, tl.trans(w_tile), acc, WIDEN)
    _store(acc, out, rows, outputs, n_rows, n_outputs)
