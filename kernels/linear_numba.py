# mypy: disable-error-code="attr-defined,call-arg,operator,no-untyped-def,var-annotated"
"""Products of a few rows with a weight matrix on the CPU, the weight read once: decoding is bound by memory, not arithmetic.

A block of some outputs times some rows keeps its sums in registers, 16 lanes each, while it walks along the weights, so that
a number of the weight is read and widened once for all its rows. The vectors are written out as such: LLVM's vectoriser
prefers half the width on machines with AVX-512, and a narrower machine splits them.

Every result is a sum in one order, whatever the number of rows: what a request gets does not depend on its company.

Letters of tensor names as in `kernels.linear`.
"""

from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import prange, types
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic
from torch import Tensor

from kernels.numba_math import kernel, threads_for

LANES = 16
GROUP = 32
"""Inputs that share a scale where weights have 4 bits (`kernels.linear.GROUP`)."""
TASK = 64
"""Outputs that a thread takes at a time."""
PREFETCH_BYTES = 6144
"""How far ahead, at least, weights are asked for."""
LIKE = {
    torch.float32: np.empty(0, np.float32),
    torch.bfloat16: np.empty(0, np.uint16),
    torch.float16: np.empty(0, np.int16),
    torch.int8: np.empty(0, np.int8),
    torch.uint8: np.empty(0, np.uint8),
}
"""Tells the kernel what the weights are: numba has no 16-bit floats, so each stands for another type of that size."""

_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_F16, _F32 = ir.HalfType(), ir.FloatType()
_WIDE, _INTEGERS = ir.VectorType(_F32, LANES), ir.VectorType(_I32, LANES)
_STEP_BYTES = {types.float32: 64, types.uint16: 32, types.int16: 32, types.int8: 16, types.uint8: 16}
"""Bytes of weights that one step along the inputs reads: 16 inputs, of 4 bits 32."""


def _of(value: int) -> Any:
    return ir.Constant(_INTEGERS, [value] * LANES)


def _load(builder: Any, address: Any, element: Any) -> Any:
    loaded = builder.load(builder.inttoptr(address, ir.VectorType(element, LANES).as_pointer()))
    loaded.align = 1
    return loaded


def _weights(builder: Any, kind: Any, address: Any) -> list[Any]:
    """A step of weights as float32 vectors: one, of 4 bits two, the low halves of 16 bytes before the high ones."""
    if kind == types.float32:
        return [_load(builder, address, _F32)]
    if kind == types.int16:
        return [builder.fpext(_load(builder, address, _F16), _WIDE)]
    if kind == types.uint16:
        bits = builder.zext(_load(builder, address, _I16), _INTEGERS)
        return [builder.bitcast(builder.shl(bits, _of(16)), _WIDE)]
    loaded = _load(builder, address, _I8)
    if kind == types.int8:
        return [builder.sitofp(builder.sext(loaded, _INTEGERS), _WIDE)]
    bits = builder.zext(loaded, _INTEGERS)
    halves = builder.and_(bits, _of(15)), builder.lshr(bits, _of(4))
    return [builder.sitofp(builder.sub(half, _of(8)), _WIDE) for half in halves]


def _float(builder: Any, address: Any) -> Any:
    return builder.load(builder.inttoptr(address, _F32.as_pointer()))


def prefetch(builder: Any, address: Any) -> None:
    """Asks for the cache line of an address."""
    kind = ir.FunctionType(ir.VoidType(), [_I8.as_pointer(), _I32, _I32, _I32])
    ask = get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(ask, [builder.inttoptr(address, _I8.as_pointer()), _I32(0), _I32(3), _I32(1)])


def along(builder: Any, start: Any, stride: Any, n: int) -> list[Any]:
    """Addresses that are `stride` apart."""
    return [builder.add(start, builder.mul(stride, _I64(k))) for k in range(n)]


def _splat(builder: Any, value: Any) -> Any:
    first = builder.insert_element(ir.Constant(_WIDE, ir.Undefined), value, _I32(0))
    return builder.shuffle_vector(first, first, _of(0))


def _block(n_outputs: int, n_rows: int) -> Any:
    """The compiled block `y[m, o] = sum_i w[o, i] x[m, i]`, times the scales of int8 and 4-bit weights.

    Takes addresses and strides in bytes. `inputs` is a multiple of 16, with 4 bits of 32.
    """

    @intrinsic
    def block(
        typing_context, like, w_at, w_stride, x_at, x_stride, y_at, y_stride, scale_at, scale_stride, inputs
    ):
        kind = like.dtype

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            _emit(builder, kind, n_outputs, n_rows, *arguments[1:])
            return context.get_dummy_value()

        return types.void(like, *[types.int64] * 9), generate

    return block


