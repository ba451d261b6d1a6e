# mypy: disable-error-code="operator,return-value,assignment,call-overload"
"""Numeric work on flat arrays of token ids, in numba with the GIL released: which window a sample is, the rows of a batch,
documents framed by their control tokens, and best-fit packing.

A shard is `ids` (uint16 or uint32, one document after another). A reader sees its documents through two arrays: document d
begins at `where[d]` of `ids`, and is the positions `cum[d] .. cum[d + 1]` of the stream that is read. So a selection of
documents reads like the whole shard.
"""

import numpy as np
from numba import njit, uint64
from numpy.typing import NDArray

from kernels.hashing import mix64

ROUNDS = 6
ODD = np.uint64(0x9E3779B97F4A7C15)
IGNORE = np.int64(-100)
"""Target of a position that is not in the loss."""


@njit(inline="always")
def _permuted(position: np.int64, size: np.int64, key: np.uint64) -> np.int64:
    """Where a keyed permutation of range(size) sends `position`.

    A Feistel network on the next power of four, walked until it falls inside (Black and Rogaway, 2002).
    """
    if size <= 1:
        return np.int64(0)
    half = uint64(1)
    while (uint64(1) << (uint64(2) * half)) < uint64(size):
        half += uint64(1)
    mask = (uint64(1) << half) - uint64(1)
    walked = uint64(position)
    while True:
        left, right = walked >> half, walked & mask
        round_key = key
        for _ in range(ROUNDS):
            round_key += ODD
            left, right = right, left ^ (mix64(right + round_key) & mask)
        walked = left << half | right
        if walked < uint64(size):
            return np.int64(walked)


@njit(nogil=True, cache=True)
def permute(positions: NDArray[np.int64], size: int, key: np.uint64) -> NDArray[np.int64]:
    """Where a keyed permutation of `range(size)` sends `positions`. int64[n] -> int64[n]; the same for any n."""
    out = np.empty(positions.size, np.int64)
    for i in range(positions.size):
        out[i] = _permuted(positions[i], np.int64(size), key)
    return out


