"""MinHash signatures, LSH bands, true Jaccard similarity and clustering as numba passes over flat arrays.

Signatures are those of datasketch 2.x with `scheme="affine32"`: the 32-bit element hash goes through the MurmurHash3
finaliser, then `a * h + b mod 2^32` with odd `a` for every permutation (Broder 1997; https://github.com/ekzhu/datasketch).

A ragged array is two: `values`, and `starts` int64[n_docs + 1], where each document's values begin. Documents are numbered
by priority: of two that are alike, the smaller number stays.
"""

import numpy as np
from numba import njit, uint32, uint64
from numpy.typing import NDArray

from kernels.hashing import mix32, mix64

GRAM_BASE = np.uint64(0x9E3779B97F4A7C15)


def permutations(n: int, seed: int = 1) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """The `a` (odd) and `b` that `datasketch.MinHash(n, seed, scheme="affine32")` draws: uint32[n] each."""
    draw = np.random.RandomState(seed)
    a = draw.randint(0, 1 << 31, n, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
    return a, draw.randint(0, 1 << 32, n, dtype=np.uint32)


@njit(nogil=True, cache=True)
def ngrams(
    values: NDArray[np.uint64], starts: NDArray[np.int64], n: int
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Hashes of every window of `n` values (order counts), repeats included, as a ragged array.

    A document with fewer values, but not none, gives one window of what it has.
    """
    n_docs = starts.size - 1
    out_starts = np.zeros(n_docs + 1, np.int64)
    for doc in range(n_docs):
        length = starts[doc + 1] - starts[doc]
        out_starts[doc + 1] = out_starts[doc] + (max(length - n + 1, 1) if length else 0)
    out = np.empty(out_starts[n_docs], np.uint64)
    for doc in range(n_docs):
        for k in range(out_starts[doc + 1] - out_starts[doc]):
            first = starts[doc] + k
            state = uint64(0)
            for at in range(first, min(first + n, starts[doc + 1])):
                state = state * GRAM_BASE + values[at]
            out[out_starts[doc] + k] = mix64(state)
    return out, out_starts


@njit(nogil=True, cache=True)
def signatures(
    elements: NDArray[np.uint64], starts: NDArray[np.int64], a: NDArray[np.uint32], b: NDArray[np.uint32]
) -> NDArray[np.uint32]:
    """MinHash signatures uint32[n_docs, n_permutations] of the low 32 bits of each element; of nothing, all 2^32 - 1."""
    n_docs = starts.size - 1
    out = np.full((n_docs, a.size), np.uint32(0xFFFFFFFF), np.uint32)
    for doc in range(n_docs):
        row = out[doc]
        for at in range(starts[doc], starts[doc + 1]):
            mixed = mix32(uint32(elements[at] & uint64(0xFFFFFFFF)))
            for k in range(a.size):
                row[k] = min(row[k], uint32(uint32(a[k] * mixed) + b[k]))
    return out


@njit(nogil=True, cache=True)
def band_keys(signatures: NDArray[np.uint32], n_bands: int) -> NDArray[np.uint64]:
    """One 64-bit hash per band of consecutive signature rows: uint64[n_docs, n_bands]."""
    n_docs, n_rows = signatures.shape[0], signatures.shape[1] // n_bands
    out = np.empty((n_docs, n_bands), np.uint64)
    for doc in range(n_docs):
        for band in range(n_bands):
            state = uint64(0)
            for row in range(band * n_rows, (band + 1) * n_rows):
                state = mix64(state * GRAM_BASE + uint64(signatures[doc, row]))
            out[doc, band] = state
    return out


@njit(nogil=True, cache=True)
def bucket_pairs(keys: NDArray[np.uint64], order: NDArray[np.int64], window: int) -> NDArray[np.int64]:
    """Pairs (smaller, larger) of documents with the same key, int64[n_pairs, 2].

    `order` sorts `keys` stably. A document is paired with the first of its bucket and with the `window` before it, so that
    a bucket of n gives at most n * (window + 1) pairs, not n^2 / 2.
    """
    out = np.empty((0, 2), np.int64)
    for fill in range(2):  # once to count, once to write
        count, bucket = 0, 0
        for k in range(1, order.size):
            if keys[order[k]] != keys[order[bucket]]:
                bucket = k
            nearest = max(bucket, k - window)
            if bucket < nearest:
                if fill:
                    out[count, 0], out[count, 1] = order[bucket], order[k]
                count += 1
            for other in range(nearest, k):
                if fill:
                    out[count, 0], out[count, 1] = order[other], order[k]
                count += 1
        if not fill:
            out = np.empty((count, 2), np.int64)
    return out


@njit(nogil=True, cache=True)
def unique_sets(
    values: NDArray[np.uint64], starts: NDArray[np.int64]
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Every document's values sorted and without repeats."""
    out, out_starts = np.empty_like(values), np.zeros_like(starts)
    count = 0
    for doc in range(starts.size - 1):
        ordered = np.sort(values[starts[doc] : starts[doc + 1]])
        for k in range(ordered.size):
            if k == 0 or ordered[k] != ordered[k - 1]:
                out[count] = ordered[k]
                count += 1
        out_starts[doc + 1] = count
    return out[:count].copy(), out_starts


@njit(nogil=True, cache=True)
def jaccard(
    sets: NDArray[np.uint64], starts: NDArray[np.int64], pairs: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Jaccard similarity |A and B| / |A or B| of each pair of `unique_sets`; of two empty sets, 0."""
    out = np.zeros(len(pairs))
    for k in range(len(pairs)):
        i, i_end = starts[pairs[k, 0]], starts[pairs[k, 0] + 1]
        j, j_end = starts[pairs[k, 1]], starts[pairs[k, 1] + 1]
        total, common = i_end - i + j_end - j, 0
        while i < i_end and j < j_end:
            if sets[i] == sets[j]:
                common += 1
                i += 1
                j += 1
            elif sets[i] < sets[j]:
                i += 1
            else:
                j += 1
        if total:
            out[k] = common / (total - common)
    return out


@njit(nogil=True, cache=True)
def connected_components(n: int, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Union-find over `n` nodes: each node's component, named by its smallest member. int64[n].

    The smaller root always wins, so the result does not depend on the order of the pairs; paths are halved on the way up
    (Tarjan and van Leeuwen 1984).
    """
    parent = np.arange(n)
    for k in range(len(pairs)):
        left, right = pairs[k, 0], pairs[k, 1]
        while parent[left] != left:
            parent[left] = parent[parent[left]]
            left = parent[left]
        while parent[right] != right:
            parent[right] = parent[parent[right]]
            right = parent[right]
        if left < right:
            parent[right] = left
        else:
            parent[left] = right
    for node in range(n):  # a parent is smaller than its child, hence final already
        parent[node] = parent[parent[node]]
    return parent


@njit(nogil=True, cache=True)
def representatives(n: int, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which document stands for which: itself where it stays, else the first *kept* one that it is paired with. int64[n].

    `pairs` (smaller, larger) are sorted by the larger, then the smaller. Unlike a whole component, which chains A like B
    like C, every removed document is alike to a kept one: templated text does not collapse into one document.
    """
    out = np.arange(n)
    for k in range(len(pairs)):
        smaller, larger = pairs[k, 0], pairs[k, 1]
        if out[larger] == larger and out[smaller] == smaller:
            out[larger] = smaller
    return out
