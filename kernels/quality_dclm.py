"""RefinedWeb's line modifiers as DCLM defines them, in one numba pass over UTF-8 buffers to new ones.

`data` uint8 and `offsets` int64[n_docs + 1] are as in `kernels.quality`; the GIL is released. Source of every definition:
DCLM's baselines/mappers/modifiers.py and baselines_configs/dclm_baseline_refinedweb.yaml.
"""

import numpy as np
from numba import literal_unroll, njit
from numpy.typing import NDArray

from kernels.quality_text import (
    ALNUM,
    DECIMAL,
    DIGIT,
    SPACE,
    UPPER,
    character_flags,
    flags_at,
    match,
    phrase_bytes,
    read_only,
    strip,
)

DCLM_LINES = ("uppercase", "numeric", "counter", "too_few_words", "items_in_cart", "read_more", "sign_in")
"""What `dclm_lines` counts per document: lines that each modifier removed."""
_CART = phrase_bytes("items in cart")
_READ_MORE = phrase_bytes("read more...")
_SIGN_IN = phrase_bytes("sign-in")
_COUNTED_WORDS = (
    """likes shares comments retweets reposts quotes bookmarks upvotes downvotes downloads views followers"""
)
_COUNTED = tuple(phrase_bytes(word) for word in _COUNTED_WORDS.split())


