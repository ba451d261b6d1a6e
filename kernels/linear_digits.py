# mypy: disable-error-code="attr-defined,call-arg,operator,no-untyped-def,var-annotated"
"""int8 weights times activations in integers, with the CPU's products of bytes: AVX-512 VNNI for a few rows, AMX for more.

A row of activations becomes integers of 24 bits, the largest magnitude being 2²³ - 2, that is, three digits of 8 bits; a
weight is an integer as it is. 64 weights times 64 digits are one instruction (with AMX 16 x 16 such sums are), where floats
take a dozen to widen and to multiply them. The sums are exact: whatever their order, the instruction and the company, a row
has the same bits. What is lost is what rounding the activations to 2⁻²⁴ of the row's largest loses, less than float32 sums
lose.

Letters of tensor names as in `kernels.linear`.
"""

import ctypes
import platform
from functools import lru_cache
from typing import Any

import llvmlite.binding
import numba
import numpy as np
import torch
from llvmlite import ir
from numba import float32, float64, get_thread_id, int32, njit, prange, types
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic
from torch import Tensor

from kernels.linear_numba import PREFETCH_BYTES, TASK, along, prefetch
from kernels.numba_math import INFINITY, LIKE, from_sortable, kernel, magnitude, row_at, threads_for

STEP = 64
"""Weights that one instruction multiplies."""
ROWS_FOR_TILES = 4
"""Fewer rows than these matrix units do not repay."""
DIGITS = 3
HALF = 1 << 23
"""Added to an activation's integer, so that its digits have no sign."""
TOP = HALF - 2
"""The largest magnitude: times 1/x, rounded twice, it still ends below `HALF`."""
TILE = 16
"""Outputs, and rows, of a matrix unit's tile."""
LONGEST = 65_536
"""Inputs up to which 32 bits hold a sum: 255 x 127 x 65,536 < 2³¹."""
TILE_SUMS = DIGITS * TILE * TILE * 4
"""Bytes of a tile's sums."""
STRETCH = 512
"""Inputs whose digits, of 16 rows, leave room for weights in a core's first cache (24 KiB)."""
WIDE, BYTES = LIKE[torch.float32], np.empty(0, np.uint8)
WORDS, INTEGERS = np.empty(0, np.uint32), np.empty(0, np.int32)
SHAPES = np.zeros(64, np.uint8)
"""A matrix unit's configuration: eight tiles of 16 rows of 64 bytes."""
SHAPES[0], SHAPES[16:32:2], SHAPES[48:56] = 1, 64, TILE
TINY = 1e-30
"""A row whose largest magnitude is below it is taken for zeros: 2²³ over it would be infinite."""

_I8, _I32, _I64 = (ir.IntType(bits) for bits in (8, 32, 64))
_F32, _F64 = ir.FloatType(), ir.DoubleType()
_SUMS = ir.VectorType(_I32, 16)


@lru_cache
def _compiles(*names: str) -> bool:
    """Whether numba compiles for CPUs with these features; `NUMBA_CPU_FEATURES` says others than this one's."""
    if numba.config.CPU_FEATURES is not None:
        return all(f"+{name}" in numba.config.CPU_FEATURES.split(",") for name in names)
    features = llvmlite.binding.get_host_cpu_features()
    return all(features.get(name, False) for name in names)


def has_byte_products() -> bool:
    """Whether 64 products of bytes are one instruction here."""
    return _compiles("avx512vnni", "avx512dq", "avx512vl")


@lru_cache
def has_tiles() -> bool:
    """Whether this CPU multiplies tiles of bytes, and Linux lets this process (arch_prctl, ARCH_REQ_XCOMP_PERM)."""
    if not (_compiles("amx-tile", "amx-int8") and has_byte_products() and platform.system() == "Linux"):
        return False
    arch_prctl, request, tile_data = 158, 0x1023, 18
    return ctypes.CDLL(None).syscall(arch_prctl, request, tile_data) == 0


def _load(builder: Any, address: Any) -> Any:
    loaded = builder.load(builder.inttoptr(address, _SUMS.as_pointer()))
    loaded.align = 1
    return loaded


def _shuffled(builder: Any, left: Any, right: Any, lanes: list[int]) -> Any:
    return builder.shuffle_vector(left, right, ir.Constant(ir.VectorType(_I32, len(lanes)), lanes))


