"""Text signals and word hashes of a whole batch in one numba pass over its UTF-8 buffers; the GIL is released.

A batch is what an Arrow `large_string` array holds: `data` uint8, the documents' valid UTF-8 one after the other, and
`offsets` int64[n_docs + 1]. What a letter, a space or lower case is comes from Python's own Unicode tables
(`unicode_tables`), so that every signal has a plain-Python definition, which the tests hold it against.
"""

import functools
import unicodedata

import numpy as np
from numba import njit, uint64
from numpy.typing import NDArray

from kernels.hashing import FNV_OFFSET, fnv1a, mix64

ALPHA, ALNUM, SPACE, SENTENCE = np.uint8(1), np.uint8(2), np.uint8(4), np.uint8(8)
N_CODE_POINTS = 0x40000
"""What the tables cover: beyond are tags, variation selectors and private use, neither letters nor spaces."""
_FUNCTION_WORDS = """the be is are was were am been has have had do does did to of and or but not that this these those with
for from on in at by as it its he she his her him they them their we you my your an if when where who what which"""
STOP_WORDS = tuple(_FUNCTION_WORDS.split())
"""English function words; at most 64, one bit each. Single letters are left out: random text is full of them."""
SIGNALS = (
    "n_chars",  # code points
    "n_words",  # runs of non-space characters, as str.split() gives
    "mean_word_length",  # non-space characters per word
    "alpha_words",  # share of words with at least one letter
    "symbol_ratio",  # share of non-space characters that are symbols: neither alphanumeric nor sentence punctuation;
    # a run of one symbol ("======") counts once
    "duplicate_lines",  # share of non-blank lines that repeat an earlier one, spacing apart
    "stop_words",  # distinct STOP_WORDS
    "max_line_length",  # characters
    "mean_line_length",  # characters per line, blank lines included
    "alnum_ratio",  # alphanumeric share of all characters
)


@functools.cache
def unicode_tables() -> tuple[NDArray[np.uint8], NDArray[np.uint32]]:
    """Flags and lower case by code point: uint8[N_CODE_POINTS], uint32[N_CODE_POINTS].

    Combining marks count as alphanumeric (they belong to words in many scripts). Where lower case is several code points,
    the first is taken.
    """
    chars = np.arange(N_CODE_POINTS, dtype=np.uint32).view("<U1")
    marks = np.array([unicodedata.category(chr(point))[0] == "M" for point in range(N_CODE_POINTS)])
    flags = ALPHA * np.strings.isalpha(chars).astype(np.uint8)
    flags |= ALNUM * (np.strings.isalnum(chars) | marks).astype(np.uint8)
    flags |= SPACE * np.strings.isspace(chars).astype(np.uint8)
    flags[[ord(char) for char in ".,;:!?'\"()-–—‘’“”…"]] |= SENTENCE
    return flags, np.strings.lower(chars).view(np.uint32)


@njit(inline="always")
def next_code_point(data: NDArray[np.uint8], at: int) -> tuple[np.int64, int]:
    """The code point whose first byte is at `at`, and where the next one begins. The UTF-8 must be valid."""
    first = np.int64(data[at])
    if first < 0x80:
        return first, at + 1
    if first < 0xE0:
        return (first & 0x1F) << 6 | (np.int64(data[at + 1]) & 0x3F), at + 2
    middle = (np.int64(data[at + 1]) & 0x3F) << 6 | (np.int64(data[at + 2]) & 0x3F)
    if first < 0xF0:
        return (first & 0x0F) << 12 | middle, at + 3
    return (first & 0x07) << 18 | middle << 6 | (np.int64(data[at + 3]) & 0x3F), at + 4


