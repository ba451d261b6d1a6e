"""Which documents hold which evaluation items, benchmark by benchmark: a report, and the rows to remove.

Items are found as in `moxin.curate.decontaminate`: by any n words in a row of the question with its answer after it (GPT-3:
n = 13, arXiv 2005.14165, appendix C), a shorter question by all of its words in a row, one of fewer than `MIN_WORDS` only
together with its answer. Words are compared in lower case and without punctuation. Items of a split that is allowed in
training are reported as such and remove nothing.

    report = search(build(items, allowed=[("gsm8k", "train")]), ids, text)
    print(*report.table(), sep="\\n")
    kept = text.filter(pa.array(~report.remove))
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numba import njit, uint64
from numpy.typing import NDArray

from kernels.hashing import mix64
from kernels.minhash import GRAM_BASE, ngrams
from kernels.text import ALNUM, N_CODE_POINTS, next_code_point, unicode_tables, word_hashes
from moxin.arrow import utf8_buffers
from moxin.curate.decontaminate import MIN_WORDS

SPAN_CHARS = 200
"""Characters of the matched text that the report quotes."""


class Item(NamedTuple):
    """One question of an evaluation set."""

    benchmark: str
    split: str
    id: str
    question: str
    answer: str


@dataclass(frozen=True)
class Index:
    """Word runs of all items: their hashes by length, and a table that finds them."""

    items: Sequence[Item]
    n: int
    allowed: frozenset[tuple[str, str]]
    """Pairs (benchmark, split) that may be in the training data."""
    lengths: NDArray[np.int64]
    """Lengths of runs that occur, in words, rising."""
    hashes: NDArray[np.uint64]
    """Of all runs and their lengths, sorted, each once: uint64[n_runs]."""
    starts: NDArray[np.int64]
    """Where the items of each run begin in `owners`: int64[n_runs + 1]."""
    owners: NDArray[np.int64]
    """Positions of items."""
    bits: NDArray[np.uint64]
    """A Bloom filter of one hash, at least 8 bits a run."""
    known: NDArray[np.uint64]
    """The same of all items' runs of 3 words: a longer run is looked up only where every 3 of its words are in some item."""
    slots: NDArray[np.int64]
    """Open addressing by a run's hash: a position in `hashes`, or -1."""


class Hit(NamedTuple):
    """A run of words that a document shares with an item: the first of the document for this item."""

    benchmark: str
    split: str
    item: str
    document: str
    n_words: int
    n_runs: int
    """Runs of the item that the document holds, repeats included."""
    first_char: int
    span: str
    """The document's text of the run, as it stands there, at most `SPAN_CHARS`."""
    allowed: bool


class Row(NamedTuple):
    """One split of one benchmark."""

    benchmark: str
    split: str
    allowed: bool
    n_items: int
    n_items_found: int
    n_documents: int


@dataclass(frozen=True)
class Report:
    """What was found in n documents."""

    hits: list[Hit]
    """By document, then item."""
    remove: NDArray[np.bool_]
    """bool[n]: documents with an item of a split that is not allowed."""
    index: Index

    def table(self) -> list[Row]:
        """Every split of every benchmark, those without a hit included, by name."""
        items: dict[tuple[str, str], int] = {}
        for item in self.index.items:
            items[item.benchmark, item.split] = items.get((item.benchmark, item.split), 0) + 1
        found: dict[tuple[str, str], set[str]] = {key: set() for key in items}
        documents: dict[tuple[str, str], set[str]] = {key: set() for key in items}
        for hit in self.hits:
            found[hit.benchmark, hit.split].add(hit.item)
            documents[hit.benchmark, hit.split].add(hit.document)
        return [
            Row(*key, key in self.index.allowed, items[key], len(found[key]), len(documents[key]))
            for key in sorted(items)
        ]