def dclm_lines(
    data: NDArray[np.uint8], offsets: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """New buffers, and how many lines each of `DCLM_LINES` removed, int64[n_docs, 7]. One modifier runs after the other.

    Lines lie between line feeds. Those go that are more than half upper case; all digits; a counter ("3 likes"); one word.
    Then "items in cart" anywhere, "Read more" and three characters at the end, and "Sign-in" at the start are cut from lines
    of at most 10 words, and lines of which nothing is left go. The text is stripped after each modifier but the fourth.
    """
    return _dclm_lines(read_only(data), offsets, character_flags())


@njit(inline="always")
def _match_any_case(data: NDArray[np.uint8], at: int, end: int, phrase: NDArray[np.uint8]) -> int:
    """As `match`, but by the rules of re.IGNORECASE, and "." in the phrase is any character."""
    for k in range(phrase.size):
        if at >= end:
            return -1
        byte, width, wanted = data[at], 1, phrase[k]
        if byte >= 0x80:
            width = 2 if byte < 0xE0 else (3 if byte < 0xF0 else 4)
            second = data[at + 1]
            if (byte == 0xC4 and (second == 0xB0 or second == 0xB1)) or (byte == 0xC5 and second == 0xBF):
                byte = np.uint8(105) if byte == 0xC4 else np.uint8(115)  # dotted and dotless i, long s
            elif byte == 0xE2 and second == 0x84 and data[at + 2] == 0xAA:
                byte = np.uint8(107)
        elif 65 <= byte <= 90:
            byte |= np.uint8(32)
        if byte != wanted and wanted != 46:
            return -1
        at += width
    return at


@njit(inline="always")
def _skip_space(data: NDArray[np.uint8], at: int, end: int, flags: NDArray[np.uint16]) -> int:
    """Behind the white-space character at `at`, or `at` if there is none."""
    if at < end:
        flag, following = flags_at(data, at, flags)
        if flag & SPACE:
            return following
    return at


@njit(nogil=True, cache=True)
def _is_counter(data: NDArray[np.uint8], at: int, end: int, flags: NDArray[np.uint16]) -> bool:
    r"""DCLM's counter_regex on the lower case: not a word, a digit, [,.\d]*, [kmb]?, \s+, a counted thing, not a word."""
    while at < end:
        flag, following = flags_at(data, at, flags)
        if flag & ALNUM or data[at] == 95:
            break
        at = following
    if at >= end or not flags_at(data, at, flags)[0] & DECIMAL:
        return False
    while at < end:
        flag, following = flags_at(data, at, flags)
        if not flag & DECIMAL and data[at] != 44 and data[at] != 46:
            break
        at = following
    if at < end:
        letter = data[at] | np.uint8(32)
        if letter == 107 or letter == 109 or letter == 98:
            at += 1
        elif data[at] == 0xE2 and data[at + 1] == 0x84 and data[at + 2] == 0xAA:
            at += 3
    begin = at
    while at < end:
        following = _skip_space(data, at, end, flags)
        if following == at:
            break
        at = following
    after = -1
    if at > begin:
        for word in literal_unroll(_COUNTED):
            after = max(after, match(data, at, end, word))
    if after < 0:
        return False
    while after < end:
        flag, following = flags_at(data, after, flags)
        if flag & ALNUM or data[after] == 95:
            return False
        after = following
    return True


@njit(nogil=True, cache=True)
def _cut(
    data: NDArray[np.uint8], at: int, end: int, which: int, flags: NDArray[np.uint16]
) -> tuple[int, int]:
    """Cuts the phrase of modifier `which` from data[at:end], in place, and returns the span of what is left."""
    if which == 6:
        after = _match_any_case(data, at, end, _SIGN_IN)
        return (at if after < 0 else _skip_space(data, after, end, flags)), end
    phrase = _CART if which == 4 else _READ_MORE
    found = False
    for k in range(at, end):
        byte = data[k]
        if byte | np.uint8(32) == phrase[0] or byte == 0xC4:  # U+0130 and U+0131 are an i too
            after = _match_any_case(data, k, end, phrase)
            found |= after == end or (which == 4 and after >= 0)
    if not found:
        return at, end
    start = write = at
    while at < end:
        inner = _skip_space(data, at, end, flags)
        after = _match_any_case(data, inner, end, phrase)
        if which == 4 and after >= 0:
            at = after
            continue
        if which == 5 and after == end:
            break
        following = flags_at(data, at, flags)[1]
        while at < following:
            data[write] = data[at]
            write, at = write + 1, at + 1
    return start, write


@njit(inline="always")
def _has_words(data: NDArray[np.uint8], at: int, end: int, n: int, flags: NDArray[np.uint16]) -> bool:
    """Whether `str.split` gives at least `n` words."""
    inside = False
    while at < end and n:
        flag, at = flags_at(data, at, flags)
        n -= not inside and not flag & SPACE
        inside = not flag & SPACE
    return n == 0


@njit(nogil=True, cache=True)
def _removes(data: NDArray[np.uint8], line: NDArray[np.int64], which: int, flags: NDArray[np.uint16]) -> bool:
    """Whether modifier `which` of DCLM_LINES removes this line, which is not empty; shortens `line` where it cuts."""
    at, end = line[0], line[1]
    if which < 2:
        wanted, n, n_chars = UPPER if which == 0 else DIGIT, 0, 0
        low = np.uint8(65 if which == 0 else 48)
        high = np.uint8(90 if which == 0 else 57)
        while at < end:
            n_chars += 1
            if data[at] < 0x80:
                n += low <= data[at] <= high
                at += 1
            else:
                flag, at = flags_at(data, at, flags)
                n += (flag & wanted) != 0
        return n / n_chars > (0.5 if which == 0 else 0.999999)
    if which == 2:
        return _is_counter(data, at, end, flags)
    if which == 3:
        return not _has_words(data, at, end, 2, flags)
    if _has_words(data, at, end, 11, flags):
        return False
    line[0], line[1] = _cut(data, at, end, which, flags)
    first, last = strip(data, line[0], line[1], flags)
    return first == last


@njit(nogil=True, cache=True)
def _dclm_lines(
    data: NDArray[np.uint8], offsets: NDArray[np.int64], flags: NDArray[np.uint16]
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    n_docs, longest = offsets.size - 1, 0
    for doc in range(n_docs):
        longest = max(longest, offsets[doc + 1] - offsets[doc])
    counts = np.zeros((n_docs, 7), np.int64)
    new_offsets = np.zeros(n_docs + 1, np.int64)
    text = data[offsets[0] : offsets[n_docs]].copy()
    out = np.empty(text.size, np.uint8)
    lines = np.empty((longest + 1, 2), np.int64)
    for doc in range(n_docs):
        start, stop = offsets[doc] - offsets[0], offsets[doc + 1] - offsets[0]
        n_lines = 0
        for k in range(start, stop + 1):
            if k == stop or text[k] == 10:
                lines[n_lines, 0], lines[n_lines, 1] = start, k
                n_lines, start = n_lines + 1, k + 1
        top = 0
        for which in range(7):
            n_kept = top
            for k in range(top, n_lines):
                if lines[k, 0] < lines[k, 1] and _removes(text, lines[k], which, flags):
                    counts[doc, which] += 1
                else:
                    lines[n_kept, 0], lines[n_kept, 1] = lines[k, 0], lines[k, 1]
                    n_kept += 1
            n_lines = n_kept
            if which == 3:
                continue
            # Stripping the text takes blank lines from its ends and trims its first and last line.
            while top < n_lines:
                first, last = strip(text, lines[top, 0], lines[top, 1], flags)
                if first < last:
                    lines[top, 0] = first
                    break
                top += 1
            while n_lines > top:
                first, last = strip(text, lines[n_lines - 1, 0], lines[n_lines - 1, 1], flags)
                if first < last:
                    lines[n_lines - 1, 1] = last
                    break
                n_lines -= 1
        write = new_offsets[doc]
        for k in range(top, n_lines):
            if k > top:
                out[write] = 10
                write += 1
            for at in range(lines[k, 0], lines[k, 1]):
                out[write] = text[at]
                write += 1
        new_offsets[doc + 1] = write
    return out[: new_offsets[n_docs]].copy(), new_offsets, counts
