# mypy: disable-error-code="attr-defined,call-arg,operator,var-annotated"
"""What the numba kernels are made of: bfloat16 as bits, an exponential that vectorises, memory as arrays, torch's threads.

numba has no bfloat16: a tensor of that type is seen as uint16, whose bits are the upper half of a float32. `get` and `put`
read and write either type as float32, so one loop serves both. LLVM vectorises these loops (0.2 ns per exponential on one
core with AVX-512, where numpy's takes 0.6); the library's `exp` it would not.

Functions here are compiled into their callers, whose cache on disk does not notice a change: after an edit, delete
`kernels/__pycache__/*.nb?`.
"""

import fcntl
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import carray, float32, int32, njit, types, uint16, uint32
from numba.extending import intrinsic, overload
from torch import Tensor

KEEPS_NAN: dict[str, Any] = {
    "nogil": True,
    "cache": True,
    "fastmath": {"reassoc", "contract", "nsz", "arcp"},
    "error_model": "numpy",
}
"""Sums in any order, but NaN and infinity are as IEEE 754 has them, and so is division by 0, else a branch in every loop."""

part = njit(fastmath=KEEPS_NAN["fastmath"], error_model=KEEPS_NAN["error_model"])
"""A function that kernels call."""

ALONE = 16_384
"""Elements that one thread is done with before a second one has begun."""

DTYPES = (torch.float32, torch.bfloat16)

LIKE: dict[torch.dtype, np.ndarray] = {
    torch.float32: np.empty(0, np.float32),
    torch.bfloat16: np.empty(0, np.uint16),
}
"""Tells a kernel in what type to read the memory at an address, see `row_at`."""


def _launch() -> None:
    """Starts numba's threads, which sets OpenMP's number of threads to the machine's, and torch's with it: set back here."""
    n_threads = torch.get_num_threads()
    numba.set_num_threads(1)
    torch.set_num_threads(n_threads)


_launch()


def kernel(function: Callable[..., None], parallel: bool = True) -> Any:
    """A parallel kernel with `KEEPS_NAN`, whose results have the same bits in every process.

    What numba runs straight after compiling is rounded otherwise, here and there by a last place, than what it loads from
    its cache: the loop of a parallel function is compiled on its own, and once more within the object that is stored (numba
    0.68). A run that is started again would leave its own curve. So what is not in the cache yet is compiled by a process of
    its own, about 3 s more for each kernel the first time, and the code that runs is always the cache's.
    """
    dispatcher = njit(parallel=parallel, **KEEPS_NAN)(function)
    load_or_compile = dispatcher.compile

    def compile_elsewhere(signature: Any) -> Any:
        if not os.environ.get(_COMPILING):
            _store(dispatcher, signature)
        return load_or_compile(signature)

    dispatcher.compile = compile_elsewhere
    return dispatcher


def sequential_kernel(function: Callable[..., None]) -> Any:
    """A `kernel` that is not parallel itself: it calls those that are."""
    return kernel(function, parallel=False)