def _four_sums(builder: Any, sums: list[Any]) -> Any:
    """The totals of four vectors as one of four numbers."""

    def pair(left: Any, right: Any, width: int) -> Any:
        """Adds lanes that are `width` apart: half as many of the left, and of the right between them."""
        low = [side + lane + k for lane in range(0, 16, 2 * width) for side in (0, 16) for k in range(width)]
        return builder.add(
            _shuffled(builder, left, right, low),
            _shuffled(builder, left, right, [x + width for x in low]),
        )

    ab, cd = pair(sums[0], sums[1], 1), pair(sums[2], sums[3], 1)
    abcd = pair(ab, cd, 2)
    half = builder.add(
        _shuffled(builder, abcd, abcd, list(range(8))), _shuffled(builder, abcd, abcd, list(range(8, 16)))
    )
    return builder.add(
        _shuffled(builder, half, half, list(range(4))), _shuffled(builder, half, half, list(range(4, 8)))
    )


def _block(n_outputs: int, n_rows: int) -> Any:
    """The compiled block `y[m, o] = scale[o] scale_x[m] sum_i w[o, i] x[m, i]`, `n_outputs` 4 or 1.

    Takes addresses, strides in bytes, and those between the digits of a row.
    """

    @intrinsic
    def block(
        typing_context,
        w_at,
        w_stride,
        x_at,
        x_stride,
        digit,
        y_at,
        y_stride,
        scale_at,
        sum_at,
        scale_x_at,
        inputs,
    ):
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            _emit(builder, n_outputs, n_rows, *arguments)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 11), generate

    return block


def _emit(builder, n_outputs, n_rows, w_at, w_stride, x_at, x_stride, digit, y_at, y_stride, scale_at, sum_at, scale_x_at, inputs):  # fmt: skip  # noqa: E501
    if not has_byte_products():  # never called then, but compiled with what calls it
        return
    product = get_or_insert_function(
        builder.module, ir.FunctionType(_SUMS, [_SUMS] * 3), "llvm.x86.avx512.vpdpbusd.512"
    )
    rows = along(builder, w_at, w_stride, n_outputs)
    columns = [along(builder, row, digit, DIGITS) for row in along(builder, x_at, x_stride, n_rows)]
    block_bytes = builder.mul(w_stride, _I64(n_outputs))
    blocks = builder.add(_I64(1), builder.udiv(_I64(PREFETCH_BYTES), block_bytes))
    distance = builder.mul(block_bytes, blocks)
    before = builder.block
    head, body, end = (builder.append_basic_block(name) for name in ("head", "body", "end"))
    builder.branch(head)

    builder.position_at_end(head)
    at = builder.phi(_I64)
    at.add_incoming(_I64(0), before)
    sums = [[[builder.phi(_SUMS) for _ in column] for column in columns] for _ in rows]
    for total in (total for row in sums for column in row for total in column):
        total.add_incoming(ir.Constant(_SUMS, [0] * 16), before)
    builder.cbranch(builder.icmp_unsigned("<", at, inputs), body, end)

    builder.position_at_end(body)
    x = [[_load(builder, builder.add(digit_at, at)) for digit_at in column] for column in columns]
    ahead = builder.add(at, distance)
    for row in rows:  # rows are too short for the hardware to foresee what comes
        prefetch(builder, builder.add(row, ahead))
    for o, row in enumerate(sums):
        w = _load(builder, builder.add(rows[o], at))
        for m, column in enumerate(row):
            for d, total in enumerate(column):
                total.add_incoming(builder.call(product, [total, x[m][d], w]), builder.block)
    at.add_incoming(builder.add(at, _I64(STEP)), builder.block)
    builder.branch(head)

    builder.position_at_end(end)
    for m in range(n_rows):
        scale_x = builder.fpext(_scalar(builder, _F32, builder.add(scale_x_at, _I64(4 * m))), _F64)
        where = builder.add(y_at, builder.mul(y_stride, _I64(m)))
        totals = [[sums[o][m][d] for o in range(n_outputs)] for d in range(DIGITS)]
        _finish(builder, totals, scale_x, scale_at, sum_at, where)


def _scalar(builder: Any, kind: Any, address: Any) -> Any:
    loaded = builder.load(builder.inttoptr(address, kind.as_pointer()))
    loaded.align = 1
    return loaded