def build(items: Iterable[Item], n: int = 13, allowed: Collection[tuple[str, str]] = ()) -> Index:
    """The index of evaluation items, by runs of `n` words.

    Raises:
        ValueError: n < 1, or a pair (benchmark, split) is allowed of which there is no item.
    """
    items = list(items)
    if n < 1:
        raise ValueError(f"n = {n}: at least 1 word")
    if missing := sorted(set(allowed) - {(item.benchmark, item.split) for item in items}):
        raise ValueError(f"allowed are {missing}, of which there is no item")
    both = [text for item in items for text in (item.question, f"{item.question} {item.answer}")]
    words, starts = word_hashes(*utf8_buffers(pa.array(both, pa.large_string())), *unicode_tables())
    counts = np.diff(starts)
    alone, whole = counts[0::2], counts[1::2]
    short = (alone >= MIN_WORDS) & (alone < n)
    rows = 2 * np.arange(len(items)) + ~short
    lengths = np.minimum(np.where(short, alone, whole), n)
    keys, owners, threes = [np.empty(0, np.uint64)], [np.empty(0, np.int64)], [np.empty(0, np.uint64)]
    for length in np.unique(lengths[lengths > 0]):
        chosen = np.flatnonzero(lengths == length)
        sizes = counts[rows[chosen]]
        own = np.repeat(starts[rows[chosen]] - np.cumsum(sizes) + sizes, sizes) + np.arange(sizes.sum())
        bounds = np.concatenate([[0], np.cumsum(sizes)])
        values, gram_starts = ngrams(words[own], bounds, int(length))
        threes.append(ngrams(words[own], bounds, 3)[0])
        keys.append(_keyed(values, int(length)))
        owners.append(np.repeat(chosen, np.diff(gram_starts)))
    key, owner = np.concatenate(keys), np.concatenate(owners)
    order = np.lexsort((owner, key))
    key, owner = key[order], owner[order]
    new = np.ones(len(key), bool)
    new[1:] = (key[1:] != key[:-1]) | (owner[1:] != owner[:-1])
    key, owner = key[new], owner[new]
    hashes, first = np.unique(key, return_index=True)
    known = _bits(np.concatenate(threes))
    return Index(
        items,
        n,
        frozenset(allowed),
        np.unique(lengths[lengths > 0]).astype(np.int64),
        hashes,
        np.append(first, len(owner)).astype(np.int64),
        owner,
        _bits(hashes),
        known,
        _slots(hashes),
    )


def search(index: Index, ids: Sequence[str], text: pa.Array) -> Report:
    """Looks for the items of the index in documents; `ids` are the documents' names in the report."""
    data, offsets = utf8_buffers(text)
    words, starts = word_hashes(data, offsets, *unicode_tables())
    found = _find(words, starts, index.lengths, index.bits, index.known, index.slots, index.hashes)
    remove, hits = np.zeros(len(ids), bool), []
    for document in np.unique(found[:, 0]):
        first, last = np.searchsorted(found[:, 0], [document, document + 1])
        spans = _spans(data, offsets[document], offsets[document + 1], unicode_tables()[0])
        runs: dict[int, list[tuple[int, int]]] = {}
        for _, word, length, run in found[first:last]:
            for owner in index.owners[index.starts[run] : index.starts[run + 1]]:
                runs.setdefault(int(owner), []).append((int(word), int(length)))
        for owner, places in sorted(runs.items()):
            item, (word, length) = index.items[owner], min(places)
            start, end = spans[word, 0], spans[word + length - 1, 1]
            before = bytes(data[offsets[document] : start]).decode()
            span = bytes(data[start:end]).decode()[:SPAN_CHARS]
            allowed = (item.benchmark, item.split) in index.allowed
            remove[document] |= not allowed
            name = str(ids[document])
            hits.append(Hit(*item[:3], name, length, len(places), len(before), span, allowed))
    return Report(hits, remove, index)


def as_table(hits: Sequence[Hit]) -> pa.Table:
    """The hits as Arrow, one row each."""
    kinds: dict[type, Any] = {str: pa.string(), int: pa.int64(), bool: pa.bool_()}
    schema = pa.schema([(name, kinds[kind]) for name, kind in Hit.__annotations__.items()])
    return pa.Table.from_pylist([hit._asdict() for hit in hits], schema)


@njit(inline="always")
def _key(gram: Any, length: int) -> Any:
    return mix64(uint64(gram) + uint64(length))


@njit(nogil=True, cache=True)
def _keyed(grams: NDArray[np.uint64], length: int) -> NDArray[np.uint64]:
    """Hashes that tell runs of different lengths apart."""
    out = np.empty_like(grams)
    for k in range(len(grams)):
        out[k] = _key(grams[k], length)
    return out


