"""Words of a whole batch as spaCy's English tokenizer cuts them, in one numba pass over its UTF-8 buffers; no GIL.

A batch is what an Arrow `large_string` array holds: `data` uint8, the documents' valid UTF-8 one after the other, and
`offsets` int64[n_docs + 1]. `split` gives what `spacy.blank("en")` gives less the tokens of white space, which is what
datatrove's quality filters count (`split_into_words`); the rules are those of spaCy 3.8's `Tokenizer`, stated here anew:

1. White space cuts a document into chunks, and each is cut for itself. One that is a special case ("don't", ":-)") has its
   own cut.
2. Else a prefix and a suffix (one mark, an ellipsis, a currency, "'s", the unit after a number, ...) are taken off as long
   as there are any; what remains may be a special case after each step.
3. The core is one word if it looks like a URL, an e-mail address or a host. Else infixes (ellipses, icons, hyphens, a full
   stop between lower and upper case, ...) cut it.
4. Special cases whose parts have come out as words of their own are put together: ")" after ":" is ":)" again. Of
   occurrences that overlap, the longest and then the first is taken. Occurrences with a space between their words are not
   put together, but they do shut out what they overlap.

A chunk costs time in proportion to its length; spaCy's regular expressions cost the square of it on a run of marks.
datatrove differs in one string: from the second time on that a process meets the word "IS_ALPHA", an error in spaCy makes it
strike that out of the text.

Character classes and special cases are in `kernels.words_english`; what is a digit, a word character or white space comes
from Python's own Unicode tables, as in spaCy's regular expressions.
"""

import functools
import itertools
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numba import int64, njit, uint64
from numpy.typing import NDArray

from kernels import words_english
from kernels.hashing import FNV_OFFSET, fnv1a, mix64
from kernels.memory import grown, pointer
from kernels.text import next_code_point

N_CODE_POINTS = 0x110000
SPACE, ALPHA, LOWER, UPPER = np.uint16(1), np.uint16(2), np.uint16(4), np.uint16(8)
QUOTE, ICON, PREFIX, SUFFIX = np.uint16(16), np.uint16(32), np.uint16(64), np.uint16(128)
BEFORE_DOT, UNIT_END, INFIX = np.uint16(256), np.uint16(512), np.uint16(1024)
HOST, WORD, DIGIT = np.uint16(2048), np.uint16(4096), np.uint16(8192)
"""Classes of code points. PREFIX and SUFFIX: a mark that is taken off by itself. BEFORE_DOT: a full stop after it is a
suffix. UNIT_END: a unit or currency can end with it. INFIX: an infix can begin with it. HOST: a host's name holds it.
WORD and DIGIT are \\w and \\d."""
BLANK, LETTER, MARK, LEAD = np.uint8(1), np.uint8(2), np.uint8(3), np.uint8(4)
"""Classes of bytes: white space; an ASCII letter; a mark that a plain word can end with; what white space of several bytes
can begin with."""
SPECIAL, SECOND, UNIT = np.uint8(1), np.uint8(2), np.uint8(4)
"""Kinds of known strings: special cases; words that come second in the parts of one; units and currencies."""
_FILTER_BITS = 16
_HASH, _DOLLAR, _APOSTROPHE, _STAR, _PLUS, _COMMA, _DASH, _DOT, _SLASH = (ord(char) for char in "#$'*+,-./")
_COLON, _LESS, _GREATER, _QUESTION, _AT, _CARET, _UNDERSCORE, _TILDE = (ord(char) for char in ":<>?@^_~")
_A, _C, _F, _K, _S, _U, _SMALL_A, _SMALL_S = (ord(char) for char in "ACFKSUas")
_DEGREE, _EN_DASH, _EM_DASH, _CLOSING_QUOTE, _ELLIPSIS = (ord(char) for char in "°–—’…")
_FOREIGN = 10
"""The value of a digit that is not an ASCII one; the numbers of an address are told in base 11."""
_NETS = ("10", "127", "168", "169", "172", "192", "254")
_10, _127, _168, _169, _172, _192, _254 = (int(number, 11) for number in _NETS)


