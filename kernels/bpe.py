"""Byte pair encoding of a whole batch in one numba pass over its UTF-8 buffers; the GIL is released.

A batch is what an Arrow `large_string` array holds: `data` uint8, the documents' valid UTF-8 one after the other, and
`offsets` int64[n_docs + 1]. A document is cut into pieces that no merge reaches across, and each piece is looked up in a
cache; what is not there is merged as BPE says: the pair of lowest rank first, the leftmost among equals.

Pieces come from one of two splits by Unicode class (`WORDS`, `GPT2`), or, where a whole document is one word, from the
merges themselves (`MERGES`): a symbol here is a character or one of the bytes that spell it, and a place between two symbols
can be cut if no merge has a left part that ends with the one and a right part that begins with the other. Long pieces of all
three are cut at such places too, so that a page of Chinese is not one piece.

The cache is a table of 32-byte entries, open addressing. Up to 15 bytes of a piece are its key themselves, a longer one is
held by hash and compared byte for byte; no result depends on luck. When the table or the store of what is longer than an
entry is full, all is forgotten, so memory is bounded.
"""

from typing import NamedTuple

import numpy as np
from numba import int64, njit, uint64
from numpy.typing import NDArray

from kernels.memory import load64, pointer, trailing_zeros
from kernels.text import next_code_point

N_CODE_POINTS = 0x110000
WORDS, GPT2, MERGES = 0, 1, 2
OTHER, LETTER, NUMBER, SPACE, LINE_END = 0, 1, 2, 3, 4
"""Classes of code points; a line end is a space, too."""
BLANK, META = 0x20, 0x2581
"""A space and "▁", which are the same symbol under `MERGES`."""
NOTHING = np.uint64(0xFFFFFFFFFFFFFFFF)
MAX_CACHED = 1024
"""Bytes: longer pieces are merged every time."""
_SHORT = 15
"""Bytes of a piece that fit into a cache entry's key."""
_UNCUT = 32
"""Bytes of a piece that is not searched for places to cut."""
_FEW = 48
"""Symbols that are merged by search instead of by a heap."""
_K1, _K2 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC4CEB9FE1A85EC53)
_HIGH, _LOW32 = np.uint64(0x8080808080808080), np.uint64(0xFFFFFFFF)


class Cache(NamedTuple):
    """Pieces and their ids. An entry of the table is two words of key and two of ids.

    The key of a short piece is its 15 bytes and its length, that of a longer one a hash and its length. Up to three ids of a
    short piece lie in the entry after their number, else there is where they and a longer piece's bytes begin in the stores.
    """

    table: NDArray[np.uint64]  # [4 * a power of two]
    text: NDArray[np.uint8]  # bytes of the longer pieces
    ids: NDArray[np.uint32]  # ids of those that do not fit into an entry
    used: NDArray[np.int64]  # [3]: entries of the table, of `text` and of `ids`


class Model(NamedTuple):
    """What decides the ids; ids fit into 31 bits, -1 stands for none."""

    style: int  # WORDS, GPT2 or MERGES
    by_bytes: bool  # whether a symbol is a byte (byte-level BPE) rather than a character
    initial: NDArray[np.int32]  # [N_CODE_POINTS], or [256] with `by_bytes`: the id of a symbol
    fallback: NDArray[np.int32]  # [256]: the ids that spell a character without one
    unknown: int  # the id of a character without any
    fuse_unknown: bool
    classes: NDArray[np.uint8]  # [N_CODE_POINTS]
    pairs: NDArray[np.uint64]  # `pair_table` from left id << 32 | right id to rank << 32 | merged id
    joins: NDArray[np.uint64]  # `key_set` of left id << 32 | right id: pairs that some merge reaches across
    ascii_joins: NDArray[np.uint8]  # [128 * 128]: the same by ASCII codes
    cut: bool  # whether pieces may be cut where no merge reaches across
    every_space: bool  # under MERGES: whether a piece begins at every space
    prefix: int  # 1: a document begins with a "▁" of its own, 2: unless it begins with one or a space; 0: it does not
    spaces: NDArray[np.int32]  # [n]: the id of a run of so many spaces, from 2 on, that is a token anywhere
    whole: Cache  # pieces whose id is not left to the merges


