"""Words of a whole batch by Unicode's default word boundaries (UAX #29), in one numba pass over its UTF-8 buffers; no GIL.

A batch is what an Arrow `large_string` array holds: `data` uint8, the documents' UTF-8 one after the other, and `offsets`
int64[n_docs + 1]. `split` gives all segments between boundaries but those of nothing but white space (`str.isspace`), marks
too; that is `[word for word in uniseg.wordbreak.words(text) if word.strip()]`, of which DCLM counts those whose first
character is a letter or digit. A segment may hold white space where an accent follows it, or U+202F between words.

The rules are those of revision 47 (https://www.unicode.org/reports/tr29/tr29-47.html#Table_Word_Break_Property_Values), the
properties those of Unicode 18.0; DCLM's uniseg has the same rules, in 0.10 with the properties of Unicode 16.0. What is no
UTF-8 is taken for characters without properties.
"""

import functools
from typing import Any, NamedTuple

import numpy as np
from numba import int64, njit
from numpy.typing import NDArray

from kernels import words_uax29_ranges as ranges
from kernels.memory import grown, pointer
from kernels.spans import read_only

N_CODE_POINTS = 0x110000
BLOCK_BITS = 7
"""Code points share a block of 2^7; most blocks are alike, so that both levels stay in the first cache (29 + 9 KB)."""
_NAMES = """OTHER CR LF NEWLINE EXTEND ZWJ FORMAT REGIONAL_INDICATOR KATAKANA HEBREW_LETTER ALETTER SINGLE_QUOTE DOUBLE_QUOTE
MIDNUMLET MIDLETTER MIDNUM NUMERIC EXTENDNUMLET WSEGSPACE"""
CLASSES = tuple(_NAMES.split())
"""Values of Word_Break; a class is a position in this list."""
_OTHER, _CR, _LF, _NEWLINE, _EXTEND, _ZWJ, _FORMAT, _INDICATOR, _KATAKANA, _HEBREW = range(10)
_ALETTER, _QUOTE, _DOUBLE_QUOTE, _MIDNUMLET, _MIDLETTER, _MIDNUM, _NUMERIC, _UNDERSCORE, _SPACE = range(
    10, 19
)
_CLASS, _BLANK, _PICTOGRAPH = 31, 32, 64
"""Parts of a code point's entry: its class; whether it is white space; whether it is Extended_Pictographic."""
_ALWAYS = 1 << len(CLASSES)
_LETTER, _DIGIT, _JOINER, _WORD = np.uint8(1), np.uint8(2), np.uint8(4), np.uint8(7)
_ASCII_BLANK, _FOREIGN = np.uint8(32), np.uint8(64)
"""Kinds of bytes, and 8 and 16: what may stand between two letters, two digits. ASCII letters, digits and "_" never part."""


class Tables(NamedTuple):
    """The rules as arrays."""

    blocks: NDArray[np.uint8]  # [N_CODE_POINTS >> BLOCK_BITS]: which block
    entries: NDArray[np.uint8]  # [n_blocks << BLOCK_BITS]
    follow: NDArray[np.int64]  # [32 * 32]: see `_follow`
    kinds: NDArray[np.uint8]  # [256]


class _Rules(NamedTuple):
    """`Tables` as pointers, see `pointer`."""

    blocks: NDArray[np.uint8]
    entries: NDArray[np.uint8]
    follow: NDArray[np.int64]
    kinds: NDArray[np.uint8]