class Tables(NamedTuple):
    """The rules as arrays. A known string is a special case, a part of one or a unit; it has a number."""

    classes: NDArray[np.uint16]  # [N_CODE_POINTS]
    bytes: NDArray[np.uint8]  # [256]
    second_bytes: NDArray[np.uint8]  # [256]: whether a SECOND string begins with it
    filter: NDArray[np.uint64]  # [2^_FILTER_BITS / 64]: a bit by hash, unset for most of what is unknown
    slots: NDArray[np.int32]  # [a power of two]: a known string by hash, or -1; open addressing
    text: NDArray[np.uint8]  # the known strings' bytes
    text_at: NDArray[np.int32]  # [n_strings + 1]
    kinds: NDArray[np.uint8]  # [n_strings]
    pieces: NDArray[np.uint8]  # bytes of every special case's pieces
    piece_second: NDArray[np.uint8]  # the same: whether the piece is SECOND
    piece_at: NDArray[np.int32]  # [n_strings + 1]
    parts: NDArray[np.int16]  # [n_strings]: columns of `edges`, or -1
    edges: NDArray[np.int16]  # [n_nodes, n_parts]: the trie of special cases' parts; -1: no edge
    complete: NDArray[np.int32]  # [n_nodes]: the special case whose parts end here, or -1
    unchanged: NDArray[np.uint8]  # [n_nodes]: whether that case's pieces are its parts
    longest: int  # bytes of the longest known string


class _Rules(NamedTuple):
    """`Tables` as pointers, see `pointer`."""

    classes: NDArray[np.uint16]
    bytes: NDArray[np.uint8]
    second_bytes: NDArray[np.uint8]
    filter: NDArray[np.uint64]
    slots: NDArray[np.int32]
    mask: int  # a slot and this is one in bounds
    text: NDArray[np.uint8]
    text_at: NDArray[np.int32]
    kinds: NDArray[np.uint8]
    pieces: NDArray[np.uint8]
    piece_second: NDArray[np.uint8]
    piece_at: NDArray[np.int32]
    parts: NDArray[np.int16]
    edges: NDArray[np.int16]
    n_parts: int
    complete: NDArray[np.int32]
    unchanged: NDArray[np.uint8]
    longest: int


class _Out(NamedTuple):
    """Where words go, as pointers; there is room for as many words as the document at hand has bytes."""

    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    marks: NDArray[np.int64]  # the document's words that are SECOND


