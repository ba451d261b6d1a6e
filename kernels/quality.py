"""The lexical signals of the published English filters, of a whole batch, in a few numba passes; the GIL is released.

A batch is what an Arrow `large_string` array holds: `data` uint8, the documents' valid UTF-8 one after the other, and
`offsets` int64[n_docs + 1]. Words are byte spans in `data`: `starts`, `ends` int64[n_words], and `doc_starts`
int64[n_docs + 1], where each document's words begin; they hold no white space. Which words they are is the caller's choice.

Every signal is defined as the code that published it computes it (`SIGNALS`), quirks included: GopherQualityFilter,
GopherRepetitionFilter and FineWebQualityFilter of datatrove 0.10, and DCLM's content filters. Lengths are code points.
Repetition is exact: equal hashes are followed by a comparison. One measurement costs about as much as one filter's, so all
are made at once, and rules decide afterwards (`moxin.curate.profiles`).
"""

from typing import NamedTuple

import numpy as np
from numba import njit, uint64
from numpy.typing import NDArray

from kernels import quality_repeats as repeats
from kernels.quality_text import (
    ALNUM,
    ALPHA,
    SPACE,
    SYMBOL,
    TERMINAL,
    character_flags,
    ends_with_ellipsis,
    ends_with_spaced_dots,
    flags_at,
    last_flags,
    marked_lines,
    read_only,
    stop_word,
    strip,
)

SHORT_LINE = 30
"""Code points up to which FineWeb calls a line short."""


class Signal(NamedTuple):
    """One column of the table that `signals` returns."""

    name: str
    unit: str
    meaning: str


_WORDS = "of the words that were given"
_DCLM = "of the words that were given and begin with a letter or digit"
SIGNALS = (
    Signal("n_chars", "code points", "length of the document"),
    Signal("n_words", "words", "words that were given"),
    Signal("non_symbol_words", "words", "words with at least one character that is not punctuation"),
    Signal("mean_word_chars", "code points", "mean length of those; NaN where there are none"),
    Signal("hashes_per_word", "1", "number of '#' / words"),
    Signal("ellipses_per_word", "1", "number of '...' and '…' / words"),
    Signal("bullet_lines", "share", "of str.splitlines(): begin with '•' or '-', spaces apart"),
    Signal("ellipsis_lines", "share", "of str.splitlines(): end with '...' or '…', spaces apart"),
    Signal("alpha_words", "share", "of words: contain a letter"),
    Signal("stop_words", "words", "distinct stop words, case counts"),
    Signal(
        "duplicate_paragraphs",
        "share",
        "of paragraphs: repeat an earlier one; split at two or more line feeds",
    ),
    Signal("duplicate_paragraph_chars", "share", "of n_chars: in those"),
    Signal("duplicate_lines", "share", "of lines: repeat an earlier one; split at line feeds, ends included"),
    Signal("duplicate_line_chars", "share", "of n_chars: in those"),
    *[
        Signal(
            f"top_{n}_gram",
            "share",
            "of n_chars: commonest n-gram, first of equals, spaces included, x its count",
        )
        for n in (2, 3, 4)
    ],
    *[
        Signal(
            f"repeated_{n}_grams",
            "share",
            f"of n_chars: greedily found n-grams, joined without spaces, {_WORDS}",
        )
        for n in range(5, 11)
    ],
    Signal("full_lines", "lines", "lines between line feeds that are not blank"),
    Signal(
        "terminal_lines", "share", "of full lines: their very last character ends a sentence in some script"
    ),
    Signal("short_lines", "share", f"of full lines: at most {SHORT_LINE} code points"),
    Signal(
        "repeated_line_chars",
        "share",
        "of characters but line feeds: in full lines that repeat an earlier one",
    ),
    Signal("newlines_per_word", "1", "line feeds / words"),
    Signal(
        "dclm_words",
        "words",
        "fastText's words (split at ASCII white space) that begin with a letter or digit",
    ),
    Signal("dclm_mean_word_chars", "code points", "mean length of str.split()"),
    Signal("dclm_symbols_per_word", "1", "'#', '...', '. . .' and '…', added up / words of str.split()"),
    Signal("dclm_bullet_lines", "share", "of full lines: begin with one of ●•*-, spaces apart"),
    Signal("dclm_ellipsis_lines", "share", "of full lines: end with '...', '. . .' or '…', spaces apart"),
    Signal("dclm_non_alpha_words", "share", "of str.split(): contain no letter"),
    Signal("dclm_stop_words", "words", "of str.split(): stop words in any case, every occurrence"),
    Signal("dclm_copied_lines", "share", "of stripped full lines: occur more than once, all copies"),
    Signal("dclm_copied_paragraphs", "share", "of stripped paragraphs: occur more than once, all copies"),
    Signal("dclm_copied_line_chars", "share", "of the characters of stripped lines: in those"),
    Signal("dclm_copied_paragraph_chars", "share", "of the characters of stripped paragraphs: in those"),
    *[
        Signal(
            f"dclm_top_{n}_gram",
            "share",
            f"of the characters {_DCLM}: commonest n-gram, the longest; 0 if once",
        )
        for n in (2, 3, 4)
    ],
    *[
        Signal(
            f"dclm_copied_{n}_grams", "share", f"of the characters {_DCLM}: words in n-grams that occur again"
        )
        for n in range(5, 11)
    ],
)
NAMES = tuple(signal.name for signal in SIGNALS)
_GRAMS, _DCLM_GRAMS = NAMES.index("top_2_gram"), NAMES.index("dclm_top_2_gram")
GRAM_SIGNALS, DCLM_GRAM_SIGNALS = frozenset(NAMES[_GRAMS : _GRAMS + 9]), frozenset(NAMES[_DCLM_GRAMS:])
WORD_SIGNALS = frozenset(("non_symbol_words", "mean_word_chars", "alpha_words", "stop_words"))
LINE_SIGNALS = frozenset(
    (
        *(
            "bullet_lines",
            "ellipsis_lines",
            "full_lines",
            "terminal_lines",
            "short_lines",
            "repeated_line_chars",
        ),
        *[name for name in NAMES if name.startswith("duplicate_")],
        *("dclm_bullet_lines", "dclm_ellipsis_lines", "dclm_copied_lines", "dclm_copied_paragraphs"),
        *("dclm_copied_line_chars", "dclm_copied_paragraph_chars"),
    )
)
"""What costs most. `signals` measures each of these groups only where one of it is asked for."""


