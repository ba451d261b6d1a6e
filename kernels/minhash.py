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
from kernels.text import N_CODE_POINTS, SPACE, next_code_point

GRAM_BASE = np.uint64(0x9E3779B97F4A7C15)
_BLOCK = 1024
"""Elements that all permutations go over before the next ones: 4 KiB."""
_FEW = 24
"""Values that are sorted by insertion."""


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
def character_ngrams(
    data: NDArray[np.uint8], offsets: NDArray[np.int64], flags: NDArray[np.uint8], n: int
) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64]]:
    """Hashes of every window of `n` characters, as a ragged array, and how many characters each document has.

    `data` and `offsets` are an Arrow string column's UTF-8, `flags` those of `kernels.text.unicode_tables`. Characters are
    counted after SlimPajama's normalisation: ASCII letters in lower case, ASCII punctuation deleted, a run of white space
    one space, none at either end. NFC and the lower case of other letters are for the caller, see
    `moxin.curate.fuzzy_shingles`. The hash is `mix64` of the polynomial of code points + 1 in `GRAM_BASE` modulo 2^64, the
    first character with the highest power. A document with fewer characters, but not none, gives one window of what it has.
    """
    n_docs = offsets.size - 1
    out = np.empty(offsets[n_docs] - offsets[0], np.uint64)  # a character takes a byte at least
    starts, lengths = np.zeros(n_docs + 1, np.int64), np.zeros(n_docs, np.int64)
    longest, leaving = 0, uint64(1)
    for doc in range(n_docs):
        longest = max(longest, offsets[doc + 1] - offsets[doc])
    for _ in range(n):
        leaving *= GRAM_BASE
    ascii = np.zeros(128, np.uint64)  # the character's value; `blank` for white space, 0 for what is deleted
    blank = uint64(1)  # NUL would be a 1, too: all values are one larger than what is hashed
    for code in range(128):
        if flags[code] & SPACE:
            ascii[code] = blank
        elif not ((33 <= code < 48) or (58 <= code < 65) or (91 <= code < 97) or (123 <= code < 127)):
            ascii[code] = uint64(code + 2 + (32 if 65 <= code <= 90 else 0))
    points = np.empty(longest + 1, np.uint64)
    count = 0
    for doc in range(n_docs):
        at, end, length, spaced = offsets[doc], offsets[doc + 1], 0, False
        while at < end:
            if data[at] < 128:
                value, at = ascii[data[at]], at + 1
            else:
                point, at = next_code_point(data, at)
                value = uint64(point + 2)
                if point < N_CODE_POINTS and flags[point] & SPACE:
                    value = blank
            if value > blank:
                if spaced:
                    points[length] = uint64(33)
                    length, spaced = length + 1, False
                points[length] = value - blank
                length += 1
            elif value == blank:
                spaced = length > 0
        state = uint64(0)
        for k in range(length):
            state = state * GRAM_BASE + points[k]
            if k >= n:
                state -= points[k - n] * leaving
            if k >= n - 1 or k == length - 1:
                out[count] = mix64(state)
                count += 1
        starts[doc + 1], lengths[doc] = count, length
    return out[:count].copy(), starts, lengths


