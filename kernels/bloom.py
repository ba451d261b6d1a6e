"""Bloom filters, and the duplicates among paragraphs by their word n-grams as DCLM's BFF finds them, in numba passes.

Bloom (CACM 13(7), 1970): an element sets `n_hashes` bits, and is held to be known where all of its bits are set. With n
elements in m bits a new one is taken for known with probability (1 - e^(-kn/m))^k, and never the other way round. The k
positions come from two hashes (Kirsch, Mitzenmacher, "Less Hashing, Same Performance", 2006). GIL is released.

Pieces, words and batches are as in `kernels.spans` and `kernels.words`.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import extending, njit, types, uint64
from numba.core import cgutils
from numpy.typing import NDArray

from kernels.hashing import mix64
from kernels.memory import pointer
from kernels.spans import read_only, word_at

SHARD_BYTES = 2**30
_AHEAD = 12
"""Elements between the fetching of bits and their use: a filter of 240 MB takes 74 ns per element instead of 112."""
_BASE, _SALT = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)

_intrinsic: Any = extending.intrinsic


class Seen(NamedTuple):
    """What became of every piece of a batch, [n_pieces]."""

    contained: NDArray[np.int64]
    """n-grams that had been seen before."""
    total: NDArray[np.int64]
    """n-grams."""
    removed: NDArray[np.bool_]


def size(n_expected: int, fp_rate: float) -> tuple[int, int]:
    """Bits and hashes for `n_expected` elements: k = log2(1 / fp_rate) rounded down or up, m = -kn / ln(1 - fp_rate^(1/k)).

    That is the textbook's m = -n ln p / (ln 2)^2 and k = (m / n) ln 2, solved anew for a whole number of hashes; of the two
    the one with fewer bits.
    """
    if n_expected < 1 or not 0 < fp_rate < 1:
        raise ValueError(
            f"a Bloom filter for n_expected={n_expected} n-grams at fp_rate={fp_rate}: "
            "set n_expected >= 1 and 0 < fp_rate < 1"
        )
    exact = -math.log2(fp_rate)
    choices = {max(math.floor(exact), 1), math.ceil(exact)}
    bits = {k: math.ceil(-k * n_expected / math.log1p(-(fp_rate ** (1 / k)))) for k in choices}
    n_hashes = min(choices, key=lambda k: (bits[k], k))
    return bits[n_hashes], n_hashes


class Bloom:
    """A filter in shards of at most `shard_bytes`; an element belongs to one, by the high bits of its hash.

    The shards follow from `n_expected`, `fp_rate` and `shard_bytes` alone, so that the answers do not depend on who holds
    which. A process that holds some of them gives their numbers in `shards`, and only their elements may be asked for.
    """

    def __init__(
        self,
        n_expected: int,
        fp_rate: float,
        *,
        shard_bytes: int = SHARD_BYTES,
        shards: Sequence[int] | None = None,
    ) -> None:
        self.n_expected, self.fp_rate, self.shard_bytes = n_expected, fp_rate, shard_bytes
        n_bits, self.n_hashes = size(n_expected, fp_rate)
        self.n_shards = -(-n_bits // (8 * shard_bytes))
        self.shards = list(range(self.n_shards)) if shards is None else sorted(set(shards))
        assert set(self.shards) <= set(range(self.n_shards)), (shards, self.n_shards)
        self.bits = np.zeros((len(self.shards), -(-n_bits // (64 * self.n_shards))), np.uint64)
        self.n_added = 0
        """n-grams that were added and not known before."""
        self._slots = np.full(self.n_shards, -1, np.int64)
        self._slots[self.shards] = np.arange(len(self.shards))

    @property
    def capacity(self) -> int:
        """How many the shards here may hold."""
        return -(-self.n_expected * len(self.shards) // self.n_shards)

    def fill(self) -> float:
        """The share of bits that are set; by design one half when the filter is full."""
        return float(np.bitwise_count(self.bits).sum()) / max(self.bits.size * 64, 1)

    def contains(self, grams: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Whether each was added before, or is taken for one that was: bool[n]."""
        self._check_shards(grams)
        return _contains(grams, self.bits, self._slots, self.n_hashes)

    def add(self, grams: NDArray[np.uint64]) -> None:
        """Adds them; the order makes no difference. Raises `ValueError`, and adds nothing, where they are too many."""
        self._check_shards(grams)
        new = np.unique(grams[~_contains(grams, self.bits, self._slots, self.n_hashes)])
        if self.n_added + len(new) > self.capacity:
            raise self._full()
        _add(new, self.bits, self._slots, self.n_hashes)
        self.n_added += len(new)

    def judge(
        self, grams: NDArray[np.uint64], gram_starts: NDArray[np.int64], threshold: float, update: bool = True
    ) -> Seen:
        """BFF on pieces in their order: counts a piece's n-grams seen before, removes it with more than `threshold` of them,
        and only then adds those of a piece that stays.

        Without `update` nothing is added. Raises `ValueError` before the filter holds more than it was made for.
        """
        assert len(self.shards) == self.n_shards, (
            "to judge in order needs every shard; see `contains` and `add`"
        )
        contained, n_added, n_judged = _judge(
            grams,
            gram_starts,
            self.bits,
            self._slots,
            self.n_hashes,
            threshold,
            self.capacity - self.n_added if update else -1,
        )
        self.n_added += n_added
        if n_judged < len(contained):
            raise self._full()
        return decide(contained, np.diff(gram_starts), threshold)

    def _check_shards(self, grams: NDArray[np.uint64]) -> None:
        if len(self.shards) < self.n_shards:
            assert (self._slots[shard_of(grams, self.n_shards)] >= 0).all(), (
                "an element of a shard held elsewhere"
            )

    def _full(self) -> ValueError:
        return ValueError(
            f"the Bloom filter is full: it was made for {self.capacity:,} distinct n-grams at a false-positive rate of "
            f"{self.fp_rate:g}, holds {self.n_added:,}, and the next would be too many; more would remove text that "
            f"repeats nothing. Set n_expected above {self.n_expected:,} (text has about one n-gram per word) and begin anew"
        )


