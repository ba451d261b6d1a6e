"""Pieces of documents (paragraphs, lines): cut, hashed in a normal form, and put together again without some of them.

Numba passes over a batch as an Arrow `large_string` array holds it: `data` uint8, the documents' valid UTF-8 one after the
other, and `offsets` int64[n_docs + 1]. Pieces are byte spans `starts` and `ends`, int64[n_pieces], positions in `data`, and
`doc_starts` int64[n_docs + 1], where each document's pieces begin. The GIL is released.
"""

import functools
from typing import Any

import numpy as np
from numba import int64, njit, uint64
from numpy.typing import NDArray

from kernels.hashing import mix64
from kernels.memory import load64, pointer, store64, trailing_zeros
from kernels.text import N_CODE_POINTS, SPACE, next_code_point, unicode_tables

RAW, WORDS, LINE = 0, 1, 2
"""Normal forms, see `hashes`."""
_BLANKS, _HIGH = np.uint64(0x2020202020202020), np.uint64(0x8080808080808080)
_C1, _C2 = np.uint64(0x87C37B91114253D5), np.uint64(0x4CF5AD432745937F)
_FINAL_SIGMA, _SIGMA = 0x3C2, 0x3C3
_BEYOND = np.int64(N_CODE_POINTS - 1)
"""Stands for all code points after it: not white space."""

Bytes = NDArray[np.uint8]
Positions = NDArray[np.int64]


@njit(forceinline=True)
def word_at(data: Bytes, size: int, at: int, n: int) -> np.uint64:
    """The next `n` bytes (eight of more, none of fewer) as a uint64, zeros above; `data` points to `size` bytes."""
    if n >= 8:
        return load64(data, at)
    if n <= 0:
        return uint64(0)
    if at + 8 <= size:
        return load64(data, at) & ((uint64(1) << uint64(8 * n)) - uint64(1))
    word = uint64(0)
    for k in range(n):
        word |= uint64(data[at + k]) << uint64(8 * k)
    return word


def read_only(data: Bytes) -> Bytes:
    """A view such as Arrow's buffers give: numba compiles everything a second time for arrays that can be written."""
    view = data.view()
    view.flags.writeable = False
    return view


@functools.cache
def _tables() -> tuple[Bytes, NDArray[np.uint32]]:
    """Whether a code point is white space (`str.isspace`), and its lower case: uint8 and uint32[N_CODE_POINTS].

    A final sigma becomes a sigma, since `str.lower` makes either of a capital one by what stands around it.
    """
    flags, lower = unicode_tables()
    lower = lower.copy()
    lower[_FINAL_SIGMA] = _SIGMA
    return (flags & SPACE > 0).astype(np.uint8), lower


def cut(data: Bytes, offsets: Positions, n_line_feeds: int) -> tuple[Positions, Positions, Positions]:
    """The pieces that `str.split` with one or two line feeds gives of every document, empty ones too; 0: itself whole.
    Other line ends (CR LF, U+2028) cut nothing."""
    if n_line_feeds == 0:
        return offsets[:-1].copy(), offsets[1:].copy(), np.arange(len(offsets))
    return _cut(read_only(data), offsets, n_line_feeds)


@njit(nogil=True, cache=True)
def _cut(data: Bytes, offsets: Positions, width: int) -> tuple[Positions, Positions, Positions]:
    n_docs, size, text = offsets.size - 1, data.size, pointer(data)
    room = n_docs
    for at in range(offsets[0], offsets[n_docs]):
        room += text[at] == 10
    starts, ends = np.empty(room, np.int64), np.empty(room, np.int64)
    doc_starts = np.zeros(n_docs + 1, np.int64)
    n = 0
    for doc in range(n_docs):
        at, end = offsets[doc], offsets[doc + 1]
        starts[n] = at
        while at < end:
            differs = word_at(text, size, at, end - at) ^ uint64(0x0A0A0A0A0A0A0A0A)
            # The lowest flag is exact, those above it need not be (Warren, Hacker's Delight, 6-1).
            found = (differs - uint64(0x0101010101010101)) & ~differs & _HIGH
            if not found:
                at += 8
                continue
            at += trailing_zeros(found) >> 3
            if at + width > end:
                break
            if width == 2 and text[at + 1] != 10:
                at += 2
                continue
            ends[n] = at
            at += width
            n += 1
            starts[n] = at
        ends[n] = end
        n += 1
        doc_starts[doc + 1] = n
    return starts[:n].copy(), ends[:n].copy(), doc_starts