@njit(nogil=True, cache=True)
def word_hashes(
    data: NDArray[np.uint8], offsets: NDArray[np.int64], flags: NDArray[np.uint8], lower: NDArray[np.uint32]
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """64-bit hashes of every document's words: maximal runs of alphanumeric characters, in lower case.

    Returns the hashes of all documents, uint64[n_words], and where each document's begin, int64[n_docs + 1].
    """
    n_docs = offsets.size - 1
    hashes = np.empty((offsets[n_docs] - offsets[0] + n_docs) // 2 + n_docs + 1, np.uint64)
    starts = np.zeros(n_docs + 1, np.int64)
    count = 0
    for doc in range(n_docs):
        at, end = offsets[doc], offsets[doc + 1]
        state, inside = FNV_OFFSET, False
        while at < end:
            point, at = next_code_point(data, at)
            if point < N_CODE_POINTS and flags[point] & ALNUM:
                state, inside = fnv1a(state, uint64(lower[point])), True
            elif inside:
                hashes[count] = mix64(state)
                count += 1
                state, inside = FNV_OFFSET, False
        if inside:
            hashes[count] = mix64(state)
            count += 1
        starts[doc + 1] = count
    return hashes[:count].copy(), starts


@functools.cache
def stop_word_hashes() -> NDArray[np.uint64]:
    """The hashes of `STOP_WORDS`, in their order."""
    data = np.frombuffer(" ".join(STOP_WORDS).encode(), np.uint8)
    return word_hashes(data, np.array([0, data.size]), *unicode_tables())[0]


def signals(data: NDArray[np.uint8], offsets: NDArray[np.int64]) -> NDArray[np.float64]:
    """All `SIGNALS` of every document: float64[n_docs, len(SIGNALS)]. Ratios of an empty document are 0."""
    return _signals(data, offsets, *unicode_tables(), stop_word_hashes(), len(SIGNALS))


@njit(nogil=True, cache=True)
def _signals(
    data: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    flags: NDArray[np.uint8],
    lower: NDArray[np.uint32],
    stop_words: NDArray[np.uint64],
    n_signals: int,
) -> NDArray[np.float64]:
    n_docs = offsets.size - 1
    out = np.zeros((n_docs, n_signals))
    longest = 0
    for doc in range(n_docs):
        longest = max(longest, offsets[doc + 1] - offsets[doc])
    lines = np.empty(
        longest // 2 + 1, np.uint64
    )  # hashes of non-blank lines: each takes a character and a line end
    for doc in range(n_docs):
        at, end = offsets[doc], offsets[doc + 1]
        n_chars = n_visible = n_alnum = n_symbols = 0
        n_words = n_alpha_words = 0
        n_lines, line_length, max_line_length, n_full_lines = 1, 0, 0, 0
        word, alpha_word, in_word = FNV_OFFSET, False, False
        line, line_visible = FNV_OFFSET, False
        seen, previous = uint64(0), np.int64(-1)
        while at <= end:
            # One step beyond the end closes the last word and the last line.
            point = np.int64(10)
            if at < end:
                point, at = next_code_point(data, at)
                n_chars += 1
            else:
                at += 1
            flag = flags[point] if point < N_CODE_POINTS else np.uint8(0)
            if flag & SPACE:
                if in_word:
                    n_words += 1
                    n_alpha_words += alpha_word
                    word = mix64(word)
                    for bit in range(stop_words.size):
                        if stop_words[bit] == word:
                            seen |= uint64(1) << uint64(bit)
                    line = fnv1a(line, uint64(32))
                    word, alpha_word, in_word = FNV_OFFSET, False, False
            else:
                in_word = line_visible = True
                n_visible += 1
                line = fnv1a(line, uint64(point))
                if flag & ALPHA:
                    alpha_word = True
                if flag & ALNUM:
                    n_alnum += 1
                    word = fnv1a(word, uint64(lower[point]))
                elif not flag & SENTENCE and point != previous:
                    n_symbols += 1
            if point == 10:
                max_line_length = max(max_line_length, line_length)
                if line_visible:
                    lines[n_full_lines] = line
                    n_full_lines += 1
                n_lines += at <= end
                line, line_visible, line_length = FNV_OFFSET, False, 0
            else:
                line_length += 1
            previous = point
        distinct = 0
        ordered = np.sort(lines[:n_full_lines])
        for k in range(n_full_lines):
            distinct += k == 0 or ordered[k] != ordered[k - 1]
        n_stop_words = 0
        while seen:
            seen &= seen - uint64(1)
            n_stop_words += 1
        out[doc, 0] = n_chars
        out[doc, 1] = n_words
        out[doc, 2] = n_visible / max(n_words, 1)
        out[doc, 3] = n_alpha_words / max(n_words, 1)
        out[doc, 4] = n_symbols / max(n_visible, 1)
        out[doc, 5] = (n_full_lines - distinct) / max(n_full_lines, 1)
        out[doc, 6] = n_stop_words
        out[doc, 7] = max_line_length
        out[doc, 8] = (n_chars - n_lines + 1) / n_lines
        out[doc, 9] = n_alnum / max(n_chars, 1)
    return out
