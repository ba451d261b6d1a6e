"""Which documents hold which evaluation items, benchmark by benchmark: a report, and the rows to remove.

Items are found by any n words in a row of the question with its answer after it (GPT-3: n = 13, arXiv 2005.14165,
appendix C), a shorter question by all of its words in a row, one of fewer than `MIN_WORDS` only together with its answer.
Words are compared in lower case and without punctuation. Two kinds of runs are left out, for they tell nothing of an item
and are in many documents: those of fewer than `MIN_WORDS` words ("True", "0, 42, 0"), and those that more than `MAX_ITEMS`
items share, which are a benchmark's template. The report counts the items that have no others. Items of a split that is
allowed in training are reported as such and remove nothing.

    index = build(items, allowed=[("gsm8k", "train")])              # to other processes by `save` and `load`
    for ids, text in batches:
        report = search(index, ids, text)
        kept = text.filter(pa.array(~report.remove))
        found.add(report.hits)                                      # a `Found`; those of several processes by `merge`
    print(*describe(found.table(index)), sep="\\n")
"""

import io
import json
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numba import njit, uint64
from numpy.typing import NDArray

from kernels.hashing import mix64
from kernels.minhash import GRAM_BASE, ngrams
from kernels.text import ALNUM, N_CODE_POINTS, next_code_point, unicode_tables, word_hashes
from moxin import storage
from moxin.arrow import utf8_buffers

MIN_WORDS = 4
"""A question of fewer words is looked for only with its answer, and not at all where that is fewer, too (or fewer than a
smaller n): of 14,568 files of text and code 3,426 hold the "True" that is an answer of MT-Bench's references."""
MAX_ITEMS = 10
"""Without a bound, every document that quotes the instructions of
BIG-bench's bracket sequences holds all 1,000 of its items."""
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
    n_vague: int
    """Items without a run of words to look for, see `MIN_WORDS` and `MAX_ITEMS`."""
    n_items_found: int
    n_documents: int


@dataclass
class Found:
    """Which items were found, and in how many documents: of any number of searches, without their texts."""

    items: dict[tuple[str, str], set[str]] = field(default_factory=dict)
    """By benchmark and split."""
    n_documents: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, hits: Iterable[Hit]) -> None:
        """Counts the hits of one search, or of several: hits that name one document must come together."""
        documents = set()
        for hit in hits:
            self.items.setdefault((hit.benchmark, hit.split), set()).add(hit.item)
            documents.add((hit.benchmark, hit.split, hit.document))
        self.n_documents.update((benchmark, split) for benchmark, split, _ in documents)

    def merge(self, other: "Found") -> None:
        """Adds what was found in other documents."""
        for key, items in other.items.items():
            self.items.setdefault(key, set()).update(items)
        self.n_documents.update(other.n_documents)

    def to_json(self) -> list[Any]:
        return [[*key, sorted(items), self.n_documents[key]] for key, items in sorted(self.items.items())]

    @staticmethod
    def from_json(value: list[Any]) -> "Found":
        return Found(
            {(benchmark, split): set(items) for benchmark, split, items, _ in value},
            Counter({(benchmark, split): n for benchmark, split, _, n in value}),
        )

    def table(self, index: Index) -> list[Row]:
        """Every split of every benchmark of the index, those without a hit included, by name."""
        n_items = Counter(item[:2] for item in index.items)
        looked_for = np.zeros(len(index.items), bool)
        looked_for[index.owners] = True
        n_vague = Counter(index.items[place][:2] for place in np.flatnonzero(~looked_for).tolist())
        return [
            Row(
                *key,
                key in index.allowed,
                n_items[key],
                n_vague[key],
                len(self.items.get(key, ())),
                self.n_documents[key],
            )
            for key in sorted(n_items)
        ]


@dataclass(frozen=True)
class Report:
    """What was found in n documents."""

    hits: list[Hit]
    """By document, then item."""
    remove: NDArray[np.bool_]
    """bool[n]: documents with an item of a split that is not allowed."""
    index: Index

    def table(self) -> list[Row]:
        """`Found.table` of these documents alone."""
        found = Found()
        found.add(self.hits)
        return found.table(self.index)


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
    lengths[lengths < min(MIN_WORDS, n)] = 0
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
    _, run, n_owners = np.unique(key, return_inverse=True, return_counts=True)
    own = n_owners[run] <= MAX_ITEMS
    key, owner = key[own], owner[own]
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


def save(index: Index, url: str) -> None:
    """Writes the index as one .npz without pickles; the two tables that `load` makes again are left out."""
    names = json.dumps({"items": index.items, "n": index.n, "allowed": sorted(index.allowed)})
    arrays = {name: getattr(index, name) for name in ("lengths", "hashes", "starts", "owners", "known")}
    file = io.BytesIO()
    np.savez(file, about=np.frombuffer(names.encode(), np.uint8), **arrays)
    storage.write_bytes(url, file.getvalue())


def load(url: str) -> Index:
    """What `save` wrote."""
    with np.load(io.BytesIO(storage.read_bytes(url)), allow_pickle=False) as file:
        arrays = dict(file)
    about = json.loads(arrays.pop("about").tobytes())
    hashes = arrays["hashes"]
    return Index(
        items=[Item(*item) for item in about["items"]],
        n=about["n"],
        allowed=frozenset((benchmark, split) for benchmark, split in about["allowed"]),
        bits=_bits(hashes),
        slots=_slots(hashes),
        **arrays,
    )