def _finish(
    builder: Any, totals: list[list[Any]], scale_x: Any, scale_at: Any, sum_at: Any, y_at: Any
) -> None:
    """From the lanes of each digit's sums, one vector for each output, to the results."""
    n = len(totals[0])
    many = n == 4
    integer, double, single, word = (
        ir.VectorType(kind, 4) if many else kind for kind in (_I64, _F64, _F32, _I32)
    )

    def constant(value: int) -> Any:
        return ir.Constant(integer, [value] * 4 if many else value)

    value = builder.mul(builder.sext(_scalar(builder, word, sum_at), integer), constant(-HALF))
    for d, of_digit in enumerate(totals):
        if many:
            total = _four_sums(builder, of_digit)
        else:
            add = get_or_insert_function(
                builder.module, ir.FunctionType(_I32, [_SUMS]), "llvm.vector.reduce.add.v16i32"
            )
            total = builder.call(add, of_digit)
        weight = constant(1 << 8 * (DIGITS - 1 - d))
        value = builder.add(value, builder.mul(builder.sext(total, integer), weight))
    if many:
        first = builder.insert_element(ir.Constant(double, ir.Undefined), scale_x, _I32(0))
        scale_x = builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(_I32, 4), [0] * 4))
    scale = builder.fmul(builder.fpext(_scalar(builder, single, scale_at), double), scale_x)
    result = builder.fptrunc(builder.fmul(builder.sitofp(value, double), scale), single)
    stored = builder.store(result, builder.inttoptr(y_at, single.as_pointer()))
    stored.align = 4


_4x2, _4x1, _1x1 = _block(4, 2), _block(4, 1), _block(1, 1)


@njit(inline="always")
def split_row(x_at, n_inputs, digits_at, digit, scale_at):
    """One row's digits, the first the highest, and its scale."""
    x, scale = row_at(x_at, 0, n_inputs, WIDE), row_at(scale_at, 0, 1, WIDE)
    largest = int32(0)
    for i in range(n_inputs):
        largest = max(largest, magnitude(x[i]))
    top = from_sortable(largest)
    factor, step = float32(0), float32(0)
    if largest >= int32(INFINITY):
        step = float32(np.nan)
    elif top > float32(TINY):
        factor, step = float32(TOP) / top, top / float32(TOP)
    for i in range(1):  # a loop: see `row_at`
        scale[i] = step
    high = row_at(digits_at, 0, n_inputs, BYTES)
    middle = row_at(digits_at, digit, n_inputs, BYTES)
    low = row_at(digits_at, 2 * digit, n_inputs, BYTES)
    if factor == float32(0):
        for i in range(n_inputs):
            high[i], middle[i], low[i] = 128, 0, 0
    else:
        for i in range(n_inputs):
            u = int32(np.rint(x[i] * factor)) + int32(HALF)
            high[i] = u >> int32(16)
            middle[i] = u >> int32(8)
            low[i] = u


@njit
def multiply_rows(
    w, w_stride, x, x_stride, digit, y, y_stride, scale, sums, scale_x, o, last, n_inputs, n_rows
):
    """Outputs `o` to `last` of all rows."""
    while o < last:
        w_o, scale_o, sum_o, four = w + o * w_stride, scale + 4 * o, sums + 4 * o, last - o >= 4
        m = 0
        while m < n_rows:
            x_m, y_m, scale_m = x + m * x_stride, y + m * y_stride + 4 * o, scale_x + 4 * m
            if four and n_rows - m >= 2:
                _4x2(w_o, w_stride, x_m, x_stride, digit, y_m, y_stride, scale_o, sum_o, scale_m, n_inputs)
                m += 2
            elif four:
                _4x1(w_o, w_stride, x_m, x_stride, digit, y_m, y_stride, scale_o, sum_o, scale_m, n_inputs)
                m += 1
            else:
                _1x1(w_o, w_stride, x_m, x_stride, digit, y_m, y_stride, scale_o, sum_o, scale_m, n_inputs)
                m += 1
        o += 4 if four else 1