@njit(nogil=True, cache=True)
def locate(
    samples: NDArray[np.int64],
    slot_source: NDArray[np.int64],
    slot_rank: NDArray[np.int64],
    per_period: NDArray[np.int64],
    full: NDArray[np.int64],
    per_grain: NDArray[np.int64],
    mixed: NDArray[np.int64],
    part_start: NDArray[np.int64],
    part_first: NDArray[np.int64],
    part_grain: NDArray[np.int64],
    part_windows: NDArray[np.int64],
    part_key: NDArray[np.uint64],
    epoch_key: NDArray[np.uint64],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Source, part, grain and window in the grain of every sample: 4 x int64[n]. See `moxin.tokens.order`.

    By slot of a period: `slot_source`, and `slot_rank`, how many earlier slots have the same. By source: slots in a period,
    whole grains, windows in one, grains that are mixed with one another. The parts of source s, one for each epoch that the
    phase reads of it, are `part_start[s] .. part_start[s + 1]`: number of the source's windows before it, the place in the
    epoch's order at which it begins, its windows, and the keys of the order of windows and of that of grains.
    """
    n, period = samples.size, slot_source.size
    sources, parts = np.empty(n, np.int64), np.empty(n, np.int64)
    grains, windows = np.empty(n, np.int64), np.empty(n, np.int64)
    for i in range(n):
        slot = samples[i] % period
        s = slot_source[slot]
        nth = samples[i] // period * per_period[s] + slot_rank[slot]
        first, last = part_start[s], part_start[s + 1]
        part = first + np.searchsorted(part_first[first:last], nth, side="right") - 1
        k = per_grain[s]
        at = nth - part_first[part]
        block = at // (mixed[s] * k)
        begin = block * (mixed[s] * k)
        size = min(mixed[s] * k, part_windows[part] - begin)
        at = begin + _permuted(at - begin, size, part_key[part] + mix64(uint64(block + 1)))
        # The rest of a source that fills no grain has fewer windows and is the last of every epoch.
        place = min(part_grain[part] + at // k, full[s])
        window = at - (place - part_grain[part]) * k
        if place < full[s]:
            block = place // mixed[s]
            whole = full[s] // mixed[s]
            size = mixed[s] if block < whole else full[s] - whole * mixed[s]
            if block < whole:
                block = _permuted(block, whole, epoch_key[part])
            within = _permuted(place % mixed[s], size, epoch_key[part] + mix64(uint64(block + 1)))
            place = block * mixed[s] + within
        sources[i], parts[i], grains[i], windows[i] = s, part, place, window
    return sources, parts, grains, windows


@njit(nogil=True, cache=True)
def read(
    ids: NDArray[np.unsignedinteger],
    cum: NDArray[np.uint64],
    where: NDArray[np.uint64],
    start: int,
    n: int,
    segment: int,
    tokens: NDArray[np.int64],
    targets: NDArray[np.int64],
    segments: NDArray[np.int32],
) -> tuple[int, int]:
    """Positions `start` to `start + n` of a shard as a piece of a row: `tokens`, `targets` int64[n], `segments` int32[n].

    A target is the next token of the same document; the last token of a document has `IGNORE`. Documents are numbered from
    `segment`. Returns the number after the last one, and the largest id.
    """
    lo, hi = 0, cum.size - 1
    while lo + 1 < hi:  # the last document that begins at or before `start`
        middle = (lo + hi) // 2
        if np.int64(cum[middle]) <= start:
            lo = middle
        else:
            hi = middle
    doc, filled, largest = lo, 0, np.int64(0)
    while filled < n:
        begin, end = np.int64(cum[doc]), np.int64(cum[doc + 1])
        offset = np.int64(where[doc]) - begin
        first = start + filled
        last = min(end, start + n)
        for position in range(first, last):
            token = np.int64(ids[offset + position])
            largest = max(largest, token)
            tokens[position - start] = token
            segments[position - start] = segment
        for position in range(first, last - 1):
            targets[position - start] = tokens[position + 1 - start]
        if last > first:
            targets[last - 1 - start] = IGNORE
            if last < end:
                following = np.int64(ids[offset + last])
                largest = max(largest, following)
                targets[last - 1 - start] = following
            segment += 1
        filled = last - start
        doc += 1
    return segment, largest


@njit(nogil=True, cache=True)
def select(offsets: NDArray[np.uint64], least: int, below: int) -> NDArray[np.int64]:
    """Numbers of the documents with `least <= tokens < below`. uint64[documents + 1] -> int64[n]."""
    out = np.empty(offsets.size - 1, np.int64)
    n = 0
    for doc in range(offsets.size - 1):
        length = np.int64(offsets[doc + 1] - offsets[doc])
        if least <= length < below:
            out[n] = doc
            n += 1
    return out[:n].copy()


@njit(nogil=True, cache=True)
def frame(
    ids: NDArray[np.unsignedinteger],
    offsets: NDArray[np.int64],
    documents: NDArray[np.int64],
    prefix: NDArray[np.int64],
    suffix: NDArray[np.int64],
    out: NDArray[np.unsignedinteger],
) -> NDArray[np.int64]:
    """Writes the given documents one after another into `out`, each between `prefix` and `suffix`.

    `ids` and `offsets` int64[n_docs + 1] are what a tokenizer gave; `out` has room for all. Returns the lengths of the
    framed documents, int64[len(documents)].
    """
    lengths = np.empty(documents.size, np.int64)
    at = 0
    for i in range(documents.size):
        begin = at
        for k in range(prefix.size):
            out[at] = prefix[k]
            at += 1
        for k in range(offsets[documents[i]], offsets[documents[i] + 1]):
            out[at] = ids[k]
            at += 1
        for k in range(suffix.size):
            out[at] = suffix[k]
            at += 1
        lengths[i] = at - begin
    return lengths


@njit(nogil=True, cache=True)
def best_fit(lengths: NDArray[np.int64], capacity: int) -> tuple[NDArray[np.int64], int]:
    """Best-fit decreasing: the bin of every item, int64[n], and how many bins there are.

    Longest first, each into the fullest bin that still holds it; equal lengths keep their order. Uses at most 11/9 of the
    fewest possible bins, plus one (Johnson, 1973). Every length is from 1 to `capacity`. O(n log capacity): the bins are
    kept in a stack for each number of free positions, and a tree of bits says which stacks are not empty.
    """
    n = lengths.size
    by_length = np.zeros(capacity + 2, np.int64)
    for i in range(n):
        by_length[capacity - lengths[i] + 1] += 1
    for length in range(capacity + 1):
        by_length[length + 1] += by_length[length]
    order = np.empty(n, np.int64)
    for i in range(n):
        order[by_length[capacity - lengths[i]]] = i
        by_length[capacity - lengths[i]] += 1

    leaves = 1
    while leaves < capacity + 1:
        leaves *= 2
    filled = np.zeros(2 * leaves, np.int64)  # bins below every node of the tree
    top = np.full(capacity + 1, -1, np.int64)  # by free positions: the bin on top of the stack
    below = np.empty(n, np.int64)  # by bin: the next in its stack
    bins = np.empty(n, np.int64)
    n_bins = 0
    for i in order:
        need = lengths[i]
        # The smallest number of free positions, at least `need`, that some bin has.
        node, free = leaves + need, -1
        if filled[node]:
            free = need
        else:
            while node > 1 and (node & 1 or not filled[node + 1]):
                node //= 2
            if node > 1:
                node += 1
                while node < leaves:
                    node *= 2
                    if not filled[node]:
                        node += 1
                free = node - leaves
        if free < 0:
            number, free = n_bins, capacity
            n_bins += 1
        else:
            number = top[free]
            top[free] = below[number]
            node = leaves + free
            while node:
                filled[node] -= 1
                node //= 2
        bins[i] = number
        free -= need
        below[number] = top[free]
        top[free] = number
        node = leaves + free
        while node:
            filled[node] += 1
            node //= 2
    return bins, n_bins