@njit(nogil=True, cache=True)
def _bits(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A bit for each hash, by its highest bits; a power of two of words."""
    bits = np.zeros(1, np.uint64)
    while len(bits) * 8 < len(hashes):
        bits = np.zeros(2 * len(bits), np.uint64)
    for hashed in hashes:
        bit = (hashed >> uint64(32)) & uint64(64 * len(bits) - 1)
        bits[np.int64(bit >> uint64(6))] |= uint64(1) << (bit & uint64(63))
    return bits


@njit(inline="always")
def _has(bits: NDArray[np.uint64], hashed: Any) -> bool:
    bit = (hashed >> uint64(32)) & uint64(64 * len(bits) - 1)
    return (bits[np.int64(bit >> uint64(6))] >> (bit & uint64(63))) & uint64(1) != 0


@njit(nogil=True, cache=True)
def _slots(hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    size = 2
    while size < 2 * len(hashes):
        size *= 2
    slots = np.full(size, -1)
    for k in range(len(hashes)):
        slot = np.int64(hashes[k] & uint64(size - 1))
        while slots[slot] >= 0:
            slot = (slot + 1) & (size - 1)
        slots[slot] = k
    return slots


@njit(nogil=True, cache=True)
def _find(
    words: NDArray[np.uint64],
    starts: NDArray[np.int64],
    lengths: NDArray[np.int64],
    bits: NDArray[np.uint64],
    known: NDArray[np.uint64],
    slots: NDArray[np.int64],
    hashes: NDArray[np.uint64],
) -> NDArray[np.int64]:
    """Runs of the index in each document, int64[n_found, 4]: document, first word in it, words, position in `hashes`.

    The hash of a run is a difference of two hashes of beginnings, so that its cost does not grow with its length; it equals
    that of `kernels.minhash.ngrams`.
    """
    out, count = np.empty((64, 4), np.int64), 0
    powers = np.ones(len(lengths), np.uint64)
    longest, cube = 3, GRAM_BASE * GRAM_BASE * GRAM_BASE
    for k in range(len(lengths)):
        longest = max(longest, lengths[k])
        for _ in range(lengths[k]):
            powers[k] *= GRAM_BASE
    ring_size = 1
    while ring_size <= longest:
        ring_size *= 2
    ring = np.zeros(ring_size, np.uint64)  # hashes of the last beginnings of the document
    for doc in range(len(starts) - 1):
        ring[0] = 0
        state, n_known = uint64(0), 2
        for at in range(starts[doc + 1] - starts[doc]):
            state = state * GRAM_BASE + words[starts[doc] + at]
            ring[(at + 1) & (ring_size - 1)] = state
            if at >= 2:
                three = mix64(state - ring[(at - 2) & (ring_size - 1)] * cube)
                n_known = (
                    n_known + 1 if _has(known, three) else 2
                )  # words up to here, every 3 of them in an item
            for k in range(len(lengths)):
                first = at + 1 - lengths[k]
                if first < 0 or lengths[k] > n_known:
                    break
                gram = mix64(state - ring[first & (ring_size - 1)] * powers[k])
                key = _key(gram, lengths[k])
                if not _has(bits, key):
                    continue
                slot = np.int64(key & uint64(len(slots) - 1))
                while slots[slot] >= 0 and hashes[slots[slot]] != key:
                    slot = (slot + 1) & (len(slots) - 1)
                if slots[slot] >= 0:
                    if count == len(out):
                        out = np.concatenate((out, np.empty_like(out)))
                    out[count, 0], out[count, 1] = doc, first
                    out[count, 2], out[count, 3] = lengths[k], slots[slot]
                    count += 1
    return out[:count].copy()


@njit(nogil=True, cache=True)
def _spans(data: NDArray[np.uint8], at: int, end: int, flags: NDArray[np.uint8]) -> NDArray[np.int64]:
    """First and last + 1 byte of each word that `word_hashes` counts: int64[n_words, 2]."""
    out, count, inside = np.empty(((end - at) // 2 + 1, 2), np.int64), 0, False
    while at < end:
        first = at
        point, at = next_code_point(data, at)
        if point < N_CODE_POINTS and flags[point] & ALNUM:
            if not inside:
                out[count, 0] = first
                count += 1
            out[count - 1, 1] = at
            inside = True
        else:
            inside = False
    return out[:count]
