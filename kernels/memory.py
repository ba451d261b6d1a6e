"""Memory as pointers in numba, for loops in which arrays would cost more than all else; arrays that grow.

Arrays are counted by reference whenever they are handed on; pointers are not, so whoever takes one keeps the array.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import extending, njit, types
from numba.core import cgutils
from numpy.typing import NDArray

_intrinsic: Any = extending.intrinsic


@_intrinsic
def pointer(typing: Any, array: Any) -> Any:
    """Where an array's elements are."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return context.make_array(signature.args[0])(context, builder, args[0]).data

    return types.CPointer(array.dtype)(array), codegen


@_intrinsic
def load64(typing: Any, data: Any, at: Any) -> Any:
    """The eight bytes from a pointer's byte `at` on as a little-endian uint64."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = builder.load(builder.bitcast(builder.gep(args[0], [args[1]]), ir.IntType(64).as_pointer()))
        word.align = 1
        return word

    return types.uint64(data, types.intp), codegen


@_intrinsic
def store64(typing: Any, data: Any, at: Any, value: Any) -> Any:
    """Writes a uint64 as eight little-endian bytes from a pointer's byte `at` on."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        target = builder.bitcast(builder.gep(args[0], [args[1]]), ir.IntType(64).as_pointer())
        builder.store(args[2], target).align = 1
        return context.get_dummy_value()

    return types.void(data, types.intp, types.uint64), codegen


@_intrinsic
def trailing_zeros(typing: Any, value: Any) -> Any:
    """How many low bits of a uint64 are zero; 64 of none."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], cgutils.false_bit)

    return types.int64(types.uint64), codegen


@njit(nogil=True, cache=True)
def grown(values: NDArray[np.int64], used: int, size: int) -> NDArray[np.int64]:
    """A longer array that begins with the first `used` values."""
    out = np.empty(size, np.int64)
    for k in range(used):
        out[k] = values[k]
    return out