def search(index: Index, ids: Sequence[str], text: pa.Array) -> Report:
    """Looks for the items of the index in documents; `ids` are the documents' names in the report, each another."""
    data, offsets = utf8_buffers(text)
    flags, lower = unicode_tables()
    words, starts = word_hashes(data, offsets, flags, lower)
    found = _find(words, starts, index.lengths, index.bits, index.known, index.slots, index.hashes)
    first = _first(found, index.starts, index.owners, len(index.items))
    # Beginnings and ends of what is quoted, as places among the words of all documents.
    begin = starts[first[:, 0]] + first[:, 2]
    end = begin + first[:, 3] - 1
    wanted = np.unique(np.concatenate([begin, end]))
    places = _places(data, offsets, starts, wanted, flags)
    spans = places[np.searchsorted(wanted, begin)][:, [0, 2, 1]]
    spans[:, 2] = places[np.searchsorted(wanted, end), 1]
    allowed = np.array([item[:2] in index.allowed for item in index.items], bool)[first[:, 1]]
    remove = np.zeros(len(ids), bool)
    remove[first[~allowed, 0]] = True
    hits = []
    for row, (start, char, stop), fine in zip(first.tolist(), spans.tolist(), allowed.tolist(), strict=True):
        document, owner, _, length, count = row
        benchmark, split, name, *_ = index.items[owner]
        quoted = bytes(data[start : min(stop, start + 4 * SPAN_CHARS)]).decode(errors="ignore")[:SPAN_CHARS]
        hits.append(Hit(benchmark, split, name, str(ids[document]), length, count, char, quoted, fine))
    return Report(hits, remove, index)


def describe(rows: Iterable[Row], removed: bool = True) -> list[str]:
    """A sentence for every split that must not be in the documents, and for every allowed one that is.

    `removed` is whether documents with items that are not allowed are removed, or only reported.
    """
    return [_sentence(row, removed) for row in rows if row.n_items_found or not row.allowed]


def _sentence(row: Row, removed: bool) -> str:
    def counted(n: int, thing: str) -> str:
        return f"{n:,} {thing}" if n == 1 else f"{n:,} {thing}s"

    be = "is" if row.n_items_found == 1 else "are"
    some = f"{row.n_items_found:,}" if row.n_items_found else "none"
    text = f"{row.benchmark} {row.split}: {some} of {counted(row.n_items, 'item')} {be} in "
    text += counted(row.n_documents, "document") if row.n_documents else "the documents"
    if row.n_vague:
        its = "its" if row.n_vague == 1 else "their"
        text += (
            f" ({row.n_vague:,} {'has' if row.n_vague == 1 else 'have'} no words of {its} own to look for)"
        )
    if row.allowed:
        return f"{text}; this split is allowed, nothing was removed for it"
    if not row.n_documents:
        return text
    them = "it was" if row.n_documents == 1 else "they were"
    return f"{text}; {them} removed" if removed else f"{text}; {them} kept, contamination is only reported"


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
def _first(
    found: NDArray[np.int64], starts: NDArray[np.int64], owners: NDArray[np.int64], n_items: int
) -> NDArray[np.int64]:
    """Items in each document: int64[n_hits, 5], document, item, first word and words of the first run, how many runs.

    `found` is `_find`'s; a run belongs to items `owners[starts[run]:starts[run + 1]]`. Time goes with all
    runs' items, memory with the hits: a document may repeat a run that a thousand items share.
    """
    out, n_out = np.empty((64, 5), np.int64), 0
    where = np.full(n_items, -1)  # the row of an item, where it is one of this document
    at = 0
    while at < len(found):
        document, n_before = found[at, 0], n_out
        while at < len(found) and found[at, 0] == document:
            word, length, run = found[at, 1], found[at, 2], found[at, 3]
            for owner in owners[starts[run] : starts[run + 1]]:
                row = where[owner]
                if row < n_before:
                    if n_out == len(out):
                        out = np.concatenate((out, np.empty_like(out)))
                    row = where[owner] = n_out
                    out[row, 0], out[row, 1], out[row, 2], out[row, 3] = document, owner, word, length
                    out[row, 4] = 0
                    n_out += 1
                elif word < out[row, 2] or (word == out[row, 2] and length < out[row, 3]):
                    out[row, 2], out[row, 3] = word, length
                out[row, 4] += 1
            at += 1
        out[n_before:n_out] = out[n_before:n_out][np.argsort(out[n_before:n_out, 1])]
    return out[:n_out].copy()


@njit(nogil=True, cache=True)
def _places(
    data: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    starts: NDArray[np.int64],
    wanted: NDArray[np.int64],
    flags: NDArray[np.uint8],
) -> NDArray[np.int64]:
    """Where words lie: int64[n_wanted, 3], first byte and last + 1 in `data`, characters before it in its document.

    `wanted` are places among the words that `word_hashes` counts in all documents, rising, each once.
    """
    out, k = np.empty((len(wanted), 3), np.int64), 0
    for doc in range(len(starts) - 1):
        if k == len(wanted):
            break
        if wanted[k] >= starts[doc + 1]:
            continue
        at, end, char, word, inside = offsets[doc], offsets[doc + 1], 0, starts[doc] - 1, False
        while at < end:
            first = at
            point, at = next_code_point(data, at)
            is_part = point < N_CODE_POINTS and flags[point] & ALNUM
            if is_part and not inside:
                word += 1
                if k < len(wanted) and wanted[k] == word:
                    out[k, 0], out[k, 2] = first, char
            elif inside and not is_part and k < len(wanted) and wanted[k] == word:
                out[k, 1] = first
                k += 1
            inside = is_part != 0
            char += 1
        if inside and k < len(wanted) and wanted[k] == word:
            out[k, 1] = end
            k += 1
    return out