@intrinsic
def _tile(typing_context, w_at, w_stride, x_at, digit, sums_at, first, end):
    """The sums of 16 outputs and 16 rows over inputs `first` to `end`, int32 [digits, outputs, rows], added to those that
    are there unless `first` is 0; digits as `interleave` lays them."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _emit_tile(builder, *arguments)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 7), generate


def _tile_call(builder: Any, name: str, *arguments: Any) -> None:
    if not _compiles("amx-tile", "amx-int8"):
        return
    kind = ir.FunctionType(ir.VoidType(), [argument.type for argument in arguments])
    builder.call(get_or_insert_function(builder.module, kind, f"llvm.x86.{name}"), arguments)


def _pointer(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, _I8.as_pointer())


def _emit_tile(builder, w_at, w_stride, x_at, digit, sums_at, start, stop):
    weights, digits = _I8(DIGITS), [_I8(DIGITS + 1 + d) for d in range(DIGITS)]
    place_of = [_pointer(builder, builder.add(sums_at, _I64(d * TILE * TILE * 4))) for d in range(DIGITS)]
    with builder.if_else(builder.icmp_unsigned("==", start, _I64(0))) as (anew, further):
        with anew:
            for d in range(DIGITS):
                _tile_call(builder, "tilezero", _I8(d))
        with further:
            for d in range(DIGITS):
                _tile_call(builder, "tileloadd64", _I8(d), place_of[d], _I64(STEP))
    next_tile = builder.mul(w_stride, _I64(TILE))
    before = builder.block
    head, body, end = (builder.append_basic_block(name) for name in ("head", "body", "end"))
    builder.branch(head)

    builder.position_at_end(head)
    at = builder.phi(_I64)
    at.add_incoming(start, before)
    builder.cbranch(builder.icmp_unsigned("<", at, stop), body, end)

    builder.position_at_end(body)
    here = builder.add(w_at, at)
    _tile_call(builder, "tileloadd64", weights, _pointer(builder, here), w_stride)
    for row in along(builder, builder.add(here, next_tile), w_stride, TILE):
        prefetch(builder, row)
    for d in range(DIGITS):
        place = builder.add(builder.add(x_at, builder.mul(digit, _I64(d))), builder.mul(at, _I64(TILE)))
        _tile_call(builder, "tileloadd64", digits[d], _pointer(builder, place), _I64(STEP))
    for d in range(DIGITS):
        _tile_call(builder, "tdpbsud", _I8(d), weights, digits[d])
    at.add_incoming(builder.add(at, _I64(STEP)), builder.block)
    builder.branch(head)

    builder.position_at_end(end)
    for d in range(DIGITS):
        _tile_call(builder, "tilestored64", _I8(d), place_of[d], _I64(STEP))


@intrinsic
def _configure(typing_context, at):
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _tile_call(builder, "ldtilecfg", _pointer(builder, arguments[0]))
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def _release(typing_context):
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _tile_call(builder, "tilerelease")
        return context.get_dummy_value()

    return types.void(), generate


@njit
def interleave(digits, tiles, n_inputs, n_rows):
    """Rows of digits as tiles want them: of every 16 rows the first 4 inputs one after the other, the next 4, …; rows that
    are not there are zeros. [rows, digits, inputs] -> [rows / 16, digits, inputs / 4, 16, 4]."""
    quarter = n_inputs // 4
    for m in range((n_rows + TILE - 1) // TILE * TILE):
        block, column = m // TILE, m % TILE
        for d in range(DIGITS):
            to = row_at(tiles, (block * DIGITS + d) * quarter * TILE, quarter * TILE, WORDS)
            if m < n_rows:
                of = row_at(digits, (m * DIGITS + d) * quarter, quarter, WORDS)
                for i in range(quarter):
                    to[i * TILE + column] = of[i]
            else:
                for i in range(quarter):
                    to[i * TILE + column] = 0


@njit
def _scaled(sums_at, y, y_stride, scale_at, sum_at, scale_x_at, n_rows):
    """A tile's results: `_finish` for 16 outputs."""
    sums = row_at(sums_at, 0, DIGITS * TILE * TILE, INTEGERS)
    scale, of_weights = row_at(scale_at, 0, TILE, WIDE), row_at(sum_at, 0, TILE, INTEGERS)
    scale_x = row_at(scale_x_at, 0, n_rows, WIDE)
    for m in range(n_rows):
        out = row_at(y + m * y_stride, 0, TILE, WIDE)
        for o in range(TILE):
            at = o * TILE + m
            value = (
                (np.int64(sums[at]) << np.int64(16))
                + (np.int64(sums[at + TILE * TILE]) << np.int64(8))
                + np.int64(sums[at + 2 * TILE * TILE])
                - (np.int64(of_weights[o]) << np.int64(23))
            )
            out[o] = float32(float64(value) * (float64(scale[o]) * float64(scale_x[m])))


