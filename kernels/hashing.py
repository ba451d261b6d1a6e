"""Integer hashing in numba: the MurmurHash3 finalisers (public domain, Austin Appleby) and FNV-1a over code points.

Every operand is cast: numba promotes `uint32 * uint32` to uint64, which would make the 32-bit finaliser silently wrong.
These functions are compiled into their callers, whose cache on disk does not notice a change here: after an edit, delete
`kernels/__pycache__/*.nb?`.
"""

import numpy as np
from numba import njit, uint32, uint64

FNV_OFFSET = np.uint64(0xCBF29CE484222325)
FNV_PRIME = np.uint64(0x100000001B3)


@njit(inline="always")
def mix32(value: np.uint32) -> np.uint32:
    """fmix32, a bijection of [0, 2^32)."""
    value ^= value >> uint32(16)
    value = uint32(value * uint32(0x85EBCA6B))
    value ^= value >> uint32(13)
    value = uint32(value * uint32(0xC2B2AE35))
    return uint32(value ^ (value >> uint32(16)))


@njit(inline="always")
def mix64(value: np.uint64) -> np.uint64:
    """fmix64, a bijection of [0, 2^64)."""
    value ^= value >> uint64(33)
    value *= uint64(0xFF51AFD7ED558CCD)
    value ^= value >> uint64(33)
    value *= uint64(0xC4CEB9FE1A85EC53)
    return value ^ (value >> uint64(33))


@njit(inline="always")
def fnv1a(state: np.uint64, value: np.uint64) -> np.uint64:
    """One step of FNV-1a; a 21-bit code point is taken where the original takes a byte."""
    return (state ^ value) * FNV_PRIME