@njit(nogil=True, cache=True)
def signatures(
    elements: NDArray[np.uint64], starts: NDArray[np.int64], a: NDArray[np.uint32], b: NDArray[np.uint32]
) -> NDArray[np.uint32]:
    """MinHash signatures uint32[n_docs, n_permutations] of the low 32 bits of each element; of nothing, all 2^32 - 1."""
    n_docs, longest = starts.size - 1, 0
    for doc in range(n_docs):
        longest = max(longest, starts[doc + 1] - starts[doc])
    out = np.full((n_docs, a.size), np.uint32(0xFFFFFFFF), np.uint32)
    mixed = np.empty(min(longest, _BLOCK), np.uint32)
    for doc in range(n_docs):
        row = out[doc]
        for start in range(starts[doc], starts[doc + 1], _BLOCK):
            n = min(_BLOCK, starts[doc + 1] - start)
            for k in range(n):
                mixed[k] = mix32(uint32(elements[start + k] & uint64(0xFFFFFFFF)))
            for permutation in range(a.size):
                factor, term, least = a[permutation], b[permutation], row[permutation]
                for k in range(n):  # a minimum over elements in the first-level cache: becomes vector code
                    least = min(least, uint32(uint32(factor * mixed[k]) + term))
                row[permutation] = least
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
def unique_sets(
    values: NDArray[np.uint64], starts: NDArray[np.int64]
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Every document's values sorted and without repeats.

    Hashes are spread evenly, so that the highest bits put each next to its place; whatever is not is sorted by comparison.
    """
    n_docs, longest, count = starts.size - 1, 0, 0
    for doc in range(n_docs):
        longest = max(longest, starts[doc + 1] - starts[doc])
    out, out_starts = np.empty_like(values), np.zeros_like(starts)
    ordered, ends = np.empty(longest, np.uint64), np.empty(2 * longest + 2, np.int64)
    for doc in range(n_docs):
        begin, n = starts[doc], starts[doc + 1] - starts[doc]
        bits = 1
        while 1 << bits < n:
            bits += 1
        shift, n_buckets = uint64(64 - bits), 1 << bits
        ends[:n_buckets] = 0
        for k in range(begin, begin + n):
            ends[values[k] >> shift] += 1
        total = 0
        for bucket in range(n_buckets):
            total, ends[bucket] = total + ends[bucket], total
        for k in range(begin, begin + n):
            bucket = values[k] >> shift
            ordered[ends[bucket]] = values[k]
            ends[bucket] += 1
        low = 0
        for bucket in range(n_buckets):
            high = ends[bucket]
            if high - low > _FEW:
                ordered[low:high] = np.sort(ordered[low:high])
            else:
                for k in range(low + 1, high):
                    value, at = ordered[k], k
                    while at > low and ordered[at - 1] > value:
                        ordered[at] = ordered[at - 1]
                        at -= 1
                    ordered[at] = value
            low = high
        for k in range(n):
            if k == 0 or ordered[k] != ordered[k - 1]:
                out[count] = ordered[k]
                count += 1
        out_starts[doc + 1] = count
    return out[:count].copy(), out_starts


@njit(nogil=True, cache=True)
def jaccard_from(
    left: NDArray[np.uint64],
    left_starts: NDArray[np.int64],
    right: NDArray[np.uint64],
    right_starts: NDArray[np.int64],
    pairs: NDArray[np.int64],
    threshold: float,
) -> NDArray[np.float64]:
    """`jaccard` of pairs of a set in `left` and one in `right`, where it reaches the threshold; -1 where it does not.

    J >= t allows at most (1 - t) / (1 + t) * (|A| + |B|) elements that are in one set only (Xiao et al. 2008, PPJoin), so a
    pair is given up once there are more; what is left is compared with the threshold as `jaccard` would be.
    """
    out = np.full(len(pairs), -1.0)
    for k in range(len(pairs)):
        i, i_end = left_starts[pairs[k, 0]], left_starts[pairs[k, 0] + 1]
        j, j_end = right_starts[pairs[k, 1]], right_starts[pairs[k, 1] + 1]
        total, common, single = i_end - i + j_end - j, 0, 0
        allowed = np.int64((1.0 - threshold) / (1.0 + threshold) * total) + 1  # 1 for rounding
        if abs((i_end - i) - (j_end - j)) > allowed:
            continue
        while i < i_end and j < j_end and single <= allowed:
            x, y = left[i], right[j]
            i += x <= y
            j += y <= x
            common += x == y
            single += x != y
        if total and single <= allowed:
            similarity = common / (total - common)
            if similarity >= threshold:
                out[k] = similarity
    return out


@njit(nogil=True, cache=True)
def bucket_pairs_bounded(
    keys: NDArray[np.uint64], documents: NDArray[np.int64], window: int, first_new: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_], int]:
    """Pairs (smaller, larger) within the buckets of entries that are sorted by key, then document: int64[n_pairs, 2].

    A document is paired with the first of its bucket and the `window` before it; not where both are below `first_new`. Also
    returns which entries lie in a bucket of more than `window` + 1, with one of `first_new` or later among them, bool[n];
    and how many pairs such buckets have that were not given.
    """
    n = keys.size
    large = np.zeros(n, np.bool_)
    out = np.empty((0, 2), np.int64)
    missed = 0
    for fill in range(2):  # once to count, once to write
        count, bucket = 0, 0
        for k in range(n):
            if keys[k] != keys[bucket]:
                bucket = k
            if documents[k] < first_new:
                continue
            nearest = max(bucket, k - window)
            if bucket < nearest:
                if fill:
                    out[count, 0], out[count, 1] = documents[bucket], documents[k]
                else:
                    missed += nearest - bucket - 1
                count += 1
                large[k] = True
            for other in range(nearest, k):
                if fill:
                    out[count, 0], out[count, 1] = documents[other], documents[k]
                count += 1
        if not fill:
            out = np.empty((count, 2), np.int64)
    for k in range(n - 2, -1, -1):  # from the last of a bucket, which is large if any is, to its first
        if keys[k] == keys[k + 1] and large[k + 1]:
            large[k] = True
    return out, large, missed


@njit(nogil=True, cache=True)
def pairs_of_keys(
    keys: NDArray[np.uint64], starts: NDArray[np.int64]
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """A 64-bit hash of every pair of a document's keys, which are sorted, as a ragged array."""
    out_starts = np.zeros_like(starts)
    for doc in range(starts.size - 1):
        n = starts[doc + 1] - starts[doc]
        out_starts[doc + 1] = out_starts[doc] + n * (n - 1) // 2
    out = np.empty(out_starts[-1], np.uint64)
    count = 0
    for doc in range(starts.size - 1):
        for i in range(starts[doc], starts[doc + 1]):
            for j in range(i + 1, starts[doc + 1]):
                out[count] = mix64(mix64(keys[i]) * GRAM_BASE + keys[j])
                count += 1
    return out, out_starts


@njit(nogil=True, cache=True)
def keys_of_subsets(
    keys: NDArray[np.uint64], starts: NDArray[np.int64], subsets: NDArray[np.int64]
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """A 64-bit hash of a document's keys of the bands in each subset that it has all keys of, as a ragged array.

    The lowest eight bits of a key are its band; `subsets` is int64[n_subsets, n_bands], a document has a band once at most.
    """
    out_starts = np.zeros_like(starts)
    out = np.empty((starts.size - 1) * len(subsets), np.uint64)
    count = 0
    own = np.zeros(256, np.uint64)  # the document's key of every band
    last = np.full(256, -1, np.int64)  # whose key that is
    for doc in range(starts.size - 1):
        for k in range(starts[doc], starts[doc + 1]):
            band = np.int64(keys[k] & uint64(255))
            own[band], last[band] = keys[k], doc
        for subset in range(len(subsets)):
            state, complete = uint64(subset), True
            for k in range(subsets.shape[1]):
                band = subsets[subset, k]
                complete = complete and last[band] == doc
                state = mix64(state * GRAM_BASE + own[band])
            if complete:
                out[count] = state
                count += 1
        out_starts[doc + 1] = count
    return out[:count].copy(), out_starts


@njit(nogil=True, cache=True)
def unite(parent: NDArray[np.int64], pairs: NDArray[np.int64]) -> None:
    """Union-find: more pairs, int64[n_pairs, 2], for `parent` int64[n], which begins as 0, 1, 2, ... See `flatten`.

    The smaller root always wins, so the result does not depend on the order of the pairs; paths are halved on the way up
    (Tarjan and van Leeuwen 1984).
    """
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


@njit(nogil=True, cache=True)
def flatten(parent: NDArray[np.int64]) -> None:
    """Makes every parent its component's smallest member."""
    for node in range(parent.size):  # a parent is smaller than its child, hence final already
        parent[node] = parent[parent[node]]


@njit(nogil=True, cache=True)
def settle(
    kept: NDArray[np.int64],
    pairs: NDArray[np.int64],
    similarity: NDArray[np.float64],
    tested: NDArray[np.int64],
    tested_similarity: NDArray[np.float64],
    first: int,
    alike: NDArray[np.float64],
) -> NDArray[np.int64]:
    """Decides about the documents `first` to `first + alike.size`, of which the smaller ones are decided. In place.

    `kept` int64[n] says what stands for a document: itself where it stays. `pairs` (smaller, larger) are alike; `tested`
    were compared because an earlier call asked for it, and are alike where their similarity is not negative; both are sorted
    by the larger, then the smaller. A document gives way to the first kept one that it is paired with. If all that it is
    paired with have given way, it is to be compared with what they gave way to, and gives way to the first of those that it
    is like: pairs that have not been compared yet are returned, int64[n_asked, 2], and the result is final when there are
    none. In any case a document that has given way is like a kept one; `alike` float64[n] says how much.
    """
    asked = np.empty((len(pairs), 2), np.int64)
    n_asked, begin, t = 0, 0, 0
    for document in range(first, first + alike.size):
        kept[document] = document
        alike[document - first] = 1.0
    while begin < len(pairs):
        document = pairs[begin, 1]
        end = begin
        while end < len(pairs) and pairs[end, 1] == document:
            end += 1
        while t < len(tested) and tested[t, 1] < document:
            t += 1
        t_end = t
        while t_end < len(tested) and tested[t_end, 1] == document:
            t_end += 1
        for k in range(begin, end):
            if kept[pairs[k, 0]] == pairs[k, 0]:
                kept[document], alike[document - first] = pairs[k, 0], similarity[k]
                break
        if kept[document] == document:
            best, own = document, n_asked
            for k in range(begin, end):
                other = kept[pairs[k, 0]]
                low, high = t, t_end
                while low < high:
                    middle = (low + high) // 2
                    if tested[middle, 0] < other:
                        low = middle + 1
                    else:
                        high = middle
                if low < t_end and tested[low, 0] == other:
                    if tested_similarity[low] >= 0 and other < best:
                        best = other
                        alike[document - first] = tested_similarity[low]
                    continue
                known = False
                for at in range(own, n_asked):
                    known = known or asked[at, 0] == other
                if not known:
                    asked[n_asked, 0], asked[n_asked, 1] = other, document
                    n_asked += 1
            kept[document] = best
        begin = end
    return asked[:n_asked].copy()