def decide(contained: NDArray[np.int64], total: NDArray[np.int64], threshold: float) -> Seen:
    """Removes pieces with contained / total > threshold; never one without n-grams."""
    return Seen(contained, total, (contained / np.maximum(total, 1) > threshold) & (total > 0))


@_intrinsic
def _scaled(typing: Any, value: Any, n: Any) -> Any:
    """A uint64 taken as a fraction of 2^64, times n, rounded down: a number below n (Lemire, 2019)."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        wide = ir.IntType(128)
        product = builder.mul(builder.zext(args[0], wide), builder.zext(args[1], wide))
        return builder.trunc(builder.lshr(product, wide(64)), ir.IntType(64))

    return types.uint64(types.uint64, types.uint64), codegen


@_intrinsic
def _fetch(typing: Any, data: Any, at: Any) -> Any:
    """Has the processor bring the cache line of a pointer's element `at`, without waiting for it."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        target = builder.bitcast(builder.gep(args[0], [args[1]]), byte)
        builder.call(prefetch, [target, number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(data, types.intp), codegen


@njit(nogil=True, cache=True)
def shard_of(grams: NDArray[np.uint64], n_shards: int) -> NDArray[np.int64]:
    """The shard of every element: int64[n]."""
    out = np.empty(grams.size, np.int64)
    for k in range(grams.size):
        out[k] = _scaled(grams[k], uint64(n_shards))
    return out


@njit(forceinline=True)
def _place(gram: np.uint64, slots: NDArray[np.int64], n_shards: int, n_words: int) -> int:
    """Where the element's shard begins in the bits, in words."""
    return slots[np.int64(_scaled(gram, uint64(n_shards)))] * n_words


@njit(forceinline=True)
def _announce(
    gram: np.uint64, bits: NDArray[np.uint64], place: int, n_bits: np.uint64, n_hashes: int
) -> None:
    """Fetches all bits of an element that is to be looked up soon."""
    at, step = mix64(gram ^ _SALT), mix64(gram + _BASE) | uint64(1)
    for _ in range(n_hashes):
        _fetch(bits, place + np.int64(_scaled(at, n_bits) >> uint64(6)))
        at += step


@njit(forceinline=True)
def _known(gram: np.uint64, bits: NDArray[np.uint64], place: int, n_bits: np.uint64, n_hashes: int) -> bool:
    """Whether all bits of the element are set."""
    # All are read, so that no branch is mispredicted and the reads overlap.
    at, step, found = mix64(gram ^ _SALT), mix64(gram + _BASE) | uint64(1), uint64(1)
    for _ in range(n_hashes):
        position = _scaled(at, n_bits)
        found &= bits[place + np.int64(position >> uint64(6))] >> (position & uint64(63))
        at += step
    return found & uint64(1) != 0


@njit(forceinline=True)
def _set(gram: np.uint64, bits: NDArray[np.uint64], place: int, n_bits: np.uint64, n_hashes: int) -> bool:
    """Sets all bits of the element; whether one of them was not set."""
    at, step, found = mix64(gram ^ _SALT), mix64(gram + _BASE) | uint64(1), uint64(1)
    for _ in range(n_hashes):
        position = _scaled(at, n_bits)
        word, bit = place + np.int64(position >> uint64(6)), position & uint64(63)
        found &= bits[word] >> bit
        bits[word] |= uint64(1) << bit
        at += step
    return found & uint64(1) == 0


@njit(nogil=True, cache=True)
def _contains(
    grams: NDArray[np.uint64], bits: NDArray[np.uint64], slots: NDArray[np.int64], n_hashes: int
) -> NDArray[np.bool_]:
    out = np.empty(grams.size, np.bool_)
    n_bits, table, places = uint64(64 * bits.shape[1]), pointer(bits), pointer(slots)
    for k in range(grams.size):
        if k + _AHEAD < grams.size:
            ahead = grams[k + _AHEAD]
            _announce(ahead, table, _place(ahead, places, slots.size, bits.shape[1]), n_bits, n_hashes)
        place = _place(grams[k], places, slots.size, bits.shape[1])
        out[k] = _known(grams[k], table, place, n_bits, n_hashes)
    return out


@njit(nogil=True, cache=True)
def _add(
    grams: NDArray[np.uint64], bits: NDArray[np.uint64], slots: NDArray[np.int64], n_hashes: int
) -> None:
    n_bits, table, places = uint64(64 * bits.shape[1]), pointer(bits), pointer(slots)
    for k in range(grams.size):
        _set(grams[k], table, _place(grams[k], places, slots.size, bits.shape[1]), n_bits, n_hashes)


@njit(nogil=True, cache=True)
def _judge(
    grams: NDArray[np.uint64],
    gram_starts: NDArray[np.int64],
    bits: NDArray[np.uint64],
    slots: NDArray[np.int64],
    n_hashes: int,
    threshold: float,
    room: int,
) -> tuple[NDArray[np.int64], int, int]:
    """Per piece the n-grams seen before; how many were added; how many pieces were judged before `room` was used up."""
    n_pieces, n_words = gram_starts.size - 1, bits.shape[1]
    contained = np.zeros(n_pieces, np.int64)
    n_bits, table, places = uint64(64 * n_words), pointer(bits), pointer(slots)
    n_added = 0
    for piece in range(n_pieces):
        first, last = gram_starts[piece], gram_starts[piece + 1]
        n = 0
        for k in range(first, last):
            if k + _AHEAD < grams.size:
                ahead = grams[k + _AHEAD]
                _announce(ahead, table, _place(ahead, places, slots.size, n_words), n_bits, n_hashes)
            n += _known(grams[k], table, _place(grams[k], places, slots.size, n_words), n_bits, n_hashes)
        contained[piece] = n
        if room < 0 or first == last or n / (last - first) > threshold:
            continue
        if n_added + (last - first - n) > room:
            return contained, n_added, piece
        for k in range(first, last):
            place = _place(grams[k], places, slots.size, n_words)
            n_added += _set(grams[k], table, place, n_bits, n_hashes)
    return contained, n_added, n_pieces


def word_grams(
    data: NDArray[np.uint8],
    pieces: tuple[NDArray[np.int64], NDArray[np.int64]],
    words: tuple[NDArray[np.int64], NDArray[np.int64]],
    min_words: int,
    max_words: int,
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """64-bit hashes of every run of `max_words` words within each piece: uint64[n], and int64[n_pieces + 1], where each
    piece's begin.

    `pieces` and `words` are byte spans (starts, ends) in ascending order; a word belongs to the piece that it begins in. A
    piece of fewer words is one n-gram of all of them, of fewer than `min_words` none. Words are compared byte for byte.
    """
    if not 1 <= min_words <= max_words:
        raise ValueError(f"min_words={min_words}, max_words={max_words}: set 1 <= min_words <= max_words")
    return _word_grams(read_only(data), *pieces, *words, min_words, max_words)


@njit(nogil=True, cache=True)
def _word_grams(
    data: NDArray[np.uint8],
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    word_starts: NDArray[np.int64],
    word_ends: NDArray[np.int64],
    min_words: int,
    max_words: int,
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    n_pieces, n_words, text = starts.size, word_starts.size, pointer(data)
    value = np.empty(n_words, np.uint64)
    for k in range(n_words):
        at, end = word_starts[k], word_ends[k]
        state = uint64(end - at) * _SALT
        while at < end:
            state = mix64(state ^ word_at(text, data.size, at, end - at)) + _BASE
            at += 8
        value[k] = state
    oldest = uint64(1)
    for _ in range(max_words):
        oldest *= _BASE
    grams, gram_starts = np.empty(n_words, np.uint64), np.zeros(n_pieces + 1, np.int64)
    word, n = 0, 0
    for piece in range(n_pieces):
        while word < n_words and word_starts[word] < starts[piece]:
            word += 1
        first, state = word, uint64(0)
        while word < n_words and word_starts[word] < ends[piece]:
            state = state * _BASE + value[word]
            if word - first >= max_words:
                state -= value[word - max_words] * oldest
            word += 1
            if word - first >= max_words:
                grams[n] = mix64(state)
                n += 1
        if min_words <= word - first < max_words:
            grams[n] = mix64(state + uint64(word - first) * _SALT)
            n += 1
        gram_starts[piece + 1] = n
    return grams[:n].copy(), gram_starts