@njit
def multiply_tiles(
    shapes, w, w_stride, tiles, y, y_stride, scale, sums, scale_x, first, last, n_inputs, n_rows, scratch
):
    """Outputs `first` to `last`, a multiple of 16 of them, of all rows, by stretches of inputs whose digits stay in
    cache."""
    _configure(shapes)
    for start in range(0, n_inputs, STRETCH):
        end = min(n_inputs, start + STRETCH)
        sums_at = scratch
        for o in range(first, last, TILE):
            for m in range(0, n_rows, TILE):
                of_rows = tiles + m * DIGITS * n_inputs
                _tile(w + o * w_stride, w_stride, of_rows, TILE * n_inputs, sums_at, start, end)
                if end == n_inputs:
                    _scaled(
                        sums_at, y + m * y_stride + 4 * o, y_stride, scale + 4 * o, sums + 4 * o, scale_x + 4 * m,
                        min(TILE, n_rows - m),
                    )  # fmt: skip
                sums_at += TILE_SUMS
    _release()


@kernel
def _multiply(
    shapes, w, w_stride, scale, sums, x, x_stride, y, y_stride, digits, tiles, scale_x, scratch, scratch_size, n_outputs,
    n_inputs, n_rows,
):  # fmt: skip
    for m in range(n_rows):
        split_row(x + m * x_stride, n_inputs, digits + m * DIGITS * n_inputs, n_inputs, scale_x + 4 * m)
    if tiles != 0:
        interleave(digits, tiles, n_inputs, n_rows)
    for task in prange((n_outputs + TASK - 1) // TASK):
        first, last = task * TASK, min(n_outputs, (task + 1) * TASK)
        if tiles != 0:
            whole = first + (last - first) // TILE * TILE
            multiply_tiles(
                shapes, w, w_stride, tiles, y, y_stride, scale, sums, scale_x, first, whole, n_inputs, n_rows,
                scratch + get_thread_id() * scratch_size,
            )  # fmt: skip
            first = whole
        multiply_rows(
            w, w_stride, digits, DIGITS * n_inputs, n_inputs, y, y_stride, scale, sums, scale_x, first, last,
            n_inputs, n_rows,
        )  # fmt: skip


def scratch_bytes(n_rows: int) -> int:
    """Memory of a thread for the sums of a task."""
    return TASK // TILE * -(-n_rows // TILE) * TILE_SUMS


def multiply(x_NI: Tensor, values: Tensor, scales: Tensor, sums: Tensor, tiles: bool | None = None) -> Tensor:
    """`x @ weight.T`, float32 [N, O]; `values`, `scales` and `sums` as of `kernels.linear.Weight`, all contiguous. With
    `tiles` matrix units are used; by default where there are any and rows enough."""
    n_rows, n_inputs = x_NI.shape
    n_outputs = len(values)
    tiles = n_rows >= ROWS_FOR_TILES and has_tiles() if tiles is None else tiles
    out_NO = torch.empty(n_rows, n_outputs)
    digits, scale_N = torch.empty(n_rows * DIGITS * n_inputs, dtype=torch.uint8), torch.empty(n_rows)
    n_threads = threads_for(values.numel())
    laid = scratch = digits[:0]
    if tiles:
        laid = torch.empty(-(-n_rows // TILE) * TILE * DIGITS * n_inputs, dtype=torch.uint8)
        scratch = torch.empty(n_threads * scratch_bytes(n_rows), dtype=torch.uint8)
    _multiply(
        SHAPES.ctypes.data,
        values.data_ptr(),
        n_inputs,
        scales.data_ptr(),
        sums.data_ptr(),
        x_NI.data_ptr(),
        4 * x_NI.stride(0),
        out_NO.data_ptr(),
        4 * n_outputs,
        digits.data_ptr(),
        laid.data_ptr() if tiles else 0,
        scale_N.data_ptr(),
        scratch.data_ptr() if tiles else 0,
        scratch_bytes(n_rows),
        n_outputs,
        n_inputs,
        n_rows,
    )
    return out_NO
