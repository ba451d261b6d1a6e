"""C4's line filter and its sentences, and small edits of whole documents, as numba passes over UTF-8 buffers to new ones.

`data` uint8 and `offsets` int64[n_docs + 1] are as in `kernels.quality`; so is what is returned. The GIL is released.
"""

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from kernels.quality_text import (
    DECIMAL,
    PUNCTUATION,
    SENTENCE_END,
    character_flags,
    count_words,
    flags_at,
    match,
    next_line_break,
    phrase_bytes,
    read_only,
    strip,
)

C4_LINES = ("too_long_word", "no_terminal_punc", "too_few_words", "javascript", "policy", "kept")
"""What `c4_lines` counts per document, by datatrove's names."""
_LOREM = phrase_bytes("lorem ipsum")
_JAVASCRIPT = phrase_bytes("javascript")
_TERMS = phrase_bytes("terms of use")
_PRIVACY = phrase_bytes("privacy policy")
_COOKIE_POLICY = phrase_bytes("cookie policy")
_USES = phrase_bytes("uses cookies")
_USE_OF = phrase_bytes("use of cookies")
_USE = phrase_bytes("use cookies")
_EDIT = phrase_bytes("[edit]")
_NEEDED = phrase_bytes("[citation needed]")


class Edited(NamedTuple):
    """New buffers, and what was done to every document."""

    data: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    counts: NDArray[np.int64]
    """int64[n_docs, n_reasons]: lines by what became of them."""
    marks: NDArray[np.int64]
    """int64[n_docs]: 1 where "lorem ipsum" ended the document, 2 where a curly bracket did."""


def c4_lines(
    data: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    *,
    min_words: int = 3,
    max_word_chars: int = 1000,
    end_marks: str = ".?!\"'",
    words_after_citations: bool = False,
) -> Edited:
    """C4's line filter: kept lines, stripped and without citations, joined by line feeds and not yet stripped as a whole.

    Lines are those of `str.splitlines`. A line goes if a word has more than `max_word_chars` code points; if it does not end
    with one of `end_marks` (ASCII; "" keeps all) or ends with "..."; if it has fewer than `min_words` words, counted before
    citations are taken out (datatrove 0.10) or after (tensorflow_datasets c4_utils). A document ends at its first line with
    "lorem ipsum" or "{" (`marks`), and then has no text.
    """
    settings = (min_words, max_word_chars, phrase_bytes(end_marks), words_after_citations)
    return Edited(*_c4_lines(read_only(data), offsets, character_flags(), *settings))


@njit(inline="always")
def _begins(data: NDArray[np.uint8], at: int, end: int, phrase: NDArray[np.uint8]) -> bool:
    """Whether data[at:end] begins with exactly `phrase`."""
    if at + phrase.size > end:
        return False
    for k in range(phrase.size):  # noqa: SIM110 (numba)
        if data[at + k] != phrase[k]:
            return False
    return True


@njit(inline="always")
def _citation(data: NDArray[np.uint8], at: int, end: int, flags: NDArray[np.uint16]) -> int:
    """Where the citation that begins with the "[" at `at` ends, else `at`: [], [12], [edit], [citation needed]."""
    after = at + 1
    while after < end:
        flag, following = flags_at(data, after, flags)
        if data[after] == 93:
            return following
        if not flag & DECIMAL:
            break
        after = following
    if _begins(data, at, end, _EDIT):
        return at + _EDIT.size
    if _begins(data, at, end, _NEEDED):
        return at + _NEEDED.size
    return at


@njit(nogil=True, cache=True)
def _phrases(data: NDArray[np.uint8], at: int, end: int) -> int:
    """Bits: 1 lorem ipsum, 2 javascript, 4 a curly bracket, 8 a phrase of policies; case does not matter."""
    found = 0
    for k in range(at, end):
        byte = data[k] | np.uint8(32)
        if byte == 108:
            found |= 1 * (match(data, k, end, _LOREM) >= 0)
        elif byte == 106:
            found |= 2 * (match(data, k, end, _JAVASCRIPT) >= 0)
        elif byte == 123:
            found |= 4 * (data[k] == 123)
        elif byte == 116:
            found |= 8 * (match(data, k, end, _TERMS) >= 0)
        elif byte == 112:
            found |= 8 * (match(data, k, end, _PRIVACY) >= 0)
        elif byte == 99:
            found |= 8 * (match(data, k, end, _COOKIE_POLICY) >= 0)
        elif byte == 117:
            found |= 8 * (match(data, k, end, _USES) >= 0)
            found |= 8 * (match(data, k, end, _USE_OF) >= 0)
            found |= 8 * (match(data, k, end, _USE) >= 0)
    return found


