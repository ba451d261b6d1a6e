"""What single characters are to the published English filters, and how Python cuts text, on UTF-8 bytes, in numba.

Positions are byte positions in `data` uint8, valid UTF-8. `flags` is `character_flags()`. These functions are compiled into
their callers, whose cache on disk does not notice a change here: after an edit, delete `quality*` in `__pycache__`.
"""

import functools
import unicodedata

import numpy as np
from numba import njit
from numpy.typing import NDArray

from kernels.text import N_CODE_POINTS, next_code_point

ALPHA, ALNUM, SPACE, SYMBOL = np.uint16(1), np.uint16(2), np.uint16(4), np.uint16(8)
TERMINAL, SENTENCE_END, PUNCTUATION = np.uint16(16), np.uint16(32), np.uint16(64)
UPPER, DIGIT, DECIMAL = np.uint16(128), np.uint16(256), np.uint16(512)
TERMINALS = """21 2e 3f 589 61d-61f 6d4 700-702 7f9 837 839 83d-83e 964-965 104a-104b 1362 1367-1368 166e 1735-1736 17d4-17d6
17d9-17da 1803 1809 1944-1945 1aa8-1aab 1b5a-1b5b 1b5e-1b5f 1b7d-1b7e 1c3b-1c3c 1c7e-1c7f 203c-203d 2047-2049 2e2e 2e3c
2e53-2e54 3002 a4ff a60e-a60f a6f3 a6f7 a876-a877 a8ce-a8cf a92f a9c8-a9c9 aa5d-aa5f aaf0-aaf1 abeb fe52 fe56-fe57 ff01 ff0e
ff1f ff61 10a56-10a57 10f55-10f59 10f86-10f89 11047-11048 110be-110c1 11141-11143 111c5-111c6 111cd 111de-111df 11238-11239
1123b-1123c 112a9 1144b-1144c 115c2-115c3 115c9-115d7 11641-11642 1173c-1173e 11944 11946 11a42-11a43 11a9b-11a9c 11c41-11c42
11ef7-11ef8 11f43-11f44 16a6e-16a6f 16af5 16b37-16b38 16b44 16e98 1bc9f 1da88"""
"""Marks that end a sentence in some script (Unicode's STerm), those on which datatrove counts a line as finished."""
NO_SENTENCE_END = (
    "61d-61e 837 839 83d-83e 17d4-17d6 17d9-17da 1b7d-1b7e 2e53-2e54 10f55-10f59 10f86-10f89 11944 11946 "
    "11ef7-11ef8 11f43-11f44 16e98"
)
"""Those of `TERMINALS` on which spaCy's sentencizer (3.8) does not end a sentence."""
SYMBOLS = """0-8 b-1f 21-2f 3a-40 5b-60 7b-9f ab b4 bb 2013-2014 2019 201c-201e 2026 2236 2501 25ba 3001-3002 3008-300d
3010-3011 ff01 ff05 ff08-ff09 ff0c ff0e ff11 ff1a-ff1b ff1f ff5e"""
"""What, with `TERMINALS`, is punctuation to datatrove: a word of nothing else is a symbol. U+FF11, a one, is among them."""

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
STOP_CODES = np.array([int.from_bytes(word.encode(), "big") for word in STOP_WORDS], np.uint64)


def phrase_bytes(text: str) -> NDArray[np.uint8]:
    """ASCII text as an array, uint8."""
    return np.frombuffer(text.encode(), np.uint8).copy()


