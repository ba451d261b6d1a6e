"""The second step of the near-duplicate search: which documents share a bucket, a range of keys at a time."""

import math
import random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels import minhash
from moxin.curate import fuzzy_files as files
from moxin.curate.fuzzy_keys import LEVELS, SLOTS, Search, by_key, slots

SUBSETS = 48
"""Choices of four bands whose keys are taken together for documents in buckets that are large at two levels."""


def candidates(search: Search, range_: int, level: int = 1) -> int:
    """Pairs of documents that share a key of this range: `pairs/` and `members/` by unit, and `large/` below the last level.

    Returns the number of pairs. Memory: 64 bytes per entry of the range, 16 per pair.
    """
    kinds = ("pairs", "members", "large")[: 3 if level < LEVELS else 2]
    urls = {kind: search.range_url(kind, level, range_) for kind in kinds}
    missing = {kind: url for kind, url in urls.items() if not files.finished(url, kind, search.ranges_tag)}
    if missing:
        pairs, large, unseen = _bucket_pairs(search, level, *_entries(search, range_, level))
        n = np.uint64(search.n)
        items = np.empty(len(pairs), files.PAIRS)
        items["smaller"], items["larger"] = pairs % n, pairs // n
        content = {
            "pairs": (items, items["larger"], unseen),
            "members": (
                members := np.unique(np.concatenate([items["smaller"], items["larger"]])),
                members,
                0,
            ),
            "large": (large, large["document"], 0),
        }
        for kind, url in missing.items():
            values, documents, counted = content[kind]
            by_unit = np.searchsorted(documents, search.starts.astype(np.uint64))
            files.write(url, kind, search.ranges_tag, values, by_unit, counted)
    return files.Reader(urls["pairs"], "pairs", search.ranges_tag).header.n_items


def _entries(search: Search, range_: int, level: int) -> tuple[Any, Any, Any]:
    """Keys, signatures and documents of one range of keys: uint64, uint32, int64."""
    first, stop = (SLOTS * k // search.n_ranges for k in (range_, range_ + 1))
    keys, signatures, documents = [], [], []
    for unit, start in zip(search.units, search.starts, strict=False):
        if level == 1:
            reader = files.Reader(unit.url("keys"), "keys", search.params.keys_tag)
        else:
            reader = files.Reader(unit.url(f"keys-{level}", search.folder), "keys", search.tag)
        if reader.header.n_documents != unit.documents:
            raise ValueError(
                f"{reader.url}: {reader.header.n_documents:,} documents, expected {unit.documents:,}"
            )
        items = reader.read(first, stop)
        keys.append(items["key"].copy())
        signatures.append(items["signature"].copy())
        documents.append(items["row"].astype(np.int64) + start)
    return (
        files.concatenated(keys, np.dtype(np.uint64)),
        files.concatenated(signatures, np.dtype(np.uint32)),
        files.concatenated(documents, np.dtype(np.int64)),
    )


def _bucket_pairs(
    search: Search, level: int, keys: Any, signatures: Any, documents: Any
) -> tuple[NDArray[np.uint64], np.ndarray, int]:
    """Pairs as larger * n + smaller, sorted; entries of large buckets by document and key; what was not compared."""
    order = np.argsort(keys)
    ordered = keys[order]
    same = ordered[1:] == ordered[:-1]
    shared = np.zeros(len(keys), bool)
    shared[1:] |= same
    shared[:-1] |= same
    order = order[shared]  # most entries are alone with their key
    order = order[np.lexsort((documents[order], signatures[order], keys[order]))]
    keys, signatures, documents = keys[order], signatures[order], documents[order]
    first = np.ones(len(keys), bool)
    first[1:] = (keys[1:] != keys[:-1]) | (signatures[1:] != signatures[:-1])
    stands_for = documents[np.flatnonzero(first)[np.cumsum(first) - 1]] if len(keys) else documents
    copies = ~first & (documents >= search.first_new)
    found = [_coded(search, stands_for[copies], documents[copies])]
    keys, signatures, documents = keys[first], signatures[first], documents[first]
    order = np.lexsort((documents, keys))
    keys, signatures, documents = keys[order], signatures[order], documents[order]
    pairs, large, unseen = minhash.bucket_pairs_bounded(
        keys, documents, search.params.window_at(level), search.first_new
    )
    found.append(_coded(search, pairs[:, 0], pairs[:, 1]))
    entries = np.empty(int(large.sum()), files.LARGE)
    entries["document"], entries["key"] = documents[large], keys[large]
    entries["signature"] = signatures[large]
    entries = entries[np.lexsort((entries["key"], entries["document"]))]
    return np.unique(np.concatenate(found)), entries, unseen


def _coded(search: Search, smaller: NDArray[np.int64], larger: NDArray[np.int64]) -> NDArray[np.uint64]:
    return larger.astype(np.uint64) * np.uint64(search.n) + smaller.astype(np.uint64)


def refine(search: Search, place: int, level: int = 2) -> None:
    """A unit's keys for the next level, `keys-2/` or `keys-3/`, of the documents in large buckets of the level before.

    A key of level 2 is any two keys of large buckets together, one of level 3 the keys of four bands, for up to `SUBSETS`
    choices of four. Memory: 8 * bands * (bands - 1) bytes at most per document in large buckets, twice while they are
    sorted."""
    unit = search.units[place]
    url = unit.url(f"keys-{level}", search.folder)
    if files.finished(url, "keys", search.tag):
        return
    large = _large(search, place, 1)
    if level > 2:
        large = large[np.isin(large["document"], _large(search, place, level - 1)["document"])]
    large = large[np.lexsort((large["key"], large["document"]))]
    documents, firsts = np.unique(large["document"], return_index=True)
    starts = np.concatenate([firsts, [len(large)]])
    if level == 2:
        keys, key_starts = minhash.pairs_of_keys(large["key"].copy(), starts)
    else:
        keys, key_starts = minhash.keys_of_subsets(large["key"].copy(), starts, _subsets(search.params.bands))
    items = np.empty(len(keys), files.KEYS)
    items["key"] = keys
    items["signature"] = np.repeat(large["signature"][firsts], np.diff(key_starts))
    items["row"] = np.repeat(documents - np.uint64(search.starts[place]), np.diff(key_starts))
    items = by_key(items)
    files.write(url, "keys", search.tag, items, slots(items["key"]), unit.documents)


def _large(search: Search, place: int, level: int) -> np.ndarray:
    urls = [search.range_url("large", level, range_) for range_ in range(search.n_ranges)]
    parts = [files.Reader(url, "large", search.ranges_tag).read(place, place + 1) for url in urls]
    return files.concatenated(parts, files.LARGE)


def _subsets(bands: int) -> NDArray[np.int64]:
    """Up to `SUBSETS` choices of four bands, the same for all documents: int64[n, 4]."""
    draw, chosen = random.Random(bands), set[tuple[int, ...]]()
    while len(chosen) < min(SUBSETS, math.comb(bands, 4)):
        chosen.add(tuple(sorted(draw.sample(range(bands), 4))))
    return np.array(sorted(chosen), np.int64).reshape(-1, 4)
