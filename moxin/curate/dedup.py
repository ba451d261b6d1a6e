"""Which documents repeat others: exact hashes, then MinHash-LSH candidates that true Jaccard similarity confirms.

Arrays over documents in order of priority (source first, then id): the smaller number of two that are alike stays, so the
result does not depend on the order in which anything was read.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kernels import minhash

WINDOW = 64
"""Earlier members of an LSH bucket that a document is compared with, besides the first."""

Sets = tuple[NDArray[np.uint64], NDArray[np.int64]]


@dataclass(frozen=True)
class NearDuplicates:
    """What the near-duplicate search found among n documents."""

    kept: NDArray[np.int64]
    """int64[n]: the document that stands for each; itself where it stays."""
    similarity: NDArray[np.float64]
    """float64[n]: true Jaccard similarity with that document; 1 with itself."""
    n_candidates: int
    """Pairs that share a band; the share of them that is not alike shows whether bands and rows suit the text."""
    n_confirmed: int
    largest_group: int
    """Documents in the largest connected component of confirmed pairs. A huge one means templated text."""


def exact(hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The first document with the same hash (uint64[n, 2]) for every document: int64[n]."""
    _, first, inverse = np.unique(hashes, axis=0, return_index=True, return_inverse=True)
    return first[inverse.reshape(-1)]


def near(
    bands: NDArray[np.uint64], threshold: float, shingle_sets: Callable[[NDArray[np.int64]], Sets]
) -> NearDuplicates:
    """Near-duplicates among documents with the LSH keys `bands`, uint64[n, n_bands].

    `shingle_sets` gives the sets of the documents asked for (sorted numbers) as a ragged array; only candidates are asked
    for. Memory is 8 bytes per document and band, 16 per candidate pair, 8 per shingle of a candidate.
    """
    n = len(bands)
    found = [np.empty(0, np.int64)]
    for band in range(bands.shape[1]):
        keys = np.ascontiguousarray(bands[:, band])
        pairs = minhash.bucket_pairs(keys, np.argsort(keys, kind="stable"), WINDOW)
        # One number per pair, the larger document first: unique() then sorts as `representatives` needs it.
        found = [np.unique(np.concatenate([*found, pairs[:, 1] * n + pairs[:, 0]]))]
    pairs = np.stack([found[0] % max(n, 1), found[0] // max(n, 1)], axis=1)
    members = np.unique(pairs)
    similarity = minhash.jaccard(*shingle_sets(members), np.searchsorted(members, pairs))
    pairs, similarity = pairs[similarity >= threshold], similarity[similarity >= threshold]
    groups = minhash.connected_components(n, pairs)
    kept = minhash.representatives(n, pairs)
    alike = np.ones(n)
    chosen = kept[pairs[:, 1]] == pairs[:, 0]
    alike[pairs[chosen, 1]] = similarity[chosen]
    return NearDuplicates(kept, alike, len(found[0]), len(pairs), int(np.bincount(groups).max()) if n else 0)