def signals(
    data: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    doc_starts: NDArray[np.int64],
    wanted: frozenset[str] = frozenset(NAMES),
) -> NDArray[np.float64]:
    """All `SIGNALS` of every document, float64[n_docs, len(SIGNALS)]; NaN those of a group (`GRAM_SIGNALS`,
    `DCLM_GRAM_SIGNALS`, `WORD_SIGNALS`, `LINE_SIGNALS`) of which none is wanted.

    A ratio to no words, lines or characters at all is one to 1; only `mean_word_chars` is NaN then.
    """
    lines, words = bool(wanted & LINE_SIGNALS), bool(wanted & WORD_SIGNALS)
    grams, dclm_grams = bool(wanted & GRAM_SIGNALS), bool(wanted & DCLM_GRAM_SIGNALS)
    spans = (starts, ends, doc_starts)
    return _signals(
        read_only(data), offsets, *spans, character_flags(), lines, words, grams, dclm_grams, len(SIGNALS)
    )


@njit(nogil=True, cache=True)
def _characters(
    data: NDArray[np.uint8], at: int, end: int, flags: NDArray[np.uint16], row: NDArray[np.float64]
) -> tuple:
    """Characters and white-space-separated words of one document.

    Fills the `dclm_*word*` signals of `row` (from `dclm_words` on). Returns code points, '#', ellipses, line feeds.
    """
    n_chars = n_hashes = n_ellipses = n_spaced = n_newlines = dots = spaced = 0
    n_words = n_visible = n_alpha = n_stop = n_fast = length = 0
    alpha = in_fast = False
    code = uint64(0)
    while at <= end:
        begin = at
        while at < end and 97 <= data[at] | np.uint8(32) <= 122:
            code = code << uint64(8) | uint64(data[at]) | uint64(32)
            at += 1
        if at > begin:  # ASCII letters, most of what there is, need no more
            n_chars, length, alpha, dots, spaced = n_chars + at - begin, length + at - begin, True, 0, 0
            n_fast, in_fast = n_fast + (not in_fast), True
        # One step beyond the end closes the last word.
        byte, flag, following = np.uint8(32), SPACE, at + 1
        if at < end:
            byte = data[at]
            flag, following = flags_at(data, at, flags)
            n_chars += 1
        if byte == 46:
            dots += 1
            # An automaton for ". . .": its even states wait for a dot, its odd ones for a space.
            spaced = spaced + 1 if not spaced & 1 else 1
            if dots == 3:
                n_ellipses, dots = n_ellipses + 1, 0
            if spaced == 5:
                n_spaced, spaced = n_spaced + 1, 0
        else:
            dots = 0
            spaced = spaced + 1 if byte == 32 and spaced & 1 else 0
            if byte == 35:
                n_hashes += 1
            elif byte == 0xE2 and data[at + 1] == 0x80 and data[at + 2] == 0xA6:
                n_ellipses += 1
            elif byte == 10:
                n_newlines += 1
        if flag & SPACE:
            if length:
                n_words += 1
                n_visible += length
                n_alpha += alpha
                if length <= 4 and stop_word(code):
                    n_stop += 1
                length, alpha, code = 0, False, uint64(0)
        else:
            length += 1
            alpha |= (flag & ALPHA) != 0
            code = code << uint64(8) | uint64(byte)
        if byte == 32 or 9 <= byte <= 13 or byte == 0:
            in_fast = False
        elif not in_fast:
            in_fast = True
            n_fast += (flag & ALNUM) != 0
        at = following
    row[0] = n_fast
    row[1] = n_visible / max(n_words, 1)
    row[2] = (n_hashes + n_ellipses + n_spaced) / max(n_words, 1)
    row[5] = (n_words - n_alpha) / max(n_words, 1)
    row[6] = n_stop
    return n_chars, n_hashes, n_ellipses, n_newlines