class _Tables(NamedTuple):
    """A batch's text and `Model`, as pointers."""

    data: NDArray[np.uint8]
    size: int  # bytes of `data`
    style: int
    by_bytes: bool
    initial: NDArray[np.int32]
    fallback: NDArray[np.int32]
    all_spelled: bool  # whether no id of `fallback` is missing
    unknown: int
    fuse_unknown: bool
    classes: NDArray[np.uint8]
    pairs: NDArray[np.uint64]
    pair_mask: int
    joins: NDArray[np.uint64]
    join_mask: int
    ascii_joins: NDArray[np.uint8]
    every_space: bool
    spaces: NDArray[np.int32]
    longest_space: int


class _Known(NamedTuple):
    """What is read of a `Cache`, as pointers."""

    table: NDArray[np.uint64]
    mask: int  # a position in `table` and this is one in bounds
    text: NDArray[np.uint8]
    ids: NDArray[np.uint32]


def empty_cache(n_bytes: int) -> Cache:
    """A cache of at most `n_bytes`, but never less than some 10 kB: half is the table."""
    entries = 1 << max(n_bytes // 64, 16).bit_length() - 1
    store = max(n_bytes - 32 * entries, 8 * MAX_CACHED)
    table = np.zeros(4 * entries + 7, np.uint64)
    table = table[-table.ctypes.data % 64 // 8 :][: 4 * entries]  # no entry lies across two cache lines
    return Cache(
        table, np.empty(store // 4, np.uint8), np.empty(store * 3 // 16, np.uint32), np.zeros(3, np.int64)
    )


@njit(forceinline=True)
def _word(data: NDArray[np.uint8], size: int, at: int, n: int) -> np.uint64:
    """The next `n` bytes (eight of more) as a uint64, zeros above; `data` has `size` bytes."""
    if at + 8 <= size:
        return load64(data, at) & _keep(n)
    word = uint64(0)
    for k in range(min(n, 8, size - at)):
        word |= uint64(data[at + k]) << uint64(8 * k)
    return word


@njit(forceinline=True)
def _keep(n: int) -> np.uint64:
    """A mask of the low `n` bytes of a word, n >= 0."""
    return ~uint64(0) if n >= 8 else (uint64(1) << uint64(8 * n)) - uint64(1)


@njit(forceinline=True)
def _letters_end(t: _Tables, at: int, end: int) -> int:
    """Where the run of ASCII letters from `at` on ends, eight bytes a step."""
    while at < end:
        word = _word(t.data, t.size, at, 8)
        # The top bit of a byte: set in `above` from "a" on, in `beyond` after "z"; neither carries into the next byte.
        folded = (word | uint64(0x2020202020202020)) & uint64(0x7F7F7F7F7F7F7F7F)
        above, beyond = folded + uint64(0x1F1F1F1F1F1F1F1F), folded + uint64(0x0505050505050505)
        stops = (~above | beyond | word) & _HIGH
        if stops:
            at += trailing_zeros(stops) >> 3
            break
        at += 8
    return min(at, end)


@njit(forceinline=True)
def _pair(pairs: NDArray[np.uint64], mask: int, left: int, right: int) -> np.uint64:
    """rank << 32 | merged id of two ids, or NOTHING."""
    key = uint64(left) << uint64(32) | uint64(right)
    slot = int64((key * _K1) >> uint64(32)) & mask
    while pairs[2 * slot] != key and pairs[2 * slot] != NOTHING:
        slot = (slot + 1) & mask
    return pairs[2 * slot + 1]


@njit(cache=True)
def pair_table(keys: NDArray[np.uint64], values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """An open-addressing hash table, key and value in turn, of uint64[n] each; of equal keys the last counts."""
    entries = 16
    while entries < 2 * keys.size:
        entries *= 2
    table = np.full(2 * entries, NOTHING, np.uint64)
    for k in range(keys.size):
        slot = int64((keys[k] * _K1) >> uint64(32)) & (entries - 1)
        while table[2 * slot] != keys[k] and table[2 * slot] != NOTHING:
            slot = (slot + 1) & (entries - 1)
        table[2 * slot], table[2 * slot + 1] = keys[k], values[k]
    return table


@njit(cache=True)
def key_set(keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """An open-addressing hash set of uint64[n]."""
    entries = 16
    while entries < 2 * keys.size:
        entries *= 2
    table = np.full(entries, NOTHING, np.uint64)
    for k in range(keys.size):
        slot = int64((keys[k] * _K1) >> uint64(32)) & (entries - 1)
        while table[slot] != keys[k] and table[slot] != NOTHING:
            slot = (slot + 1) & (entries - 1)
        table[slot] = keys[k]
    return table


@njit(nogil=True, cache=True)
def may_change(
    data: NDArray[np.uint8], offsets: NDArray[np.int64], classes: NDArray[np.uint8]
) -> NDArray[np.bool_]:
    """Which documents a Unicode normal form may change, by the quick check of Unicode's annex 15: bool[n_docs].

    `classes` uint8[N_CODE_POINTS] are canonical combining classes, 255 for what the form may not allow; ASCII is 0.
    """
    n_docs = offsets.size - 1
    out = np.zeros(n_docs, np.bool_)
    for doc in range(n_docs):
        at, end = offsets[doc], offsets[doc + 1]
        last = np.uint8(0)
        while at < end:
            if at + 8 <= end and not load64(pointer(data), at) & _HIGH:
                at += 8
                last = np.uint8(0)
                continue
            point, at = next_code_point(data, at)
            mark = classes[point]
            if mark == 255 or (mark > 0 and mark < last):
                out[doc] = True
                break
            last = mark
    return out


@njit(forceinline=True)
def _kind(t: _Tables, at: int) -> tuple[int, int]:
    """The class of the character at `at`, and where the next one begins."""
    first = t.data[at]
    if first < 0x80:
        return int64(t.classes[first]), at + 1
    point, after = next_code_point(t.data, at)
    return int64(t.classes[point]), after


@njit(forceinline=True)
def _space_token(t: _Tables, at: int, end: int) -> int:
    """The length of the longest token of nothing but spaces from `at` on, 0 if there is none."""
    run = 0
    while run < t.longest_space and at + run < end and t.data[at + run] == BLANK:
        run += 1
    while run > 0 and t.spaces[run] < 0:
        run -= 1
    return run


@njit(nogil=True, cache=True)
def _blanks_end(t: _Tables, at: int, end: int) -> int:
    """Where the piece of whitespace at `at` ends: `\\s*[\\r\\n]+` (WORDS only), `\\s+(?!\\S)` or `\\s+`."""
    stop, last, line_end = at, at, -1
    while stop < end:
        if stop > at and t.longest_space and t.data[stop] == BLANK and _space_token(t, stop, end):
            return stop  # where another token begins, the text ends
        kind, after = _kind(t, stop)
        if kind < SPACE:
            break
        if kind == LINE_END:
            line_end = after
        last, stop = stop, after
    if line_end > 0 and t.style == WORDS:
        return line_end
    return stop if stop == end or last == at else last


@njit(forceinline=True)
def _split_end(t: _Tables, at: int, end: int) -> int:
    """Where the piece at `at` ends, under WORDS or GPT2."""
    gpt2 = t.style == GPT2
    begin = at
    kind, after = _kind(t, at)
    if t.data[at] == BLANK and after < end:
        following, beyond = _kind(t, after)
        if following in (LETTER, OTHER) or (gpt2 and following == NUMBER):
            begin, kind, after = after, following, beyond
    if kind == LETTER:
        stop = _letters_end(t, begin, end)
        while stop < end and t.data[stop] >= 0x80:
            following, beyond = _kind(t, stop)
            if following != LETTER:
                break
            stop = beyond
            if stop < end and t.data[stop] < 0x80:
                stop = _letters_end(t, stop, end)
        return stop
    if kind >= SPACE:
        return _blanks_end(t, at, end)
    if kind == NUMBER and not gpt2:
        return after
    if gpt2 and begin == at and t.data[at] == 0x27 and after < end:  # 's 't 'm 'd, 're 've 'll
        first = t.data[after]
        if first == 0x73 or first == 0x74 or first == 0x6D or first == 0x64:
            return after + 1
        if after + 1 < end:
            second = t.data[after + 1]
            if ((first == 0x72 or first == 0x76) and second == 0x65) or (first == 0x6C and second == 0x6C):
                return after + 2
    while after < end:
        following, beyond = _kind(t, after)
        if following != kind:
            break
        after = beyond
    return after


@njit(forceinline=True)
def _next_symbol(t: _Tables, at: int) -> tuple[np.int64, int]:
    """The code point at `at`, or with `by_bytes` the byte, and where the next one begins; "▁" under MERGES is a space."""
    if t.data[at] < 0x80 or t.by_bytes:
        return int64(t.data[at]), at + 1
    point, after = next_code_point(t.data, at)
    return int64(BLANK if point == META and t.style == MERGES else point), after


@njit(forceinline=True)
def _edge(t: _Tables, point: np.int64, last: bool) -> int:
    """The symbol that a character begins or (`last`) ends with, -1 where it has none or bytes are missing."""
    symbol = int64(t.initial[point])
    if symbol >= 0 or t.by_bytes or not t.all_spelled:
        return symbol
    byte = point
    if point >= 0x80 and last:
        byte = point & 0x3F | 0x80
    elif point >= 0x10000:
        byte = point >> 18 | 0xF0
    elif point >= 0x800:
        byte = point >> 12 | 0xE0
    elif point >= 0x80:
        byte = point >> 6 | 0xC0
    return int64(t.fallback[byte])


@njit(nogil=True, cache=True)
def _joined_rare(t: _Tables, left: np.int64, right: np.int64) -> bool:
    first, second = _edge(t, left, True), _edge(t, right, False)
    if first < 0 or second < 0:  # unknown: characters around it are fused or overtake it
        return True
    key = uint64(first) << uint64(32) | uint64(second)
    slot = int64((key * _K1) >> uint64(32)) & t.join_mask
    while t.joins[slot] != key and t.joins[slot] != NOTHING:
        slot = (slot + 1) & t.join_mask
    return t.joins[slot] == key


@njit(forceinline=True)
def _joined(t: _Tables, left: np.int64, right: np.int64) -> bool:
    """Whether a merge may reach across these two neighbours: code points, or bytes with `by_bytes`."""
    if left < 0x80 and right < 0x80:
        return t.ascii_joins[left << 7 | right] != 0
    return _joined_rare(t, left, right)


@njit(forceinline=True)
def _is_ascii_letter(point: np.int64) -> np.bool_:
    return 0x61 <= point | 0x20 <= 0x7A


@njit(forceinline=True)
def _merges_end(t: _Tables, at: int, end: int, prefixed: bool) -> int:
    """Where no merge reaches on from the piece at `at`, under MERGES; not between two ASCII letters, to keep words whole."""
    previous = int64(BLANK)
    if not prefixed:
        previous, at = _next_symbol(t, at)
    inside = _is_ascii_letter(previous)
    while at < end:
        symbol, after = _next_symbol(t, at)
        is_letter = _is_ascii_letter(symbol)
        if symbol == BLANK and t.every_space:
            break
        if not (inside and is_letter) and not _joined(t, previous, symbol):
            break
        previous, at, inside = symbol, after, is_letter
        if is_letter:
            at = _letters_end(t, at, end)
            previous = int64(t.data[at - 1])
    return at


@njit(nogil=True, cache=True)
def _long_end(t: _Tables, at: int, end: int) -> int:
    """Where a long piece can be cut: the first place after half of `_UNCUT` that no merge reaches across."""
    previous, stop = _next_symbol(t, at)
    while stop < end:
        symbol, after = _next_symbol(t, stop)
        if stop - at >= _UNCUT // 2 and not _joined(t, previous, symbol):
            break
        previous, stop = symbol, after
    return stop


@njit(nogil=True, cache=True)
def _symbols(t: _Tables, at: int, end: int, prefixed: bool, out: NDArray[np.int32]) -> int:
    """Writes the symbols of a piece into `out`, as Hugging Face does, and returns how many.

    An unknown character waits for the next known one or the end; bytes that spell a character overtake it.
    """
    n = 0
    waiting = False
    if prefixed:
        out[n] = t.initial[BLANK]
        n += 1
    while at < end:
        point, after = _next_symbol(t, at)
        symbol = t.initial[point]
        if symbol >= 0:
            if waiting:
                out[n] = t.unknown
                n += 1
                waiting = False
            out[n] = symbol
            n += 1
        else:
            # "▁" is one symbol and always known under MERGES, so these are the bytes of the character itself.
            spelled = not t.by_bytes
            for k in range(at, after):
                spelled = spelled and t.fallback[t.data[k]] >= 0
            if spelled:
                for k in range(at, after):
                    out[n] = t.fallback[t.data[k]]
                    n += 1
            elif t.unknown >= 0:
                if waiting and not t.fuse_unknown:
                    out[n] = t.unknown
                    n += 1
                waiting = True
        at = after
    if waiting:
        out[n] = t.unknown
        n += 1
    return n


@njit(nogil=True, cache=True)
def _merge_few(
    symbols: NDArray[np.int32], n: int, pairs: NDArray[np.uint64], mask: int, ranks: NDArray[np.uint64]
) -> int:
    """Merges `symbols[:n]` in place and returns how many are left; quadratic, the fastest for few. `ranks` is room."""
    for k in range(n - 1):
        ranks[k] = _pair(pairs, mask, symbols[k], symbols[k + 1])
    while n > 1:
        best, where = NOTHING, 0
        for k in range(n - 1):
            if ranks[k] < best:
                best, where = ranks[k], k
        if best == NOTHING:
            break
        symbols[where] = int64(best & _LOW32)
        n -= 1
        for k in range(where + 1, n):
            symbols[k] = symbols[k + 1]
            ranks[k - 1] = ranks[k]
        if where > 0:
            ranks[where - 1] = _pair(pairs, mask, symbols[where - 1], symbols[where])
        if where < n - 1:
            ranks[where] = _pair(pairs, mask, symbols[where], symbols[where + 1])
    return n


@njit(forceinline=True)
def _push(heap: NDArray[np.uint64], size: int, rank: np.uint64, at: np.uint64) -> int:
    """Adds (rank, position) to a binary heap [.., 2] of `size` with the smallest on top; returns the new size."""
    child = size
    while child > 0:
        parent = (child - 1) // 2
        if heap[parent, 0] < rank or (heap[parent, 0] == rank and heap[parent, 1] < at):
            break
        heap[child, 0], heap[child, 1] = heap[parent, 0], heap[parent, 1]
        child = parent
    heap[child, 0], heap[child, 1] = rank, at
    return size + 1


@njit(forceinline=True)
def _pop(heap: NDArray[np.uint64], size: int) -> int:
    """Removes the top of the heap; returns the new size."""
    size -= 1
    rank, at = heap[size, 0], heap[size, 1]
    parent = 0
    while True:
        child = 2 * parent + 1
        if child >= size:
            break
        if child + 1 < size:
            a, b = heap[child, 0], heap[child + 1, 0]
            if b < a or (b == a and heap[child + 1, 1] < heap[child, 1]):
                child += 1
        if rank < heap[child, 0] or (rank == heap[child, 0] and at < heap[child, 1]):
            break
        heap[parent, 0], heap[parent, 1] = heap[child, 0], heap[child, 1]
        parent = child
    heap[parent, 0], heap[parent, 1] = rank, at
    return size


@njit(nogil=True, cache=True)
def _merge_many(symbols: NDArray[np.int32], n: int, pairs: NDArray[np.uint64], mask: int) -> int:
    """`_merge_few` of any number in n log n: a linked list, and a heap whose stale entries are dropped when they come up."""
    following, before = np.arange(1, n + 1), np.arange(-1, n - 1)
    ranks = np.full(n, NOTHING, np.uint64)  # of the pair that begins here
    heap = np.empty((3 * n, 2), np.uint64)  # a pair for each two neighbours, two more for each merge
    size = 0
    for k in range(n - 1):
        ranks[k] = _pair(pairs, mask, symbols[k], symbols[k + 1])
        if ranks[k] != NOTHING:
            size = _push(heap, size, ranks[k], uint64(k))
    while size > 0:
        rank, at = heap[0, 0], int64(heap[0, 1])
        size = _pop(heap, size)
        if ranks[at] != rank:
            continue
        right = following[at]
        after, left = following[right], before[at]
        symbols[at] = int64(rank & _LOW32)
        symbols[right] = -1
        ranks[right] = ranks[at] = NOTHING
        following[at] = after
        if after < n:
            before[after] = at
            ranks[at] = _pair(pairs, mask, symbols[at], symbols[after])
            if ranks[at] != NOTHING:
                size = _push(heap, size, ranks[at], uint64(at))
        if left >= 0:
            ranks[left] = _pair(pairs, mask, symbols[left], symbols[at])
            if ranks[left] != NOTHING:
                size = _push(heap, size, ranks[left], uint64(left))
    count = 0
    for k in range(n):
        if symbols[k] >= 0:
            symbols[count] = symbols[k]
            count += 1
    return count


@njit(forceinline=True)
def _slot(low: np.uint64, high: np.uint64, mask: int) -> np.int64:
    """Where in a cache's table the search for a key begins."""
    return int64(((low ^ (high * _K1)) * _K2) >> uint64(34)) * 4 & mask


@njit(forceinline=True)
def _short_key(
    data: NDArray[np.uint8], size: int, at: int, n: int, prefixed: bool
) -> tuple[np.uint64, np.uint64]:
    """Both words of the key of a piece of at most `_SHORT` bytes."""
    low, high = uint64(0), uint64(0)
    if at + 16 <= size:
        low = load64(data, at) & _keep(n)
        high = load64(data, at + 8) & _keep(max(n - 8, 0))
    else:
        low = _word(data, size, at, n)
        high = _word(data, size, at + 8, max(n - 8, 0))
    return low, high | uint64(n) << uint64(56) | uint64(prefixed) << uint64(63)


@njit(nogil=True, cache=True)
def _long_key(
    data: NDArray[np.uint8], size: int, at: int, n: int, prefixed: bool
) -> tuple[np.uint64, np.uint64]:
    """Both words of the key of a piece of more than `_SHORT` bytes."""
    state = uint64(n)
    for k in range(0, n, 8):
        state = (state ^ _word(data, size, at + k, n - k)) * _K2
        state ^= state >> uint64(29)
    return state, uint64(0xFF) << uint64(56) | uint64(2 * n + prefixed)


@njit(forceinline=True)
def _find_short(known: _Known, low: np.uint64, high: np.uint64) -> np.int64:
    """The position of a short piece's entry, or of the empty one where it is not there."""
    slot = _slot(low, high, known.mask)
    while known.table[slot + 1] and (known.table[slot] != low or known.table[slot + 1] != high):
        slot = (slot + 4) & known.mask
    return slot


@njit(nogil=True, cache=True)
def _find_long(
    known: _Known, data: NDArray[np.uint8], size: int, at: int, n: int, low: np.uint64, high: np.uint64
) -> np.int64:
    """The position of a longer piece's entry, or of the empty one where it is not there."""
    slot = _slot(low, high, known.mask)
    while known.table[slot + 1]:
        if known.table[slot] == low and known.table[slot + 1] == high:
            begin, k = int64(known.table[slot + 3] >> uint64(32)), 0
            while k < n and load64(known.text, begin + k) == _word(data, size, at + k, n - k):
                k += 8
            if k >= n:
                break
        slot = (slot + 4) & known.mask
    return slot


@njit(nogil=True, cache=True)
def _insert(
    cache: Cache,
    data: NDArray[np.uint8],
    at: int,
    n: int,
    low: np.uint64,
    high: np.uint64,
    ids: NDArray[np.uint32],
    first: int,
    n_ids: int,
) -> None:
    """Remembers a piece of `n` bytes that is not in the cache; one that is full is emptied first.

    Its ids are `ids[first : first + n_ids]`; three are read at least. `data` and `ids` are pointers.
    """
    table, text, store, used = cache.table, cache.text, cache.ids, cache.used
    n_bytes = (n + 7) // 8 * 8 if n > _SHORT else 0  # whole words, zeros after the piece
    n_stored = n_ids if n > _SHORT or n_ids > 3 else 0
    if n_bytes > text.size or n_stored > store.size:
        return
    if 8 * used[0] >= table.size or used[1] + n_bytes > text.size or used[2] + n_stored > store.size:
        table[:] = 0
        used[:] = 0
    slot = _slot(low, high, table.size - 1)
    while table[slot + 1]:
        slot = (slot + 4) & (table.size - 1)
    table[slot], table[slot + 1] = low, high
    if n_bytes or n_stored:
        table[slot + 2] = uint64(n_ids)
        table[slot + 3] = uint64(used[1]) << uint64(32) | uint64(used[2])
        for k in range(n_bytes):
            text[used[1] + k] = data[at + k] if k < n else 0
        for k in range(n_stored):
            store[used[2] + k] = ids[first + k]
    else:
        table[slot + 2] = uint64(n_ids) | uint64(ids[first]) << uint64(32)
        table[slot + 3] = uint64(ids[first + 1]) | uint64(ids[first + 2]) << uint64(32)
    used[0] += 1
    used[1] += n_bytes
    used[2] += n_stored


@njit(cache=True)
def whole_pieces(
    data: NDArray[np.uint8], offsets: NDArray[np.int64], ids: NDArray[np.uint32], cache: Cache
) -> None:
    """Fills `Model.whole`, an empty cache that is large enough, from texts as a batch and their ids uint32[n_texts]."""
    three = np.zeros(3, np.uint32)
    for k in range(ids.size):
        at, n = offsets[k], offsets[k + 1] - offsets[k]
        three[0] = ids[k]  # which keeps the array, too
        if n <= _SHORT:
            low, high = _short_key(pointer(data), data.size, at, n, False)
        else:
            low, high = _long_key(pointer(data), data.size, at, n, False)
        _insert(cache, pointer(data), at, n, low, high, pointer(three), 0, 1)


@njit(nogil=True, cache=True)
def _merge_piece(
    t: _Tables,
    at: int,
    stop: int,
    prefixed: bool,
    symbols: NDArray[np.int32],
    ranks: NDArray[np.uint64],
    out: NDArray[np.uint32],
    first: int,
) -> int:
    """Writes a piece's ids to `out` from `first` on and returns how many; `symbols` is room for one more than its bytes."""
    count = _symbols(t, at, stop, prefixed, symbols)
    if count <= _FEW:
        count = _merge_few(symbols, count, t.pairs, t.pair_mask, ranks)
    else:
        count = _merge_many(symbols, count, t.pairs, t.pair_mask)
    for k in range(count):
        out[first + k] = symbols[k]
    return count


@njit(nogil=True, cache=True)
def _merge_huge(
    t: _Tables,
    at: int,
    stop: int,
    prefixed: bool,
    ranks: NDArray[np.uint64],
    out: NDArray[np.uint32],
    first: int,
) -> int:
    """`_merge_piece` with room of its own."""
    symbols = np.empty(stop - at + 1, np.int32)
    count = _merge_piece(t, at, stop, prefixed, pointer(symbols), ranks, out, first)
    return count + 0 * symbols.size  # keeps the room until here


@njit(forceinline=True)
def _known(cache: Cache) -> _Known:
    return _Known(pointer(cache.table), cache.table.size - 1, pointer(cache.text), pointer(cache.ids))


@njit(nogil=True, cache=True)
def _encode(
    data: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    model: Model,
    cache: Cache,
    symbols: NDArray[np.int32],
    ranks: NDArray[np.uint64],
    ids: NDArray[np.uint32],
    starts: NDArray[np.int64],
) -> None:
    """`encode` into `ids` and `starts`, with room for the symbols of a piece that is cached and for few ranks."""
    t = _Tables(
        pointer(data),
        data.size,
        model.style,
        model.by_bytes,
        pointer(model.initial),
        pointer(model.fallback),
        model.fallback.min() >= 0,
        model.unknown,
        model.fuse_unknown,
        pointer(model.classes),
        pointer(model.pairs),
        model.pairs.size // 2 - 1,
        pointer(model.joins),
        model.joins.size - 1,
        pointer(model.ascii_joins),
        model.every_space,
        pointer(model.spaces),
        model.spaces.size - 1,
    )
    known, whole = _known(cache), _known(model.whole)
    has_whole = model.whole.used[0] > 0
    out, room, few_ranks = pointer(ids), pointer(symbols), pointer(ranks)
    n_out = 0
    for doc in range(offsets.size - 1):
        at, end = offsets[doc], offsets[doc + 1]
        prefixed = model.prefix == 1 or (model.prefix == 2 and at < end and _next_symbol(t, at)[0] != BLANK)
        piece_end = at
        while at < end:
            if at == piece_end:
                if model.style == MERGES:
                    piece_end = _merges_end(t, at, end, prefixed)
                else:
                    if t.longest_space > 0 and at + 1 < end and t.data[at] == t.data[at + 1] == BLANK:
                        run = _space_token(t, at, end)
                        if run:
                            out[n_out] = t.spaces[run]
                            n_out += 1
                            at += run
                            piece_end = at
                            continue
                    piece_end = _split_end(t, at, end)
            stop = piece_end
            if stop - at > _UNCUT and model.cut:
                stop = _long_end(t, at, stop)
            n = stop - at
            if n <= _SHORT:
                low, high = _short_key(t.data, t.size, at, n, prefixed)
                slot = _find_short(known, low, high)
                few, more = known.table[slot + 2], known.table[slot + 3]
                count = int64(few & _LOW32)
                if known.table[slot + 1] and count <= 3:
                    out[n_out] = few >> uint64(32)
                    out[n_out + 1] = more & _LOW32
                    out[n_out + 2] = more >> uint64(32)
                    n_out += count
                    at = stop
                    prefixed = False
                    continue
            elif n <= MAX_CACHED:
                low, high = _long_key(t.data, t.size, at, n, prefixed)
                slot = _find_long(known, t.data, t.size, at, n, low, high)
            else:
                n_out += _merge_huge(t, at, stop, prefixed, few_ranks, out, n_out)
                at = stop
                prefixed = False
                continue
            if known.table[slot + 1]:
                count = int64(known.table[slot + 2])
                first = int64(known.table[slot + 3] & _LOW32)
                for k in range(count):
                    out[n_out + k] = known.ids[first + k]
            else:
                count = 0
                if has_whole:
                    if n <= _SHORT:
                        slot = _find_short(whole, low, high)
                        out[n_out] = whole.table[slot + 2] >> uint64(32)
                    else:
                        slot = _find_long(whole, t.data, t.size, at, n, low, high)
                        out[n_out] = whole.ids[int64(whole.table[slot + 3] & _LOW32)]
                    count = int64(whole.table[slot + 1] != 0)
                if count == 0:
                    count = _merge_piece(t, at, stop, prefixed, room, few_ranks, out, n_out)
                _insert(cache, t.data, at, n, low, high, out, n_out, count)
            n_out += count
            at = stop
            prefixed = False
        starts[doc + 1] = n_out


@njit(nogil=True, cache=True)
def encode(
    data: NDArray[np.uint8], offsets: NDArray[np.int64], model: Model, cache: Cache
) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Ids of all documents one after another, uint32[n_tokens], and where each document's begin, int64[n_docs + 1].

    The cache changes, so no two threads may use one at a time.
    """
    n_docs = offsets.size - 1
    # No more ids than bytes and a prefix for each document, and up to three are written beyond a piece's end.
    ids = np.empty(offsets[n_docs] - offsets[0] + n_docs + 4, np.uint32)
    starts = np.zeros(n_docs + 1, np.int64)
    symbols, ranks = np.empty(MAX_CACHED + 1, np.int32), np.empty(_FEW, np.uint64)
    _encode(data, offsets, model, cache, symbols, ranks, ids, starts)
    return ids[: starts[n_docs]].copy(), starts