@njit(nogil=True, cache=True)
def _c4_lines(
    data: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    flags: NDArray[np.uint16],
    min_words: int,
    max_word_chars: int,
    end_marks: NDArray[np.uint8],
    words_after_citations: bool,
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    n_docs = offsets.size - 1
    counts = np.zeros((n_docs, 6), np.int64)
    marks = np.zeros(n_docs, np.int64)
    new_offsets = np.zeros(n_docs + 1, np.int64)
    out = np.empty(offsets[n_docs] - offsets[0] + n_docs + 1, np.uint8)
    for doc in range(n_docs):
        at, end, write = offsets[doc], offsets[doc + 1], new_offsets[doc]
        while at < end:
            stop, width = next_line_break(data, at, end)
            first, last = strip(data, at, stop, flags)
            at = stop + width
            n_words, longest = count_words(data, first, last, flags)
            if max_word_chars >= 0 and longest > max_word_chars:
                counts[doc, 0] += 1
                continue
            begin = write
            if counts[doc, 5]:
                out[write] = 10
                begin = write + 1
            stop = begin
            while first < last:
                if data[first] == 91:
                    after = _citation(data, first, last, flags)
                    if after > first:
                        first = after
                        continue
                out[stop] = data[first]
                first, stop = first + 1, stop + 1
            if end_marks.size:
                good = False
                for mark in end_marks:
                    good |= stop > begin and out[stop - 1] == mark
                if stop - begin >= 3 and out[stop - 1] == 46 and out[stop - 2] == 46 and out[stop - 3] == 46:
                    good = False
                if not good:
                    counts[doc, 1] += 1
                    continue
            if words_after_citations:
                n_words, longest = count_words(out, begin, stop, flags)
            if n_words < min_words:
                counts[doc, 2] += 1
                continue
            found = _phrases(out, begin, stop)
            if found & 1:
                marks[doc] = 1
                break
            if found & 2:
                counts[doc, 3] += 1
                continue
            if found & 4:
                marks[doc] = 2
                break
            if found & 8:
                counts[doc, 4] += 1
                continue
            counts[doc, 5] += 1
            write = stop
        new_offsets[doc + 1] = new_offsets[doc] if marks[doc] else write
    return out[: new_offsets[n_docs]].copy(), new_offsets, counts, marks


def sentences(
    data: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    doc_starts: NDArray[np.int64],
    n_lines: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Sentences of every document, int64[n_docs], as datatrove counts them: line by line, with spaCy's sentencizer.

    `starts`, `ends` and `doc_starts` are the words of datatrove's English tokenizer; `n_lines` is 0 where an empty text has
    no line. A line without words is one sentence. White space that is more than one space is a token to spaCy, and such a
    token after an end of sentence begins a sentence of its own.
    """
    return _sentences(read_only(data), offsets, starts, ends, doc_starts, n_lines, character_flags())


@njit(nogil=True, cache=True)
def _sentences(
    data: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    doc_starts: NDArray[np.int64],
    n_lines: NDArray[np.int64],
    flags: NDArray[np.uint16],
) -> NDArray[np.int64]:
    out = np.zeros(offsets.size - 1, np.int64)
    for doc in range(out.size):
        if n_lines[doc] == 0:
            continue
        word, last_word, at, end = doc_starts[doc], doc_starts[doc + 1], offsets[doc], offsets[doc + 1]
        while at <= end:
            stop = at
            while stop < end and data[stop] != 10:
                stop += 1
            ended = False
            out[doc] += 1
            while at < stop:
                following = starts[word] if word < last_word and starts[word] < stop else stop
                blank = following - at > 1 or (following - at == 1 and data[at] != 32)
                if ended and blank:
                    out[doc] += 1
                    ended = False
                at = following
                if at == stop:
                    break
                punctuation, ends_it, length = True, False, 0
                while at < ends[word]:
                    flag, at = flags_at(data, at, flags)
                    punctuation &= (flag & PUNCTUATION) != 0
                    ends_it = length == 0 and (flag & SENTENCE_END) != 0
                    length += 1
                if ends_it:
                    ended = True
                elif ended and not punctuation:
                    out[doc] += 1
                    ended = False
                word += 1
            at = stop + 1
    return out


@njit(nogil=True, cache=True)
def limit_newlines(
    data: NDArray[np.uint8], offsets: NDArray[np.int64], most: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The documents with at most `most` line feeds in a row, as new buffers."""
    new_offsets = np.zeros_like(offsets)
    out = np.empty(offsets[offsets.size - 1] - offsets[0], np.uint8)
    write = 0
    for doc in range(offsets.size - 1):
        run = 0
        for at in range(offsets[doc], offsets[doc + 1]):
            run = run + 1 if data[at] == 10 else 0
            if run <= most:
                out[write] = data[at]
                write += 1
        new_offsets[doc + 1] = write
    return out[:write].copy(), new_offsets


@njit(nogil=True, cache=True)
def take(
    data: NDArray[np.uint8], starts: NDArray[np.int64], ends: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Copies one byte span per document into new buffers."""
    new_offsets = np.zeros(starts.size + 1, np.int64)
    for doc in range(starts.size):
        new_offsets[doc + 1] = new_offsets[doc] + ends[doc] - starts[doc]
    out = np.empty(new_offsets[starts.size], np.uint8)
    for doc in range(starts.size):
        out[new_offsets[doc] : new_offsets[doc + 1]] = data[starts[doc] : ends[doc]]
    return out, new_offsets


@njit(nogil=True, cache=True)
def stripped(
    data: NDArray[np.uint8], offsets: NDArray[np.int64], flags: NDArray[np.uint16]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """What `str.strip` leaves of every document, as spans for `take`."""
    starts, ends = np.empty(offsets.size - 1, np.int64), np.empty(offsets.size - 1, np.int64)
    for doc in range(starts.size):
        starts[doc], ends[doc] = strip(data, offsets[doc], offsets[doc + 1], flags)
    return starts, ends