def hashes(
    data: Bytes, starts: Positions, ends: Positions, form: int
) -> tuple[NDArray[np.uint64], Positions]:
    """128-bit hashes of spans in a normal form, uint64[n, 2], and the code points that the form has, int64[n]; 0: blank.

    The hash is MurmurHash3_x64_128 with seed 0 (public domain, Austin Appleby) of the form's UTF-8. It is no cryptographic
    one: of n distinct texts that nobody made for it, two collide with probability n^2 / 2^129.

    RAW:   the bytes as they are. (Code points are counted without white space at the ends.)
    WORDS: lower case, every run of white space one space, none at the ends.
    LINE:  lower case, no white space at the ends, that within kept; C4 compares lines by `line.strip().lower()`.

    White space is `str.isspace`, lower case `str.lower` with both small sigmas alike.
    """
    return _hashes(read_only(data), starts, ends, form, *_tables())


@njit(nogil=True, cache=True)
def _hashes(
    data: Bytes, starts: Positions, ends: Positions, form: int, spaces: Bytes, lower: NDArray[np.uint32]
) -> tuple[NDArray[np.uint64], Positions]:
    n, room = starts.size, 0
    if form != RAW:
        # Lower case has up to three bytes for two (U+023A). Beyond the end, eight are written and up to 16 read.
        for k in range(n):
            room = max(room, (ends[k] - starts[k]) // 2 * 3 + 32)
    scratch = np.empty(room, np.uint8)
    out, n_chars = np.empty((n, 2), np.uint64), np.empty(n, np.int64)
    text, space, low = pointer(data), pointer(spaces), pointer(lower)
    for k in range(n):
        at, end = starts[k], ends[k]
        normal = pointer(
            scratch
        )  # taken in every round, which keeps the array: it is freed after its last use
        if form == RAW:
            out[k, 0], out[k, 1] = _murmur(text, data.size, at, end)
            at, end = _strip(text, at, end, space)
            n_chars[k] = _count(text, at, end)
        else:
            end = _fold(text, at, end, normal, form == WORDS, space, low)
            at, end = _strip(normal, 0, end, space)
            out[k, 0], out[k, 1] = _murmur(normal, room, at, end)
            n_chars[k] = _count(normal, at, end)
    return out, n_chars


@njit(nogil=True, cache=True)
def _count(data: Bytes, at: int, end: int) -> int:
    """Code points of data[at:end]."""
    n = 0
    for k in range(at, end):
        n += (data[k] & 0xC0) != 0x80
    return n


@njit(nogil=True, cache=True)
def _strip(data: Bytes, at: int, end: int, spaces: Bytes) -> tuple[int, int]:
    """The span that `str.strip` leaves of data[at:end]."""
    while at < end:
        point, after = next_code_point(data, at)
        if not spaces[min(point, _BEYOND)]:
            break
        at = after
    while end > at:
        begin = end - 1
        while data[begin] & 0xC0 == 0x80:
            begin -= 1
        point, _ = next_code_point(data, begin)
        if not spaces[min(point, _BEYOND)]:
            break
        end = begin
    return at, end


@njit(nogil=True, cache=True)
def _fold(
    data: Bytes, at: int, end: int, out: Bytes, collapse: bool, spaces: Bytes, lower: NDArray[np.uint32]
) -> int:
    """Writes data[at:end] in lower case to `out`, with single spaces if `collapse`; returns the bytes written.

    With `collapse` a space may be left at the end, but none at the beginning.
    """
    write: Any = int64(0)
    blank = collapse  # whether white space now would be left out
    while at < end:
        if at + 8 <= end:
            word = load64(data, at)
            plain = word & _HIGH == 0
            if plain and collapse:
                # Exact flags: bytes that are spaces, and bytes below them (neither sum carries into the next byte).
                gaps = ~((word ^ _BLANKS) + uint64(0x7F7F7F7F7F7F7F7F)) & _HIGH
                control = ~(word + uint64(0x6060606060606060)) & _HIGH
                before = gaps << uint64(8) | (uint64(0x80) if blank else uint64(0))
                plain = control | (gaps & before) == 0
                if plain:
                    blank = gaps >> uint64(63) != 0
            if plain:
                capitals = (word + uint64(0x3F3F3F3F3F3F3F3F)) & ~(word + uint64(0x2525252525252525)) & _HIGH
                store64(out, write, word | capitals >> uint64(2))
                at, write = at + 8, write + 8
                continue
        stop = min(at + 8, end)
        while at < stop:
            point: Any
            point, at = next_code_point(data, at)
            if collapse:
                if spaces[min(point, _BEYOND)]:
                    if not blank:
                        out[write] = 32
                        write += 1
                    blank = True
                    continue
                blank = False
            if point < N_CODE_POINTS:
                point = lower[point]
            if point < 0x80:
                out[write] = point
                # The only code point whose lower case is two: a dotted capital I is an i and a dot above.
                if point == 105 and data[at - 1] == 0xB0:
                    out[write + 1], out[write + 2] = 0xCC, 0x87
                    write += 2
                write += 1
            elif point < 0x800:
                out[write], out[write + 1] = 0xC0 | point >> 6, 0x80 | point & 63
                write += 2
            elif point < 0x10000:
                out[write], out[write + 1] = 0xE0 | point >> 12, 0x80 | point >> 6 & 63
                out[write + 2] = 0x80 | point & 63
                write += 3
            else:
                out[write], out[write + 1] = 0xF0 | point >> 18, 0x80 | point >> 12 & 63
                out[write + 2], out[write + 3] = 0x80 | point >> 6 & 63, 0x80 | point & 63
                write += 4
    return write


@njit(forceinline=True)
def _rotate(value: np.uint64, n: int) -> np.uint64:
    return value << uint64(n) | value >> uint64(64 - n)


@njit(nogil=True, cache=True)
def _murmur(data: Bytes, size: int, at: int, end: int) -> tuple[np.uint64, np.uint64]:
    """MurmurHash3_x64_128 of data[at:end], seed 0."""
    a, b, length = uint64(0), uint64(0), uint64(end - at)
    while at < end:
        first = _rotate(word_at(data, size, at, end - at) * _C1, 31) * _C2
        second = _rotate(word_at(data, size, at + 8, end - at - 8) * _C2, 33) * _C1
        if at + 16 > end:  # the tail, zeros beyond it: those change nothing
            a ^= first
            b ^= second
            break
        a = (_rotate(a ^ first, 27) + b) * uint64(5) + uint64(0x52DCE729)
        b = (_rotate(b ^ second, 31) + a) * uint64(5) + uint64(0x38495AB5)
        at += 16
    a ^= length
    b ^= length
    a += b
    b += a
    a, b = mix64(a), mix64(b)
    a += b
    return a, b + a


@njit(nogil=True, cache=True)
def join(
    data: Bytes, starts: Positions, ends: Positions, doc_starts: Positions, keep: NDArray[np.bool_]
) -> tuple[Bytes, Positions]:
    """Documents of the pieces with `keep`, each after what stood before it (a separator), but for a document's first.

    For pieces of `cut` that is `separator.join(kept)`: with all pieces the same bytes. Returns new `data` and `offsets`.
    """
    n_docs = doc_starts.size - 1
    new_offsets = np.zeros(n_docs + 1, np.int64)
    out = np.empty(0, np.uint8)
    for fill in range(2):  # once to measure, once to write
        write: Any = int64(0)
        source, target = pointer(data), pointer(out)
        for doc in range(n_docs):
            empty = True
            for k in range(doc_starts[doc], doc_starts[doc + 1]):
                if keep[k]:
                    at = starts[k] if empty else ends[k - 1]
                    if fill:
                        for byte in range(ends[k] - at):
                            target[write + byte] = source[at + byte]
                    write += ends[k] - at
                    empty = False
            new_offsets[doc + 1] = write
        if not fill:
            out = np.empty(write, np.uint8)
    return out, new_offsets