def read_only(data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A view such as Arrow's buffers give: numba compiles everything a second time for arrays that can be written."""
    view = data.view()
    view.flags.writeable = False
    return view


def code_points(ranges: str) -> list[int]:
    """The numbers that hexadecimal ranges such as "21 3a-40" stand for."""
    bounds = [item.partition("-") for item in ranges.split()]
    return [point for low, _, high in bounds for point in range(int(low, 16), int(high or low, 16) + 1)]


@functools.cache
def character_flags() -> NDArray[np.uint16]:
    """What every code point is, uint16[N_CODE_POINTS], from Python's Unicode tables and the sets above."""
    chars = np.arange(N_CODE_POINTS, dtype=np.uint32).view("<U1")
    punctuation = [unicodedata.category(chr(point))[0] == "P" for point in range(N_CODE_POINTS)]
    flags = np.zeros(N_CODE_POINTS, np.uint16)
    flags[np.strings.isalpha(chars)] |= ALPHA
    flags[np.strings.isalnum(chars)] |= ALNUM
    flags[np.strings.isspace(chars)] |= SPACE
    flags[np.strings.isdigit(chars)] |= DIGIT
    flags[np.strings.isdecimal(chars)] |= DECIMAL
    # np.strings.isupper asks for a cased string, str.isupper of one character for the character: they agree on one.
    flags[np.strings.isupper(chars)] |= UPPER
    flags[punctuation] |= PUNCTUATION
    flags[code_points(SYMBOLS + " " + TERMINALS)] |= SYMBOL
    flags[code_points(TERMINALS)] |= TERMINAL | SENTENCE_END
    flags[code_points(NO_SENTENCE_END)] &= ~SENTENCE_END
    return flags


@njit(inline="always")
def flags_at(data: NDArray[np.uint8], at: int, flags: NDArray[np.uint16]) -> tuple[np.uint16, int]:
    """What the code point at `at` is, and where the next one begins."""
    first = data[at]
    if first < 0x80:
        return flags[first], at + 1
    point, following = next_code_point(data, at)
    return (flags[point] if point < N_CODE_POINTS else np.uint16(0)), following


@njit(inline="always")
def last_flags(
    data: NDArray[np.uint8], at: int, end: int, flags: NDArray[np.uint16]
) -> tuple[np.uint16, int]:
    """What the last code point of data[at:end] is, and where it begins; the span must not be empty."""
    begin = end - 1
    while begin > at and data[begin] & 0xC0 == 0x80:
        begin -= 1
    return flags_at(data, begin, flags)[0], begin


@njit(nogil=True, cache=True)
def strip(data: NDArray[np.uint8], at: int, end: int, flags: NDArray[np.uint16]) -> tuple[int, int]:
    """The span that `str.strip` leaves of data[at:end]; an empty one at `end` where all is white space."""
    while at < end:
        flag, following = flags_at(data, at, flags)
        if not flag & SPACE:
            break
        at = following
    while end > at:
        flag, begin = last_flags(data, at, end, flags)
        if not flag & SPACE:
            break
        end = begin
    return at, end


@njit(inline="always")
def ends_with_ellipsis(data: NDArray[np.uint8], at: int, end: int) -> bool:
    """Whether data[at:end] ends with "..." or "…" (E2 80 A6)."""
    if end - at < 3:
        return False
    a, b, c = data[end - 3], data[end - 2], data[end - 1]
    return (a == 46 and b == 46 and c == 46) or (a == 0xE2 and b == 0x80 and c == 0xA6)


@njit(inline="always")
def line_break(data: NDArray[np.uint8], at: int, end: int) -> int:
    """How many bytes the line break of `str.splitlines` at `at` has; 0 where there is none."""
    byte = data[at]
    if byte == 13:
        return 2 if at + 1 < end and data[at + 1] == 10 else 1
    if 10 <= byte <= 12 or 28 <= byte <= 30:
        return 1
    if byte == 0xC2 and data[at + 1] == 0x85:
        return 2
    if byte == 0xE2 and data[at + 1] == 0x80 and data[at + 2] & 0xFE == 0xA8:
        return 3
    return 0


@njit(inline="always")
def ends_with_spaced_dots(data: NDArray[np.uint8], at: int, end: int) -> bool:
    """Whether data[at:end] ends with ". . ."."""
    if end - at < 5 or data[end - 4] != 32 or data[end - 2] != 32:
        return False
    return data[end - 5] == 46 and data[end - 3] == 46 and data[end - 1] == 46


@njit(inline="always")
def stop_word(code: np.uint64) -> int:
    """The bit of the stop word whose bytes, read as a big-endian number, are `code`; 0 if it is none."""
    for k in range(STOP_CODES.size):
        if STOP_CODES[k] == code:
            return 1 << k
    return 0


@njit(inline="always")
def next_line_break(data: NDArray[np.uint8], at: int, end: int) -> tuple[int, int]:
    """Where the line of `str.splitlines` that begins at `at` ends, and how many bytes its line break has."""
    while at < end:
        if (
            data[at] < 32 or data[at] >= 0xC2
        ):  # tested here, the rest is seldom reached: 0.8 ns a byte instead of 3.9
            width = line_break(data, at, end)
            if width:
                return at, width
        at += 1
    return end, 0


@njit(nogil=True, cache=True)
def marked_lines(
    data: NDArray[np.uint8], at: int, end: int, flags: NDArray[np.uint16]
) -> tuple[int, int, int]:
    """Lines of `str.splitlines`, those that begin with a bullet, those that end with an ellipsis."""
    n_lines = n_bullets = n_ellipses = 0
    while at < end:
        stop, width = next_line_break(data, at, end)
        first, last = strip(data, at, stop, flags)
        if first < last:
            a = data[first]
            n_bullets += a == 45 or (a == 0xE2 and data[first + 1] == 0x80 and data[first + 2] == 0xA2)
            n_ellipses += ends_with_ellipsis(data, first, last)
        n_lines += 1
        at = stop + width
    return n_lines, n_bullets, n_ellipses


@njit(inline="always")
def match(data: NDArray[np.uint8], at: int, end: int, phrase: NDArray[np.uint8]) -> int:
    """Where `phrase`, ASCII in lower case, ends if the lower case of data[at:end] begins with it, else -1.

    Of other characters only the Kelvin sign (E2 84 AA) becomes an ASCII letter, k, and U+0130 an i and a dot, which no
    phrase here has.
    """
    for k in range(phrase.size):
        if at >= end:
            return -1
        byte, width = data[at], 1
        if 65 <= byte <= 90:
            byte |= np.uint8(32)
        elif byte == 0xE2 and data[at + 1] == 0x84 and data[at + 2] == 0xAA:
            byte, width = np.uint8(107), 3
        if byte != phrase[k]:
            return -1
        at += width
    return at


@njit(inline="always")
def count_words(data: NDArray[np.uint8], at: int, end: int, flags: NDArray[np.uint16]) -> tuple[int, int]:
    """Words of `str.split` in data[at:end], and the code points of the longest."""
    n_words = length = longest = 0
    while at < end:
        begin = at
        while at < end and 33 <= data[at] < 0x7F:
            at += 1
        if at > begin:
            n_words += length == 0
            length += at - begin
            longest = max(longest, length)
            continue
        flag, at = flags_at(data, at, flags)
        if flag & SPACE:
            length = 0
        else:
            n_words += length == 0
            length += 1
            longest = max(longest, length)
    return n_words, longest
