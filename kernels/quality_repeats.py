"""What repeats within one document: lines, paragraphs and n-grams of words, exactly, for `kernels.quality`.

Strings are compared by a polynomial hash, sum of (byte + 1) * BASE^k mod 2^64, whose value for any span, and for any run of
words joined without spaces, follows from prefix sums; what a hash calls equal is then compared byte by byte. n-grams have
exact ids: an (n + 1)-gram is the pair of the id of its first n words and the id of its last.
"""

from typing import NamedTuple

import numpy as np
from numba import njit, uint64
from numpy.typing import NDArray

from kernels.hashing import mix64

BASE = np.uint64(0x9E3779B97F4A7C15)
LOW, AGAIN, INDEX = np.uint64(0xFFFFFFFF), np.uint64(1 << 31), np.uint64((1 << 31) - 1)
WINDOW = 16
"""Bytes; about three words."""


class Scratch(NamedTuple):
    """Room for one document, sized for the longest of a batch and used again for each."""

    power: NDArray[np.uint64]
    """BASE^k."""
    prefix: NDArray[np.uint64]
    """Hashes of the document's first k bytes."""
    slots: NDArray[np.uint64]
    """Hash table: the upper half of the hash, a bit for what was found again, an index + 1; 0 is empty."""
    keys: NDArray[np.uint64]
    lines: NDArray[np.int64]
    """Spans, int64[., 2]; so are `parts`."""
    parts: NDArray[np.int64]
    ids: NDArray[np.int64]
    """Per word: its number in the document's vocabulary, by first occurrence."""
    chars: NDArray[np.int64]
    """Code points in the first k words."""
    size: NDArray[np.int64]
    """Bytes in the first k words."""
    joined: NDArray[np.uint64]
    """Hashes of the first k words joined without spaces."""
    grams: NDArray[np.int64]
    """Per word: the id of the n-gram that begins there."""
    first: NDArray[np.int64]
    """Per id: where it occurs first; `number`: how often; `length`: code points of a word; `kind`: what it is."""
    number: NDArray[np.int64]
    length: NDArray[np.int64]
    kind: NDArray[np.int64]