def split(
    data: NDArray[np.uint8], offsets: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Byte spans of every document's words in their order: starts[n_words], ends[n_words] (positions in `data`), and where
    each document's words begin, doc_starts[n_docs + 1]; int64.
    """
    return _split(_read_only(data), offsets, tables())


def split_whitespace(
    data: NDArray[np.uint8], offsets: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """The same of words as `str.split` gives them."""
    return _split_whitespace(_read_only(data), offsets, _classes(), _byte_classes())


def _read_only(data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A view such as Arrow's buffers give: numba would compile all of this a second time for arrays that can be written."""
    view = data.view()
    view.flags.writeable = False
    return view


@functools.cache
def tables() -> Tables:
    """The rules of English. The parts of special cases are what the rules make of them without special cases."""
    cases = words_english.special_cases()
    encoded = [case.encode() for case in cases]
    data = b"".join(encoded)
    offsets = np.cumsum([0] + [len(case) for case in encoded])
    starts, ends, doc_starts = _split(np.frombuffer(data, np.uint8), offsets, _tables({}, {}))
    words = [data[a:b].decode() for a, b in zip(starts, ends, strict=True)]
    parts = {
        case: tuple(words[a:b])
        for case, (a, b) in zip(cases, itertools.pairwise(doc_starts), strict=True)
        if b - a > 1
    }
    return _tables(cases, parts)


@functools.cache
def _classes() -> NDArray[np.uint16]:
    chars = np.arange(N_CODE_POINTS, dtype=np.uint32).view("<U1")
    out = SPACE * np.strings.isspace(chars).astype(np.uint16)
    out |= WORD * np.strings.isalnum(chars).astype(np.uint16)
    out |= DIGIT * np.strings.isdecimal(chars).astype(np.uint16)
    english = words_english
    for ranges, flags in (
        (english.CASELESS, ALPHA | LOWER | UPPER),
        (english.LOWER, ALPHA | LOWER),
        (english.UPPER, ALPHA | UPPER),
        (english.TITLE, ALPHA),
        (english.ICONS, ICON),
    ):
        out[list(english.code_points(ranges))] |= flags

    def add(chars: Iterable[str], flag: np.uint16) -> None:
        out[[ord(char) for char in chars]] |= flag

    marks = english.PUNCTUATION + english.QUOTES + english.DASHES
    add(marks + english.CURRENCY + "§%=", PREFIX)
    add(marks, SUFFIX)
    add("…", ICON)
    out[out & ICON > 0] |= PREFIX | SUFFIX | INFIX
    add(english.QUOTES, QUOTE)
    add("0123456789%²-+|" + english.PUNCTUATION + english.QUOTES, BEFORE_DOT)
    out[out & LOWER > 0] |= BEFORE_DOT
    add({unit[-1] for unit in english.UNITS} | {*english.CURRENCY, "+"}, UNIT_END)
    add(".,+-*^:<>=/~" + english.DASHES, INFIX)
    add("_", WORD)
    add("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789", HOST)
    out[0xA1:0x10000] |= HOST
    return out


@functools.cache
def _byte_classes() -> NDArray[np.uint8]:
    out, classes = np.zeros(256, np.uint8), _classes()
    out[:128][classes[:128] & SPACE > 0] = BLANK
    out[:128][classes[:128] & ALPHA > 0] = LETTER
    out[list(b".,;:!?)\"'")] = MARK
    out[[chr(point).encode()[0] for point in np.nonzero(classes & SPACE)[0] if point >= 128]] = LEAD
    return out


def _tables(cases: dict[str, tuple[str, ...]], parts: dict[str, tuple[str, ...]]) -> Tables:
    """The rules with these special cases and with these parts of those that have several."""
    units = {*words_english.UNITS, *words_english.CURRENCY, *words_english.DOLLARS, "+"}
    seconds = {words[1] for words in parts.values()}
    columns = {word: k for k, word in enumerate(sorted({word for words in parts.values() for word in words}))}
    known = sorted({*cases, *columns, *units})
    numbers = {word: k for k, word in enumerate(known)}
    encoded = [word.encode() for word in known]
    kinds = np.array(
        [SPECIAL * (w in cases) | SECOND * (w in seconds) | UNIT * (w in units) for w in known], np.uint8
    )
    pieces = [piece for word in known for piece in cases.get(word, ())]
    # The trie: node 0 is the root.
    nodes: dict[tuple[str, ...], int] = {(): 0}
    for words in parts.values():
        for n in range(1, len(words) + 1):
            nodes.setdefault(words[:n], len(nodes))
    edges = np.full((len(nodes), max(len(columns), 1)), -1, np.int16)
    for path, node in nodes.items():
        if path:
            edges[nodes[path[:-1]], columns[path[-1]]] = node
    complete, unchanged = np.full(len(nodes), -1, np.int32), np.zeros(len(nodes), np.uint8)
    for case, words in parts.items():
        complete[nodes[words]] = numbers[case]
        unchanged[nodes[words]] = cases[case] == words
    hashes = [_hash_of(np.frombuffer(word, np.uint8)) for word in encoded]
    bits = np.zeros(1 << _FILTER_BITS, np.uint8)
    slots = np.full(1 << (2 * len(known)).bit_length(), -1, np.int32)
    for k, value in enumerate(hashes):
        bits[value >> (64 - _FILTER_BITS)] = 1
        slot = value & (slots.size - 1)
        while slots[slot] >= 0:
            slot = (slot + 1) & (slots.size - 1)
        slots[slot] = k
    second_bytes = np.zeros(256, np.uint8)
    second_bytes[[word.encode()[0] for word in seconds]] = 1
    return Tables(
        _classes(),
        _byte_classes(),
        second_bytes,
        np.packbits(bits, bitorder="little").view("<u8").astype(np.uint64),
        slots,
        np.frombuffer(b"".join(encoded), np.uint8).copy(),
        np.cumsum([0] + [len(word) for word in encoded], dtype=np.int32),
        kinds,
        np.array([len(piece.encode()) for piece in pieces], np.uint8),
        np.array([piece in seconds for piece in pieces], np.uint8),
        np.cumsum([0] + [len(cases.get(word, ())) for word in known], dtype=np.int32),
        np.array([columns.get(word, -1) for word in known], np.int16),
        edges,
        complete,
        unchanged,
        max(map(len, encoded)),
    )


@njit(forceinline=True)
def _code_point(data: NDArray[np.uint8], at: int) -> tuple[int, int]:
    """The code point whose first byte is at `at`, and where the next one begins."""
    point, after = next_code_point(data, at)
    return int(point), after


@njit(forceinline=True)
def _rules(t: Tables) -> _Rules:
    return _Rules(
        pointer(t.classes),
        pointer(t.bytes),
        pointer(t.second_bytes),
        pointer(t.filter),
        pointer(t.slots),
        t.slots.size - 1,
        pointer(t.text),
        pointer(t.text_at),
        pointer(t.kinds),
        pointer(t.pieces),
        pointer(t.piece_second),
        pointer(t.piece_at),
        pointer(t.parts),
        pointer(t.edges),
        t.edges.shape[1],
        pointer(t.complete),
        pointer(t.unchanged),
        t.longest,
    )


@njit(nogil=True, cache=True)
def _hash(data: NDArray[np.uint8], at: int, end: int) -> np.uint64:
    state = FNV_OFFSET
    for k in range(at, end):
        state = fnv1a(state, uint64(data[k]))
    return mix64(state)


@njit(cache=True)
def _hash_of(text: NDArray[np.uint8]) -> np.uint64:
    return _hash(pointer(text), 0, text.size)


@njit(forceinline=True)
def _lookup(t: _Rules, data: NDArray[np.uint8], at: int, end: int, value: np.uint64) -> int:
    """The number of the known string that data[at:end] is, or -1; `value` is its hash."""
    if not t.filter[np.int64(value >> uint64(70 - _FILTER_BITS))] >> (
        (value >> uint64(64 - _FILTER_BITS)) & uint64(63)
    ) & uint64(1):
        return -1
    slot = np.int64(value & uint64(t.mask))
    found = -1
    while t.slots[slot] >= 0 and found < 0:
        k = int(t.slots[slot])
        first, size = t.text_at[k], t.text_at[k + 1] - t.text_at[k]
        if size == end - at:
            same = 0
            while same < size and t.text[first + same] == data[at + same]:
                same += 1
            if same == size:
                found = k
        slot = (slot + 1) & t.mask
    return found


@njit(nogil=True, cache=True)
def _known(t: _Rules, data: NDArray[np.uint8], at: int, end: int) -> int:
    """The number of the known string that data[at:end] is, or -1."""
    if end - at > t.longest or end <= at:
        return -1
    return _lookup(t, data, at, end, _hash(data, at, end))


@njit(nogil=True, cache=True)
def _special(t: _Rules, data: NDArray[np.uint8], at: int, end: int) -> int:
    """The same of special cases."""
    found = _known(t, data, at, end)
    return found if found >= 0 and t.kinds[found] & SPECIAL else -1


@njit(forceinline=True)
def _previous(data: NDArray[np.uint8], at: int) -> int:
    """Where the code point before `at` begins."""
    at -= 1
    while data[at] & 0xC0 == 0x80:
        at -= 1
    return at


@njit(forceinline=True)
def _is_digit(byte: int) -> bool:
    return 48 <= byte <= 57


@njit(nogil=True, cache=True)
def _prefix(t: _Rules, data: NDArray[np.uint8], at: int, end: int) -> int:
    """Bytes of the prefix to take off data[at:end], 0 for none."""
    point, after = _code_point(data, at)
    if t.classes[point] & PREFIX:
        return after - at
    if point == _DOT:
        while after < end and data[after] == _DOT:
            after += 1
        return after - at if after - at > 1 else 0
    if point == _PLUS:
        return 0 if after < end and _is_digit(data[after]) else 1
    if after < end and (point in (_C, _A)) and data[after] == _DOLLAR:
        return 2
    if after + 1 < end and point == _U and data[after] == _S and data[after + 1] == _DOLLAR:
        return 3
    return 0


@njit(nogil=True, cache=True)
def _suffix(t: _Rules, data: NDArray[np.uint8], at: int, end: int) -> int:
    """Bytes of the suffix to take off data[at:end], 0 for none: the longest there is. Nothing before `at` counts."""
    if at >= end:
        return 0
    last = _previous(data, end)
    point, _ = _code_point(data, last)
    if point == _DOT:
        first = last
        while first > at and data[first - 1] == _DOT:
            first -= 1
        if first < last:
            return end - first
        if first == at:
            return 0
        before = _previous(data, first)
        point, _ = _code_point(data, before)
        if t.classes[point] & BEFORE_DOT:
            return 1
        if before > at:
            other, _ = _code_point(data, _previous(data, before))
            if t.classes[point] & UPPER and t.classes[other] & UPPER:
                return 1
            if other == _DEGREE and (point in (_C, _F, _K)):
                return 1
        return 0
    flags = t.classes[point]
    size = 0
    if flags & SUFFIX:
        size = end - last
        if point == _ELLIPSIS and last > at:  # two are one suffix
            before = _previous(data, last)
            other, _ = _code_point(data, before)
            if other == point:
                size = end - before
    elif (point in (_SMALL_S, _S)) and last > at:
        before = _previous(data, last)
        other, _ = _code_point(data, before)
        if other in (_APOSTROPHE, _CLOSING_QUOTE):
            size = end - before
    if flags & UNIT_END:
        # No unit has a digit in it, so only what follows the last digit can be one; the longest has 5 code points.
        first = end
        for _ in range(6):
            if first > at and not _is_digit(data[first - 1]):
                first = _previous(data, first)
        if first > at and first < end and _is_digit(data[first - 1]) and end - first > size:
            found = _known(t, data, first, end)
            if found >= 0 and t.kinds[found] & UNIT:
                size = end - first
    return size


@njit(nogil=True, cache=True)
def _is_rest(t: _Rules, data: NDArray[np.uint8], at: int, end: int) -> bool:
    """Whether data[at:end] is what may follow a host: a port, a path, both or nothing."""
    if at < end and data[at] == _COLON:
        at += 1
        n_digits = 0
        while at < end:
            point, after = _code_point(data, at)
            if not t.classes[point] & DIGIT:
                break
            n_digits += 1
            at = after
        if n_digits < 2 or n_digits > 5:
            return False
    return at == end or data[at] == _SLASH or data[at] == _QUESTION or data[at] == _HASH


@njit(nogil=True, cache=True)
def _is_address(t: _Rules, data: NDArray[np.uint8], at: int, end: int) -> bool:
    """Whether data[at:end] is an IPv4 address that is neither private nor reserved, and what may follow a host.

    A digit may be of any script where any digit may stand, but the bounds of the numbers are told by ASCII ones.
    """
    first = second = 0
    for k in range(4):
        n = number = d0 = d1 = d2 = 0
        while at < end and n < 4:
            point, after = _code_point(data, at)
            if not t.classes[point] & DIGIT:
                break
            d0, d1, d2 = d1, d2, point - 48 if point < 128 else _FOREIGN
            number = number * 11 + d2
            n += 1
            at = after
        if n == 1 or n == 2:
            lead = d2 if n == 1 else d1
            fits = k == 1 or k == 2 or 1 <= lead <= 9
        elif k == 0:  # to 223
            fits = n == 3 and (d0 == 1 or (d0 == 2 and (d1 < 2 or (d1 == 2 and d2 < 4))))
        else:  # to 255, the last one to 254
            fits = n == 3 and (d0 == 1 or (d0 == 2 and (d1 < 5 or (d1 == 5 and d2 < 6 - (k == 3)))))
        if not fits:
            return False
        if k == 0:
            first = number
        elif k == 1:
            second = number
            if first == _172 and n == 2 and (d1 == 2 or (d1 == 1 and 6 <= d2 <= 9) or (d1 == 3 and d2 < 2)):
                return False
        if k < 3:
            if at == end or data[at] != _DOT:
                return False
            at += 1
    if first in (_10, _127) or (first == _169 and second == _254) or (first == _192 and second == _168):
        return False
    return _is_rest(t, data, at, end)


@njit(nogil=True, cache=True)
def _is_host(t: _Rules, data: NDArray[np.uint8], at: int, end: int) -> bool:
    """Whether data[at:end] is labels with a full stop after each, letters in lower case, and what may follow a host.

    A label has up to 64 characters, "-" and "_" not at its ends.
    """
    n_labels = 0
    while True:
        begin, size = at, 0
        first_fits = last_fits = False
        while at < end:
            point, after = _code_point(data, at)
            fits = (t.classes[point] & HOST) > 0
            if not fits and point != _DASH and point != _UNDERSCORE:
                break
            first_fits = fits if size == 0 else first_fits
            last_fits = fits
            size += 1
            at = after
        if at == end or data[at] != _DOT:
            at = begin
            break
        if size > 64 or not first_fits or not last_fits:
            return False
        n_labels += 1
        at += 1
    size = 0
    while at < end:
        point, after = _code_point(data, at)
        if not t.classes[point] & LOWER:
            break
        size += 1
        at = after
    return n_labels > 0 and 2 <= size <= 63 and _is_rest(t, data, at, end)


@njit(nogil=True, cache=True)
def _is_url(t: _Rules, data: NDArray[np.uint8], at: int, end: int) -> bool:
    """Whether data[at:end] is a host or address, perhaps after a scheme or after anything that ends with "@"."""
    dot = at
    while dot < end and data[dot] != _DOT:
        dot += 1
    if dot == end:
        return False
    if _is_host(t, data, at, end) or _is_address(t, data, at, end):
        return True
    k, size = at, 0
    while k < end:
        point, after = _code_point(data, k)
        if not t.classes[point] & WORD and point != _PLUS and point != _DASH and point != _DOT:
            break
        size += 1
        k = after
    if size > 1 and k + 2 < end and data[k] == _COLON and data[k + 1] == _SLASH and data[k + 2] == _SLASH:
        k += 3
        if _is_host(t, data, k, end) or _is_address(t, data, k, end):
            return True
    for k in range(at + 1, end):
        if data[k] == _AT and (_is_host(t, data, k + 1, end) or _is_address(t, data, k + 1, end)):
            return True
    return False


@njit(forceinline=True)
def _has(t: _Rules, data: NDArray[np.uint8], at: int, end: int, flag: np.uint16) -> bool:
    """Whether a code point of this class is at `at`."""
    if at >= end:
        return False
    point, _ = _code_point(data, at)
    return (t.classes[point] & flag) > 0


@njit(nogil=True, cache=True)
def _infix(t: _Rules, data: NDArray[np.uint8], at: int, end: int, before: int, point: int, after: int) -> int:
    """Bytes of the infix at `at`, 0 for none: `before` is the code point in front (0: none), `point` the one there."""
    flags = t.classes[point]
    if flags & ICON:
        return after - at
    left = t.classes[before]
    left_digit = _is_digit(before)
    if point == _DOT:
        k = after
        while k < end and data[k] == _DOT:
            k += 1
        if k - at > 1:
            return k - at
        return 1 if left & (LOWER | QUOTE) and _has(t, data, after, end, UPPER | QUOTE) else 0
    operator = point in (_PLUS, _DASH, _STAR, _CARET)
    if operator and left_digit and after < end and (_is_digit(data[after]) or data[after] == _DASH):
        return 1
    if point == _COMMA:
        return 1 if left & ALPHA and _has(t, data, after, end, ALPHA) else 0
    if not left & ALPHA and not left_digit:
        return 0
    if point in (_COLON, _SLASH) or _LESS <= point <= _GREATER:
        return 1 if _has(t, data, after, end, ALPHA) else 0
    if point in (_DASH, _EN_DASH, _EM_DASH, _TILDE):
        # Hyphens: up to three dashes or two em dashes.
        most = 3 if point == _DASH else (2 if point == _EM_DASH else 1)
        for _ in range(most):
            if _has(t, data, after, end, ALPHA):
                return after - at
            if after >= end:
                return 0
            following, k = _code_point(data, after)
            if following != point:
                return 0
            after = k
    return 0


@njit(nogil=True, cache=True)
def _emit(
    t: _Rules, data: NDArray[np.uint8], out: _Out, n: int, m: int, at: int, end: int
) -> tuple[int, int]:
    """Write a word; `n` and `m` count words and marks."""
    out.starts[n], out.ends[n] = at, end
    if t.second_bytes[data[at]]:
        found = _known(t, data, at, end)
        if found >= 0 and t.kinds[found] & SECOND:
            out.marks[m] = n
            m += 1
    return n + 1, m


@njit(nogil=True, cache=True)
def _emit_special(t: _Rules, out: _Out, n: int, m: int, at: int, case: int) -> tuple[int, int]:
    """Write a special case's pieces."""
    for k in range(t.piece_at[case], t.piece_at[case + 1]):
        out.starts[n] = at
        at += int(t.pieces[k])
        out.ends[n] = at
        if t.piece_second[k]:
            out.marks[m] = n
            m += 1
        n += 1
    return n, m


@njit(nogil=True, cache=True)
def _chunk(
    t: _Rules,
    data: NDArray[np.uint8],
    out: _Out,
    suffixes: NDArray[np.int64],
    n: int,
    m: int,
    at: int,
    end: int,
) -> tuple[int, int]:
    """Write the words of data[at:end], which has no white space. `suffixes` has room for a number per byte of it."""
    n_suffixes, full_end = 0, end
    case = -1
    while at < end:
        case = _special(t, data, at, end)
        if case >= 0:
            break
        prefix = _prefix(t, data, at, end)
        if prefix:
            case = _special(t, data, at + prefix, end)
            if case >= 0:
                n, m = _emit(t, data, out, n, m, at, at + prefix)
                at += prefix
                break
        suffix = _suffix(t, data, at + prefix, end)
        if suffix:
            case = _special(t, data, at, end - suffix)
            if case >= 0:
                end -= suffix
                suffixes[n_suffixes] = end
                n_suffixes += 1
                break
        if not prefix and not suffix:
            break
        if prefix:
            n, m = _emit(t, data, out, n, m, at, at + prefix)
            at += prefix
        if suffix:
            end -= suffix
            suffixes[n_suffixes] = end
            n_suffixes += 1
    if case >= 0:
        n, m = _emit_special(t, out, n, m, at, case)
    elif at < end:
        if not _is_url(t, data, at, end):
            before: Any = int64(0)
            first = k = at
            while k < end:
                point, after = _code_point(data, k)
                if t.classes[point] & INFIX:
                    size = _infix(t, data, k, end, before, point, after)
                    if size:
                        after = k + size
                        if k > first:
                            n, m = _emit(t, data, out, n, m, first, k)
                        if k > at:  # an infix at the very beginning cuts nothing
                            n, m = _emit(t, data, out, n, m, k, after)
                            first = after
                        if size > 1:
                            point, _ = _code_point(data, _previous(data, after))
                before = point
                k = after
            at = first
        if at < end:
            n, m = _emit(t, data, out, n, m, at, end)
    while n_suffixes > 0:
        n_suffixes -= 1
        at = suffixes[n_suffixes]
        n, m = _emit(t, data, out, n, m, at, suffixes[n_suffixes - 1] if n_suffixes > 0 else full_end)
    return n, m


@njit(forceinline=True)
def _adjacent(data: NDArray[np.uint8], out: _Out, left: int) -> bool:
    """Whether nothing or one space is between a word and the next: more white space counts as a word."""
    gap = out.starts[left + 1] - out.ends[left]
    return gap == 0 or (gap == 1 and data[out.ends[left]] == 32)


@njit(nogil=True, cache=True)
def _copied(values: NDArray[np.int64], first: int, end: int) -> NDArray[np.int64]:
    """Elements `first` to `end` behind a pointer."""
    out = np.empty(end - first, np.int64)
    for k in range(end - first):
        out[k] = values[first + k]
    return out


@njit(nogil=True, cache=True)
def _join(t: _Rules, data: NDArray[np.uint8], out: _Out, begin: int, n: int, n_marks: int) -> int:
    """Put special cases together whose parts are words of the document; `begin` is its first word. Returns the new `n`.

    No case has one part, so each occurrence is found from its second word.
    """
    at, length, node = np.empty(16, np.int64), np.empty(16, np.int64), np.empty(16, np.int64)
    n_found = 0
    for k in range(n_marks):
        first = out.marks[k] - 1
        if first < begin or not _adjacent(data, out, first):
            continue
        state, word = 0, first
        while True:
            known = _known(t, data, out.starts[word], out.ends[word])
            if known < 0 or t.parts[known] < 0:
                break
            state = int(t.edges[state * t.n_parts + t.parts[known]])
            if state < 0:
                break
            if t.complete[state] >= 0:
                if n_found == at.size:
                    at = np.append(at, np.empty_like(at))
                    length = np.append(length, np.empty_like(length))
                    node = np.append(node, np.empty_like(node))
                at[n_found], length[n_found], node[n_found] = first, word - first + 1, state
                n_found += 1
            word += 1
            if word >= n or not _adjacent(data, out, word - 1):
                break
    if n_found == 0:
        return n
    # Found in the order of their first words. Those that overlap, at one remove or several, are settled together: in the
    # order of preference each is taken if its first and last word are free, and taken or not it occupies all its words.
    taken = np.zeros(n_found, np.bool_)
    low = 0
    while low < n_found:
        high, reach, most = low, at[low] + length[low], np.int64(0)
        while high < n_found and at[high] < reach:
            reach = max(reach, at[high] + length[high])
            most = max(most, length[high])
            high += 1
        if high - low == 1:
            taken[low] = True
        else:
            occupied = np.zeros(reach - at[low], np.bool_)
            for size in range(most, 0, -1):
                for k in range(low, high):
                    if length[k] == size:
                        first = at[k] - at[low]
                        taken[k] = not occupied[first] and not occupied[first + size - 1]
                        occupied[first : first + size] = True
        low = high
    changed = 0
    for k in range(n_found):
        if taken[k]:
            together = not t.unchanged[node[k]]
            for word in range(at[k], at[k] + length[k] - 1):
                together &= out.starts[word + 1] == out.ends[word]
            taken[k] = together
            changed += together
    if changed == 0:
        return n
    low = 0
    while not taken[low]:
        low += 1
    word = at[low]
    no_mark: Any = int64(0)
    old_starts, old_ends = _copied(out.starts, word, n), _copied(out.ends, word, n)
    origin, to = word, word
    for k in range(low, n_found):
        if taken[k]:
            while word < at[k]:
                out.starts[to], out.ends[to] = old_starts[word - origin], old_ends[word - origin]
                word += 1
                to += 1
            case = int(t.complete[node[k]])
            to, _ = _emit_special(t, out, to, no_mark, old_starts[word - origin], case)
            word += length[k]
    while word < n:
        out.starts[to], out.ends[to] = old_starts[word - origin], old_ends[word - origin]
        word += 1
        to += 1
    return to


@njit(nogil=True, cache=True)
def _split(
    text: NDArray[np.uint8], offsets: NDArray[np.int64], t: Tables
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    n_docs = offsets.size - 1
    doc_starts = np.zeros(n_docs + 1, np.int64)
    longest = np.int64(0)
    for doc in range(n_docs):
        longest = max(longest, offsets[doc + 1] - offsets[doc])
    # Only what is written costs memory. Arrays are made anew between documents, not between words: to count references there
    # would cost more than the words do. Every pointer is taken in this loop, whose next round keeps its array alive.
    suffixes, marks = np.empty(longest, np.int64), np.empty(longest, np.int64)
    room = (offsets[n_docs] - offsets[0]) // 4 + longest
    starts, ends = np.empty(room, np.int64), np.empty(room, np.int64)
    data, rules = pointer(text), _rules(t)
    n: Any = int64(0)  # a plain 0 is a type of its own, for which numba would compile all of this once more
    for doc in range(n_docs):
        if n + offsets[doc + 1] - offsets[doc] > room:
            room = 2 * room + longest
            starts, ends = grown(starts, n, room), grown(ends, n, room)
        out = _Out(pointer(starts), pointer(ends), pointer(marks))
        n = _document(rules, data, out, pointer(suffixes), n, offsets[doc], offsets[doc + 1])
        doc_starts[doc + 1] = n
    return starts[:n], ends[:n], doc_starts


@njit(nogil=True, cache=True)
def _document(
    t: _Rules, data: NDArray[np.uint8], out: _Out, suffixes: NDArray[np.int64], n: int, at: int, end: int
) -> int:
    """Write the words of the document data[at:end]; `n` counts words."""
    m: Any = int64(0)
    begin = n
    while at < end:
        kind = t.bytes[data[at]]
        if kind == BLANK:
            at += 1
            continue
        first, state = at, FNV_OFFSET
        while kind == LETTER:
            state = fnv1a(state, uint64(data[at]))
            at += 1
            kind = t.bytes[data[at]] if at < end else BLANK
        # Letters alone, or letters and one mark, are a word or a special case, and a suffix. Whether a full stop is one
        # depends on the two letters before.
        plain = kind == BLANK
        if kind == MARK and at > first and (at + 1 == end or t.bytes[data[at + 1]] == BLANK):
            plain = (
                data[at] != _DOT or data[at - 1] >= _SMALL_A or (at - first > 1 and data[at - 2] < _SMALL_A)
            )
            plain = plain and _special(t, data, first, at + 1) < 0
        if plain:
            known = _lookup(t, data, first, at, mix64(state))
            if known < 0:
                out.starts[n], out.ends[n] = first, at
                n += 1
            elif t.kinds[known] & SPECIAL:
                n, m = _emit_special(t, out, n, m, first, known)
            else:
                n, m = _emit(t, data, out, n, m, first, at)
            if kind == MARK:
                n, m = _emit(t, data, out, n, m, at, at + 1)
            at += 1
            continue
        while at < end:
            kind = t.bytes[data[at]]
            if kind == BLANK:
                break
            if kind == LEAD:
                point, after = _code_point(data, at)
                if t.classes[point] & SPACE:
                    break
                at = after
            else:
                at += 1
        if at > first:
            n, m = _chunk(t, data, out, suffixes, n, m, first, at)
        elif at < end:
            _, at = _code_point(data, at)  # white space of several bytes
    return _join(t, data, out, begin, n, m) if m > 0 else n


@njit(nogil=True, cache=True)
def _split_whitespace(
    text: NDArray[np.uint8], offsets: NDArray[np.int64], classes: NDArray[np.uint16], kinds: NDArray[np.uint8]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    n_docs = offsets.size - 1
    doc_starts = np.zeros(n_docs + 1, np.int64)
    room = (offsets[n_docs] - offsets[0] + n_docs) // 2 + 1
    starts, ends = np.empty(room, np.int64), np.empty(room, np.int64)
    data, class_of, kind_of = pointer(text), pointer(classes), pointer(kinds)
    n = 0
    for doc in range(n_docs):
        at, end = offsets[doc], offsets[doc + 1]
        inside = False
        while at < end:
            kind = kind_of[data[at]]
            blank, after = kind == BLANK, at + 1
            if kind == LEAD:
                point, after = _code_point(data, at)
                blank = (class_of[point] & SPACE) > 0
            if blank:
                if inside:
                    ends[n] = at
                    n += 1
                inside = False
            elif not inside:
                starts[n] = at
                inside = True
            at = after
        if inside:
            ends[n] = end
            n += 1
        doc_starts[doc + 1] = n
    return starts[:n], ends[:n], doc_starts