def split(
    data: NDArray[np.uint8], offsets: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Byte spans of every document's words in their order: starts[n_words], ends[n_words] (positions in `data`), and where
    each document's words begin, doc_starts[n_docs + 1]; int64.
    """
    return _split(read_only(data), offsets, tables())


@functools.cache
def tables() -> Tables:
    """Built from `words_uax29_ranges` and from what Python calls white space."""
    entries = np.zeros(N_CODE_POINTS, np.uint8)

    def add(text: str, entry: int) -> None:
        for item in text.split():
            first, _, last = item.partition("-")
            entries[int(first, 16) : int(last or first, 16) + 1] |= entry

    for number, name in enumerate(CLASSES[1:], 1):
        add(getattr(ranges, name), number)
    add(ranges.EXTENDED_PICTOGRAPHIC, _PICTOGRAPH)
    entries[[point for point in range(0x3001) if chr(point).isspace()]] |= _BLANK
    blocks, numbers = np.unique(entries.reshape(-1, 1 << BLOCK_BITS), axis=0, return_inverse=True)
    assert len(blocks) <= 256
    classes, kinds = entries[:128] & _CLASS, np.full(256, _FOREIGN)
    middle: dict[int, Any] = {_QUOTE: 24, _MIDNUMLET: 24, _MIDLETTER: 8, _MIDNUM: 16}
    known: dict[int, Any] = {_ALETTER: _LETTER, _NUMERIC: _DIGIT, _UNDERSCORE: _JOINER, **middle}
    kinds[:128] = [known.get(int(number), 0) for number in classes]
    kinds[:128] |= entries[:128] & _BLANK
    return Tables(numbers.astype(np.uint8), blocks.ravel(), _follow(), kinds)


def _follow() -> NDArray[np.int64]:
    """By two classes, 32 * the first + the second: 0 where words part between them, _ALWAYS where they do not, else the
    set of classes (a bit each) of which one must follow the second so that all three stay together.

    WB3d, and WB5 to WB16 less WB7a; Extend, Format and ZWJ are left to WB4.
    """
    out = np.zeros((32, 32), np.int64)
    letters, words = [_HEBREW, _ALETTER], [_HEBREW, _ALETTER, _NUMERIC, _UNDERSCORE]
    out[np.ix_(words, words)] = _ALWAYS  # WB5, 8, 9, 10, 13a, 13b
    out[_KATAKANA, [_KATAKANA, _UNDERSCORE]] = out[_UNDERSCORE, _KATAKANA] = _ALWAYS  # WB13, 13a, 13b
    out[np.ix_(letters, [_MIDLETTER, _MIDNUMLET, _QUOTE])] = 1 << _HEBREW | 1 << _ALETTER  # WB6, 7
    out[_HEBREW, _DOUBLE_QUOTE] = 1 << _HEBREW  # WB7b, 7c
    out[_NUMERIC, [_MIDNUM, _MIDNUMLET, _QUOTE]] = 1 << _NUMERIC  # WB11, 12
    out[_SPACE, _SPACE] = _ALWAYS  # WB3d
    out[_INDICATOR, _INDICATOR] = _ALWAYS  # WB15, 16, of which the second is taken for no indicator
    return out.ravel()


@njit(forceinline=True)
def _next(t: _Rules, data: NDArray[np.uint8], at: int, end: int) -> tuple[int, int]:
    """The entry of the character at `at`, and where the next one begins."""
    first = int64(data[at])
    if first < 0x80:
        return int64(t.entries[(int64(t.blocks[first >> BLOCK_BITS]) << BLOCK_BITS) + first]), at + 1
    width = 2 if first < 0xE0 else (3 if first < 0xF0 else 4)
    if first < 0xC2 or first > 0xF4 or at + width > end:
        return 0, at + 1
    point = first & (0x7F >> width)
    for k in range(1, width):
        byte = int64(data[at + k])
        if byte & 0xC0 != 0x80:
            return 0, at + 1
        point = point << 6 | byte & 0x3F
    if point >= N_CODE_POINTS:
        return 0, at + 1
    block = int64(t.blocks[point >> BLOCK_BITS])
    return int64(t.entries[(block << BLOCK_BITS) + (point & ((1 << BLOCK_BITS) - 1))]), at + width


@njit(nogil=True, cache=True)
def _segment(t: _Rules, data: NDArray[np.uint8], at: int, end: int) -> tuple[int, int]:
    """Where the segment that begins at `at` ends, and _BLANK if all of it is white space."""
    entry, at = _next(t, data, at, end)
    blank, before = entry & _BLANK, entry & _CLASS
    if before == _CR and at < end and data[at] == 10:  # WB3
        return at + 1, blank
    if _CR <= before <= _NEWLINE:  # WB3a
        return at, blank
    joiner = before == _ZWJ
    while at < end:
        entry, after = _next(t, data, at, end)
        number = entry & _CLASS
        if _EXTEND <= number <= _FORMAT:  # WB4
            joiner = number == _ZWJ
            if before == _SPACE:
                before = _OTHER
            at, blank = after, 0
            continue
        if not (joiner and entry & _PICTOGRAPH):  # WB3c
            wanted = t.follow[before * 32 + number]
            if wanted == 0:  # WB999, and WB3b
                break
            if wanted != _ALWAYS:
                ahead, beyond = 0, after
                while beyond < end:
                    ahead, beyond = _next(t, data, beyond, end)
                    if not _EXTEND <= ahead & _CLASS <= _FORMAT:
                        break
                    ahead = 0
                if wanted >> (ahead & _CLASS) & 1:
                    number, after = ahead & _CLASS, beyond
                elif not (before == _HEBREW and number == _QUOTE):  # WB7a
                    break
        joiner = False
        blank &= entry
        # The second of two regional indicators makes no pair with a third.
        before = _OTHER if before == number == _INDICATOR else number
        at = after
    return at, blank


@njit(nogil=True, cache=True)
def _split(
    text: NDArray[np.uint8], offsets: NDArray[np.int64], t: Tables
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    n_docs = offsets.size - 1
    doc_starts = np.zeros(n_docs + 1, np.int64)
    longest = np.int64(0)
    for doc in range(n_docs):
        longest = max(longest, offsets[doc + 1] - offsets[doc])
    room = (offsets[n_docs] - offsets[0]) // 4 + longest  # only what is written costs memory
    starts, ends = np.empty(room, np.int64), np.empty(room, np.int64)
    data = pointer(text)
    rules = _Rules(pointer(t.blocks), pointer(t.entries), pointer(t.follow), pointer(t.kinds))
    n: Any = int64(0)
    for doc in range(n_docs):
        if n + offsets[doc + 1] - offsets[doc] > room:
            room = 2 * room + longest
            starts, ends = grown(starts, n, room), grown(ends, n, room)
        n = _document(rules, data, pointer(starts), pointer(ends), n, offsets[doc], offsets[doc + 1])
        doc_starts[doc + 1] = n
    return starts[:n], ends[:n], doc_starts


@njit(nogil=True, cache=True)
def _document(
    t: _Rules,
    data: NDArray[np.uint8],
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    n: int,
    at: int,
    end: int,
) -> int:
    """Writes the words of data[at:end] from number `n` on; returns the number after the last."""
    kinds = t.kinds
    while at < end:
        begin, kind = at, kinds[data[at]]
        plain, blank = kind < _FOREIGN, kind & _ASCII_BLANK
        at += 1
        if kind & _WORD:
            while True:
                while at < end and kinds[data[at]] & _WORD:
                    at += 1
                if at == end:
                    break
                mark = kinds[data[at]]
                if mark & _FOREIGN or (mark >= 8 and at + 1 < end and kinds[data[at + 1]] & _FOREIGN):
                    plain = False
                    break
                if not (at + 1 < end and mark >> 3 & kinds[data[at - 1]] & kinds[data[at + 1]] & 3):
                    break
                at += 2
        else:
            if data[begin] == 32:
                while at < end and data[at] == 32:
                    at += 1
            plain &= not (at < end and data[at] >= 0x80)
        if not plain:
            at, found = _segment(t, data, begin, end)
            blank = found > 0
        if not blank:
            starts[n], ends[n] = begin, at
            n += 1
    return n