@njit(nogil=True, cache=True)
def scratch(longest: int, most_words: int) -> Scratch:
    """Room for documents of at most so many bytes and words."""
    power = np.empty(longest + 1, np.uint64)
    power[0] = 1
    for k in range(longest):
        power[k + 1] = power[k] * BASE
    n_slots = table_size(max(longest // 2 + 2, most_words))
    return Scratch(
        power,
        np.empty(longest + 1, np.uint64),
        np.empty(n_slots, np.uint64),
        np.empty(n_slots, np.uint64),
        np.empty((longest + 1, 2), np.int64),
        np.empty((longest + 1, 2), np.int64),
        np.empty(most_words + 1, np.int64),
        np.empty(most_words + 1, np.int64),
        np.empty(most_words + 1, np.int64),
        np.empty(most_words + 1, np.uint64),
        np.empty(most_words + 1, np.int64),
        np.empty(most_words + 1, np.int64),
        np.empty(most_words + 1, np.int64),
        np.empty(most_words + 1, np.int64),
        np.empty(most_words + 1, np.int64),
    )


@njit(inline="always")
def table_size(n: int) -> int:
    """A power of two that leaves at least half of the slots empty."""
    size = 4
    while size < 2 * n:
        size *= 2
    return size


@njit(nogil=True, cache=True)
def hash_prefixes(data: NDArray[np.uint8], at: int, end: int, prefix: NDArray[np.uint64]) -> None:
    """Hashes of the first k bytes of data[at:end] for every k."""
    state, square = uint64(0), BASE * BASE
    prefix[0] = state
    # Two bytes a turn: what takes time is that each product waits for the one before.
    for k in range(0, end - at - 1, 2):
        first = uint64(data[at + k]) + uint64(1)
        second = first * BASE + uint64(data[at + k + 1]) + uint64(1)
        prefix[k + 1] = state * BASE + first
        state = state * square + second
        prefix[k + 2] = state
    if (end - at) & 1:
        prefix[end - at] = state * BASE + uint64(data[end - 1]) + uint64(1)


@njit(inline="always")
def same_bytes(data: NDArray[np.uint8], a: int, b: int, length: int) -> bool:
    """Whether data[a : a + length] and data[b : b + length] are equal."""
    for k in range(length):  # noqa: SIM110 (numba)
        if data[a + k] != data[b + k]:
            return False
    return True


@njit(inline="always")
def count_chars(data: NDArray[np.uint8], at: int, end: int) -> int:
    """Code points: bytes that do not continue one."""
    n = 0
    for k in range(at, end):
        n += (data[k] & 0xC0) != 0x80
    return n


@njit(nogil=True, cache=True)
def repeats(
    data: NDArray[np.uint8], base: int, spans: NDArray[np.int64], n: int, room: Scratch
) -> tuple[int, int, int, int]:
    """Spans that repeat an earlier one, their code points; then the same of all copies, the first included.

    `spans` int64[., 2], of which `n` count, lie in the document that begins at `base`.
    """
    n_again = chars_again = n_copies = chars_copies = 0
    mask = uint64(table_size(n) - 1)
    room.slots[: table_size(n)] = 0
    for k in range(n):
        start, length = spans[k, 0], spans[k, 1] - spans[k, 0]
        a = start - base
        value = mix64(room.prefix[a + length] - room.prefix[a] * room.power[length])
        slot = value & mask
        while True:
            entry = room.slots[slot]
            if entry == 0:
                room.slots[slot] = value & ~LOW | uint64(k + 1)
                break
            if (entry ^ value) & ~LOW == 0:
                other = np.int64(entry & INDEX) - 1
                if spans[other, 1] - spans[other, 0] == length and same_bytes(
                    data, spans[other, 0], start, length
                ):
                    chars = count_chars(data, start, start + length)
                    again = 1 if entry & AGAIN else 2
                    room.slots[slot] = entry | AGAIN
                    n_again += 1
                    chars_again += chars
                    n_copies += again
                    chars_copies += again * chars
                    break
            slot = (slot + uint64(1)) & mask
    return n_again, chars_again, n_copies, chars_copies


@njit(nogil=True, cache=True)
def word_ids(
    data: NDArray[np.uint8], base: int, starts: NDArray[np.int64], ends: NDArray[np.int64], room: Scratch
) -> int:
    """Numbers the document's different words by first occurrence; fills `ids`, `first`, `size`, `joined`. Their number."""
    n, n_distinct = starts.size, 0
    mask = uint64(table_size(n) - 1)
    room.slots[: table_size(n)] = 0
    room.size[0], room.joined[0] = 0, 0
    for k in range(n):
        start, length = starts[k], ends[k] - starts[k]
        a = start - base
        plain = room.prefix[a + length] - room.prefix[a] * room.power[length]
        room.size[k + 1] = room.size[k] + length
        room.joined[k + 1] = room.joined[k] * room.power[length] + plain
        value = mix64(plain)
        slot = value & mask
        while True:
            entry = room.slots[slot]
            if entry == 0:
                room.slots[slot] = value & ~LOW | uint64(n_distinct + 1)
                room.first[n_distinct] = k
                room.ids[k] = n_distinct
                n_distinct += 1
                break
            if (entry ^ value) & ~LOW == 0:
                number = np.int64(entry & INDEX) - 1
                other = room.first[number]
                if ends[other] - starts[other] == length and same_bytes(data, starts[other], start, length):
                    room.ids[k] = number
                    break
            slot = (slot + uint64(1)) & mask
    return n_distinct


@njit(nogil=True, cache=True)
def gram_ids(n_grams: int, previous: NDArray[np.int64], room: Scratch) -> int:
    """Numbers the different n-grams by first occurrence; fills `grams`, `first`, `number`. Their number.

    `previous` are the ids of the (n - 1)-grams: `grams` itself, or for n = 2 the words'. An n-gram is two of those. What
    occurs only once gets id -1, and so do, unnumbered, the n-grams that hold one of these: they occur only once too.
    """
    n_candidates = n_distinct = 0
    for k in range(n_grams):
        n_candidates += previous[k] >= 0 and previous[k + 1] >= 0
    mask = uint64(table_size(n_candidates) - 1)
    room.slots[: table_size(n_candidates)] = 0
    for k in range(n_grams):
        if previous[k] < 0 or previous[k + 1] < 0:
            room.grams[k] = -1
            continue
        key = uint64(previous[k]) << uint64(32) | uint64(previous[k + 1])
        slot = mix64(key) & mask
        while True:
            entry = room.slots[slot]
            if entry == 0:
                room.slots[slot], room.keys[slot] = n_distinct + 1, key
                room.first[n_distinct], room.number[n_distinct] = k, 1
                room.grams[k] = n_distinct
                n_distinct += 1
                break
            if room.keys[slot] == key:
                gram = np.int64(entry) - 1
                room.grams[k] = gram
                room.number[gram] += 1
                break
            slot = (slot + uint64(1)) & mask
    for k in range(n_grams):
        if room.grams[k] >= 0 and room.number[room.grams[k]] == 1:
            room.grams[k] = -1
    return n_distinct


@njit(nogil=True, cache=True)
def top_grams(n_words: int, n_chars: int, room: Scratch, out: NDArray[np.float64]) -> None:
    """datatrove's top_n_gram for n = 2, 3, 4: of the commonest n-grams the first, spaces counted, even where it is alone."""
    out[:3] = 0
    for n in range(2, min(n_words, 4) + 1):
        n_distinct = gram_ids(n_words - n + 1, room.ids if n == 2 else room.grams, room)
        first, most = 0, 1
        for k in range(n_distinct):
            if room.number[k] > most:
                first, most = room.first[k], room.number[k]
        out[n - 2] = (room.chars[first + n] - room.chars[first] + n - 1) * most / n_chars


@njit(nogil=True, cache=True)
def same_joined(
    data: NDArray[np.uint8],
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    a: int,
    b: int,
    n: int,
    room: Scratch,
) -> bool:
    """Whether the n words from `a` and those from `b`, joined without spaces, are equal; "ab c" is equal to "a bc"."""
    length = room.size[a + n] - room.size[a]
    if room.size[b + n] - room.size[b] != length:
        return False
    k = 0
    while k < n and room.ids[a + k] == room.ids[b + k]:
        k += 1
    if k == n:
        return True
    at, other = starts[a], starts[b]
    for _ in range(length):
        while at == ends[a]:
            a += 1
            at = starts[a]
        while other == ends[b]:
            b += 1
            other = starts[b]
        if data[at] != data[other]:
            return False
        at, other = at + 1, other + 1
    return True


@njit(nogil=True, cache=True)
def candidates(starts: NDArray[np.int64], base: int, room: Scratch) -> int:
    """Words at which an n-gram that occurs twice, joined, can begin, into `first`; into `grams` 1 for these, else 0.

    Where two joined n-grams are equal, so are their first `WINDOW` bytes, if they have as many, wherever words end. Few
    windows of ordinary text come twice, so that the search for long n-grams has little left to do. Returns their number.
    """
    n_words, last = starts.size, 0
    mask = uint64(table_size(n_words) - 1)
    room.slots[: table_size(n_words)] = 0
    for k in range(n_words):
        room.grams[k] = 0
        end = room.size[k] + WINDOW
        if end > room.size[n_words]:
            continue
        while room.size[last + 1] < end:
            last += 1
        part, a = end - room.size[last], starts[last] - base
        tail = room.prefix[a + part] - room.prefix[a] * room.power[part]
        value = mix64(room.joined[last] * room.power[part] + tail - room.joined[k] * room.power[WINDOW])
        slot = value & mask
        while True:
            entry = room.slots[slot]
            if entry == 0:
                room.slots[slot] = value & ~LOW | uint64(k + 1)
                break
            if (entry ^ value) & ~LOW == 0:
                room.grams[k] = room.grams[np.int64(entry & INDEX) - 1] = 1
                break
            slot = (slot + uint64(1)) & mask
    n_candidates = 0
    for k in range(n_words - 4):
        if room.grams[k] or room.size[k + 5] - room.size[k] < WINDOW:
            room.first[n_candidates] = k
            n_candidates += 1
    return n_candidates


@njit(nogil=True, cache=True)
def repeated_grams(
    data: NDArray[np.uint8],
    base: int,
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    n_chars: int,
    room: Scratch,
    out: NDArray[np.float64],
) -> None:
    """datatrove's duplicated n-grams for n = 5 .. 10: greedy from the left, n words are skipped after one is found again."""
    n_words = starts.size
    n_candidates = candidates(starts, base, room)
    mask = uint64(table_size(n_candidates) - 1)
    for n in range(5, 11):
        room.slots[: table_size(n_candidates)] = 0
        chars = free = 0
        for at in room.first[:n_candidates]:
            if at < free or at > n_words - n:
                continue
            length = room.size[at + n] - room.size[at]
            if not room.grams[at] and length >= WINDOW:
                continue
            value = mix64(room.joined[at + n] - room.joined[at] * room.power[length])
            slot = value & mask
            while True:
                entry = room.slots[slot]
                if entry == 0:
                    room.slots[slot] = value & ~LOW | uint64(at + 1)
                    break
                other = int(np.int64(entry & INDEX)) - 1
                if (entry ^ value) & ~LOW == 0 and same_joined(data, starts, ends, other, at, n, room):
                    chars += room.chars[at + n] - room.chars[at]
                    free = at + n
                    break
                slot = (slot + uint64(1)) & mask
        out[n - 5] = chars / max(n_chars, 1)


@njit(nogil=True, cache=True)
def dclm_grams(n_words: int, wanted: np.uint16, room: Scratch, out: NDArray[np.float64]) -> None:
    """DCLM's n-gram signals, n = 2 .. 10, of the words whose `kind` has the bit `wanted`. Overwrites `ids` and `chars`."""
    n_kept = 0
    for k in range(n_words):
        word = room.ids[k]
        if room.kind[word] & np.int64(wanted):
            room.ids[n_kept] = word
            room.chars[n_kept + 1] = room.chars[n_kept] + room.length[word]
            n_kept += 1
    out[:9] = 0
    for n in range(2, min(n_kept, 10) + 1):
        n_distinct = gram_ids(n_kept - n + 1, room.ids if n == 2 else room.grams, room)
        most, longest, covered, done = 1, 0, 0, 0
        if n < 5:
            for k in range(n_distinct):
                if room.number[k] >= most:
                    first = room.first[k]
                    length = room.chars[first + n] - room.chars[first]
                    longest = length if room.number[k] > most else max(longest, length)
                    most = room.number[k]
            covered = longest * most if most > 1 else 0
        else:
            for k in range(n_kept - n + 1):
                if room.grams[k] >= 0:
                    covered += room.chars[k + n] - room.chars[max(done, k)]
                    done = k + n
        if covered == 0:
            return  # no n-gram comes twice, so no longer one does
        out[n - 2] = covered / room.chars[n_kept]