@njit(nogil=True, cache=True)
def _lines(
    data: NDArray[np.uint8],
    at: int,
    end: int,
    flags: NDArray[np.uint16],
    n_chars: int,
    n_newlines: int,
    room: repeats.Scratch,
    row: NDArray[np.float64],
) -> None:
    """What lines and paragraphs between line feeds give of one document, for all three filters."""
    lines, parts = room.lines, room.parts
    top, bottom = strip(data, at, end, flags)
    n_lines = n_full = n_bullets = n_ellipses = n_terminal = n_short = n_parts = 0
    start, gap = at, True
    for k in range(at, end + 1):
        if k < end and data[k] != 10:
            continue
        if k == start:
            gap = True  # an empty line
        else:
            lines[n_lines, 0], lines[n_lines, 1] = start, k
            n_lines += 1
            # Paragraphs are lines without an empty one between them; datatrove strips the document first.
            if k > top and start < bottom:
                if gap:
                    parts[n_parts, 0] = max(start, top)
                    n_parts += 1
                parts[n_parts - 1, 1] = min(k, bottom)
                gap = False
        start = k + 1
    again, chars, _, _ = repeats.repeats(data, at, parts, n_parts, room)
    row[10] = again / max(n_parts, 1)
    row[11] = chars / max(n_chars, 1)
    again, chars, _, _ = repeats.repeats(data, at, lines, n_lines, room)
    # Line feeds at the ends leave an empty line there; with both, the second repeats the first.
    edges = int(end > at and data[at] == 10) + int(end > at and data[end - 1] == 10)
    if n_lines == 0 and end > at:
        edges = 2  # even a single line feed has two ends
    row[12] = (again + (edges == 2)) / max(n_lines + edges, 1)
    row[13] = chars / max(n_chars, 1)
    # DCLM strips each paragraph, and an empty one does not count.
    n_kept = n_stripped = 0
    for k in range(n_parts):
        first, last = strip(data, parts[k, 0], parts[k, 1], flags)
        if first < last:
            parts[n_kept, 0], parts[n_kept, 1] = first, last
            n_kept += 1
            n_stripped += repeats.count_chars(data, first, last)
    _, _, copies, chars = repeats.repeats(data, at, parts, n_kept, room)
    row[36] = copies / max(n_kept, 1)
    row[38] = chars / max(n_stripped, 1)
    n_stripped = 0
    for k in range(n_lines):
        begin, stop = lines[k, 0], lines[k, 1]
        first, last = strip(data, begin, stop, flags)
        if first == last:
            continue
        n_terminal += (last_flags(data, begin, stop, flags)[0] & TERMINAL) != 0
        n_short += stop - begin <= 4 * SHORT_LINE and repeats.count_chars(data, begin, stop) <= SHORT_LINE
        a, b, c = data[first], data[min(first + 1, last - 1)], data[min(first + 2, last - 1)]
        n_bullets += (
            a == 42 or a == 45 or (a == 0xE2 and ((b == 0x80 and c == 0xA2) or (b == 0x97 and c == 0x8F)))
        )
        n_ellipses += ends_with_ellipsis(data, first, last) or ends_with_spaced_dots(data, first, last)
        n_stripped += repeats.count_chars(data, first, last)
        parts[n_full, 0], parts[n_full, 1] = first, last
        lines[n_full, 0], lines[n_full, 1] = begin, stop
        n_full += 1
    _, chars, _, _ = repeats.repeats(data, at, lines, n_full, room)
    row[23] = n_full
    row[24] = n_terminal / max(n_full, 1)
    row[25] = n_short / max(n_full, 1)
    row[26] = chars / max(n_chars - n_newlines, 1)
    _, _, copies, chars = repeats.repeats(data, at, parts, n_full, room)
    row[31] = n_bullets / max(n_full, 1)
    row[32] = n_ellipses / max(n_full, 1)
    row[35] = copies / max(n_full, 1)
    row[37] = chars / max(n_stripped, 1)