def _store(dispatcher: Any, signature: Any) -> None:
    """Sees to it that the cache has this specialisation. One process at a time: numba loses an entry where two write."""
    cache = dispatcher._cache
    os.makedirs(cache.cache_path, exist_ok=True)
    with open(os.path.join(cache.cache_path, ".compiling"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if cache.load_overload(signature, dispatcher.targetctx) is None:
            function = dispatcher.py_func
            task = pickle.dumps((function.__module__, function.__name__, signature))
            path = os.pathsep.join(filter(None, sys.path))
            environment = {**os.environ, _COMPILING: "1", "PYTHONPATH": path}
            subprocess.run([sys.executable, "-c", _COMPILE], input=task, env=environment, check=True)


_COMPILING = "MOXIN_COMPILES_KERNELS"
_COMPILE = """
import importlib, pickle, sys
module, name, signature = pickle.load(sys.stdin.buffer)
getattr(importlib.import_module(module), name).compile(signature)
"""


_set = threading.local()


def threads_for(n_elements: int) -> int:
    """As many threads as torch has, or one for a tensor of fewer than `ALONE` elements; returns how many.

    Call it before a kernel: a training worker has one thread, whatever the machine has.
    """
    n_threads = 1 if n_elements < ALONE else min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)
    if (
        getattr(_set, "n_threads", None) != n_threads
    ):  # numba keeps it for each thread, too, and takes 10 us to set it
        numba.set_num_threads(n_threads)
        _set.n_threads = n_threads
    return n_threads


def require(kernel: str, *tensors: Tensor) -> None:
    """Raises `ValueError` where the numba back-end of `kernel` cannot run: not a CPU, or not float32 or bfloat16."""
    for x in tensors:
        if x.device.type != "cpu" or x.dtype not in DTYPES:
            raise ValueError(
                f"{kernel}: the numba back-end takes float32 and bfloat16 tensors on the CPU, not "
                f"{str(x.dtype).removeprefix('torch.')} on {x.device}; MOXIN_{kernel.upper()}=torch does"
            )


@intrinsic
def _pointer(typing_context: Any, address: Any, like: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(like.dtype)(types.int64, like), generate


@njit(inline="always")
def row_at(address: int, offset: int, n: int, like: np.ndarray) -> np.ndarray:
    """`n` elements of the type of `like`, from the one that is `offset` elements after `address` (`Tensor.data_ptr()`).

    A tensor becomes an address in 0.1 us, an array in 2 to 5, and a one-token forward pass has a dozen for each layer; rows
    of a strided tensor become contiguous arrays, the only kind that LLVM vectorises. The caller keeps the tensor alive.

    numba takes the array for a local one and drops a store that no later statement could read: store in loops, or with
    `put_one`.
    """
    return carray(_pointer(address + offset * like.itemsize, like), (n,))


INFINITY = 0x7F800000
"""`magnitude` of an infinity."""


@intrinsic
def _bits(typing_context: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return uint32(float32), generate


@intrinsic
def _from_bits(typing_context: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return float32(uint32), generate


@njit(inline="always")
def exp32(x: np.float32) -> np.float32:
    """e^x to 2 units in the last place between -87 and 88, beyond which it stays at the ends.

    x = n ln 2 + r, a polynomial of degree 6 in r (Cephes' `expf`), and n added to the exponent's bits.
    """
    x = min(max(x, float32(-87.0)), float32(88.0))
    n = np.floor(x * float32(1.44269504) + float32(0.5))
    r = x - n * float32(0.693359375) + n * float32(2.12194440e-4)
    p = float32(1.9875691500e-4)
    p = p * r + float32(1.3981999507e-3)
    p = p * r + float32(8.3334519073e-3)
    p = p * r + float32(4.1665795894e-2)
    p = p * r + float32(1.6666665459e-1)
    p = p * r + float32(5.0000001201e-1)
    p = p * r * r + r + float32(1.0)
    return p * _from_bits(uint32((int32(n) + int32(127)) << int32(23)))


@njit(inline="always")
def sortable(x: np.float32) -> np.int32:
    """An integer that orders as the float does. LLVM vectorises the maximum of integers, of floats it does not: 8 times."""
    bits = int32(_bits(x))
    return bits ^ ((bits >> int32(31)) & int32(0x7FFFFFFF))


@njit(inline="always")
def from_sortable(key: np.int32) -> np.float32:
    return _from_bits(uint32(key ^ ((key >> int32(31)) & int32(0x7FFFFFFF))))


@njit(inline="always")
def magnitude(x: np.float32) -> np.int32:
    """An integer that orders as |x| does: `INFINITY` for infinities, more for NaN, whatever fastmath says."""
    return int32(_bits(x)) & int32(0x7FFFFFFF)


@njit(inline="always")
def to_bfloat16(x: np.float32) -> np.uint16:
    """The nearest bfloat16, ties to even. NaNs stay NaNs."""
    bits = _bits(x)
    return uint16((bits + uint32(0x7FFF) + ((bits >> uint32(16)) & uint32(1))) >> uint32(16))


@njit(inline="always")
def from_bfloat16(bits: np.uint16) -> np.float32:
    return _from_bits(uint32(bits) << uint32(16))


def get(row: Any, i: int) -> np.float32:
    """`row[i]` of a float32 or bfloat16 (uint16) row, as float32."""
    raise NotImplementedError("for compiled code only")


def put(row: Any, i: int, value: np.float32) -> None:
    """`row[i] = value`, rounded to the row's type."""
    raise NotImplementedError("for compiled code only")


@overload(get, inline="always")
def _get(row: Any, i: Any) -> Any:
    if row.dtype == types.uint16:

        def read(row: Any, i: Any) -> Any:
            return from_bfloat16(row[i])

    else:

        def read(row: Any, i: Any) -> Any:
            return row[i]

    return read


@overload(put, inline="always")
def _put(row: Any, i: Any, value: Any) -> Any:
    if row.dtype == types.uint16:

        def write(row: Any, i: Any, value: Any) -> None:
            row[i] = to_bfloat16(value)

    else:

        def write(row: Any, i: Any, value: Any) -> None:
            row[i] = value

    return write


@njit
def put_one(row: np.ndarray, i: int, value: np.float32) -> None:
    """`put` outside a loop, into a row from `row_at`: a call that is not inlined is no dead store."""
    put(row, i, value)