def _emit(builder, kind, n_outputs, n_rows, w_at, w_stride, x_at, x_stride, y_at, y_stride, scale_at, scale_stride, inputs):  # fmt: skip  # noqa: E501
    in_groups = kind == types.uint8
    step = GROUP if in_groups else LANES
    fma = get_or_insert_function(builder.module, ir.FunctionType(_WIDE, [_WIDE] * 3), "llvm.fma.v16f32")
    reduce = get_or_insert_function(
        builder.module, ir.FunctionType(_F32, [_F32, _WIDE]), "llvm.vector.reduce.fadd.v16f32"
    )
    rows, columns = along(builder, w_at, w_stride, n_outputs), along(builder, x_at, x_stride, n_rows)
    scales = along(builder, scale_at, scale_stride, n_outputs)
    n_steps = builder.udiv(inputs, _I64(step))
    block_bytes = builder.mul(w_stride, _I64(n_outputs))
    blocks = builder.add(_I64(1), builder.udiv(_I64(PREFETCH_BYTES), block_bytes))
    distance = builder.mul(block_bytes, blocks)
    before = builder.block
    head, body, end = (builder.append_basic_block(name) for name in ("head", "body", "end"))
    builder.branch(head)

    builder.position_at_end(head)
    at = builder.phi(_I64)
    at.add_incoming(_I64(0), before)
    sums = [[builder.phi(_WIDE) for _ in columns] for _ in rows]
    for total in (total for row in sums for total in row):
        total.add_incoming(ir.Constant(_WIDE, [0.0] * LANES), before)
    builder.cbranch(builder.icmp_unsigned("<", at, n_steps), body, end)

    builder.position_at_end(body)
    x_offset = builder.mul(at, _I64(4 * step))
    w_offset = builder.mul(at, _I64(_STEP_BYTES[kind]))
    x = [
        [
            _load(builder, builder.add(builder.add(column, x_offset), _I64(4 * first)), _F32)
            for column in columns
        ]
        for first in range(0, step, LANES)
    ]
    # The same place some blocks on: rows are too short for the hardware to foresee what comes.
    ahead = builder.add(w_offset, distance)
    for row in rows:
        prefetch(builder, builder.add(row, ahead))
    for o, row in enumerate(sums):
        parts = _weights(builder, kind, builder.add(rows[o], w_offset))
        if in_groups:
            scale = _splat(builder, _float(builder, builder.add(scales[o], builder.mul(at, _I64(4)))))
            parts = [builder.fmul(part, scale) for part in parts]
        for m, total in enumerate(row):
            value = total
            for part, x_part in zip(parts, x, strict=True):
                value = builder.call(fma, [part, x_part[m], value])
            total.add_incoming(value, builder.block)
    at.add_incoming(builder.add(at, _I64(1)), builder.block)
    builder.branch(head)

    builder.position_at_end(end)
    for o, row in enumerate(sums):
        for m, total in enumerate(row):
            value = builder.call(reduce, [_F32(0.0), total], fastmath=("reassoc",))
            if kind == types.int8:
                value = builder.fmul(value, _float(builder, scales[o]))
            where = builder.add(builder.add(y_at, builder.mul(y_stride, _I64(m))), _I64(4 * o))
            builder.store(value, builder.inttoptr(where, _F32.as_pointer()))


_4x4, _4x2, _4x1 = _block(4, 4), _block(4, 2), _block(4, 1)
_1x4, _1x2, _1x1 = _block(1, 4), _block(1, 2), _block(1, 1)


@kernel
def _multiply(like, w, w_stride, x, x_stride, y, y_stride, scale, scale_stride, n_outputs, n_inputs, n_rows):
    for task in prange((n_outputs + TASK - 1) // TASK):
        o, last = task * TASK, min(n_outputs, (task + 1) * TASK)
        while o < last:
            w_o, scale_o, four = w + o * w_stride, scale + o * scale_stride, last - o >= 4
            m = 0
            while m < n_rows:
                x_m, y_m, left = x + m * x_stride, y + m * y_stride + 4 * o, n_rows - m
                if four and left >= 4:
                    _4x4(like, w_o, w_stride, x_m, x_stride, y_m, y_stride, scale_o, scale_stride, n_inputs)
                    m += 4
                elif four and left >= 2:
                    _4x2(like, w_o, w_stride, x_m, x_stride, y_m, y_stride, scale_o, scale_stride, n_inputs)
                    m += 2
                elif four:
                    _4x1(like, w_o, w_stride, x_m, x_stride, y_m, y_stride, scale_o, scale_stride, n_inputs)
                    m += 1
                elif left >= 4:
                    _1x4(like, w_o, w_stride, x_m, x_stride, y_m, y_stride, scale_o, scale_stride, n_inputs)
                    m += 4
                elif left >= 2:
                    _1x2(like, w_o, w_stride, x_m, x_stride, y_m, y_stride, scale_o, scale_stride, n_inputs)
                    m += 2
                else:
                    _1x1(like, w_o, w_stride, x_m, x_stride, y_m, y_stride, scale_o, scale_stride, n_inputs)
                    m += 1
            o += 4 if four else 1


def multiply(x_NI: Tensor, values: Tensor, scales: Tensor | None) -> Tensor:
    """`x @ weight.T`, float32 [N, O]; `values` and `scales` as of `kernels.linear.Weight`, all contiguous."""
    n_rows, n_inputs = x_NI.shape
    n_outputs = len(values)
    out_NO = torch.empty(n_rows, n_outputs)
    threads_for(values.numel())
    _multiply(
        LIKE[values.dtype],
        values.data_ptr(),
        values.stride(0) * values.itemsize,
        x_NI.data_ptr(),
        4 * x_NI.stride(0),
        out_NO.data_ptr(),
        4 * n_outputs,
        0 if scales is None else scales.data_ptr(),
        0 if scales is None else 4 * scales.stride(0),
        n_outputs,
        n_inputs,
        n_rows,
    )
    return out_NO