@njit(nogil=True, cache=True)
def _words(
    data: NDArray[np.uint8],
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    n_distinct: int,
    flags: NDArray[np.uint16],
    room: repeats.Scratch,
    row: NDArray[np.float64],
    wanted: bool,
) -> None:
    """What single words give; every different word is looked at once. Fills `length`, `kind` and `chars`."""
    seen = n_plain = n_plain_chars = n_alpha = 0
    for number in range(n_distinct):
        at, end = starts[room.first[number]], ends[room.first[number]]
        code, kind, length = uint64(0), np.int64(0), 0
        if end - at <= 4:
            for k in range(at, end):
                code = code << uint64(8) | uint64(data[k])
            seen |= stop_word(code)
        while at < end:
            flag, at = flags_at(data, at, flags)
            if not flag & SYMBOL:
                kind |= np.int64(SYMBOL)  # the word has something else than symbols
            kind |= np.int64(flag & ALPHA)
            if length == 0:
                kind |= np.int64(flag & ALNUM)
            length += 1
        room.kind[number], room.length[number] = kind, length
    room.chars[0] = 0
    for k in range(starts.size):
        length, kind = room.length[room.ids[k]], room.kind[room.ids[k]]
        room.chars[k + 1] = room.chars[k] + length
        n_alpha += kind & np.int64(ALPHA)
        if kind & np.int64(SYMBOL):
            n_plain += 1
            n_plain_chars += length
    if not wanted:
        return
    row[2] = n_plain
    if n_plain:
        row[3] = n_plain_chars / n_plain
    row[8] = n_alpha / max(starts.size, 1)
    row[9] = 0
    while seen:
        seen &= seen - 1
        row[9] += 1


@njit(nogil=True, cache=True)
def _signals(
    data: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    doc_starts: NDArray[np.int64],
    flags: NDArray[np.uint16],
    line_signals: bool,
    word_signals: bool,
    grams: bool,
    dclm_grams: bool,
    n_signals: int,
) -> NDArray[np.float64]:
    n_docs = offsets.size - 1
    out = np.full((n_docs, n_signals), np.nan)
    longest, most_words = 0, 0
    for doc in range(n_docs):
        longest = max(longest, offsets[doc + 1] - offsets[doc])
        most_words = max(most_words, doc_starts[doc + 1] - doc_starts[doc])
    room = repeats.scratch(longest, most_words)
    for doc in range(n_docs):
        at, end, row = offsets[doc], offsets[doc + 1], out[doc]
        word_starts = starts[doc_starts[doc] : doc_starts[doc + 1]]
        word_ends = ends[doc_starts[doc] : doc_starts[doc + 1]]
        n_words = word_starts.size
        n_chars, n_hashes, n_ellipses, n_newlines = _characters(data, at, end, flags, row[28:])
        row[0] = n_chars
        row[1] = n_words
        row[4] = n_hashes / max(n_words, 1)
        row[5] = n_ellipses / max(n_words, 1)
        row[27] = n_newlines / max(n_words, 1)
        if line_signals or word_signals or grams or dclm_grams:
            repeats.hash_prefixes(data, at, end, room.prefix)
        if line_signals:
            n_lines, n_bullets, n_ellipsis_lines = marked_lines(data, at, end, flags)
            row[6], row[7] = n_bullets / max(n_lines, 1), n_ellipsis_lines / max(n_lines, 1)
            _lines(data, at, end, flags, n_chars, n_newlines, room, row)
        if word_signals or grams or dclm_grams:
            n_distinct = repeats.word_ids(data, at, word_starts, word_ends, room)
            _words(data, word_starts, word_ends, n_distinct, flags, room, row, word_signals)
        if grams:
            repeats.top_grams(n_words, n_chars, room, row[14:])
            repeats.repeated_grams(data, at, word_starts, word_ends, n_chars, room, row[17:])
        if dclm_grams:
            repeats.dclm_grams(n_words, ALNUM, room, row[39:])
    return out
