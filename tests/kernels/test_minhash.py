"""MinHash against datasketch, LSH and Jaccard against brute force, union-find against scipy."""

import itertools
import random

import numpy as np
import pytest
from datasketch import MinHash
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from kernels import minhash


def ragged(rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    flat = np.array([value for row in rows for value in row], np.uint64)
    return flat, np.cumsum([0] + [len(row) for row in rows])


@pytest.mark.parametrize(("n", "seed"), [(128, 1), (16, 42)])
def test_signatures_are_those_of_datasketch_bit_for_bit(n, seed):
    draw = np.random.default_rng(0)
    rows = [draw.integers(0, 2**64, size, dtype=np.uint64).tolist() for size in (0, 1, 2, 50, 3000)]
    rows.append([0, 2**32 - 1, 2**32, 2**64 - 1])
    ours = minhash.signatures(*ragged(rows), *minhash.permutations(n, seed))
    for row, signature in zip(rows, ours, strict=True):
        theirs = MinHash(n, seed, scheme="affine32", hashfunc=lambda value: value % 2**32)
        theirs.update_batch(row)
        assert signature.tolist() == theirs.hashvalues.tolist()


def test_ngrams_tell_order_and_length_apart():
    rows = [[1, 2, 3, 4], [1, 2, 3], [3, 2, 1], [1, 2], [], [1, 2, 3, 1, 2, 3]]
    values, starts = minhash.ngrams(*ragged(rows), 3)
    grams = [values[a:b].tolist() for a, b in itertools.pairwise(starts)]
    assert [len(gram) for gram in grams] == [2, 1, 1, 1, 0, 4]
    assert grams[0][0] == grams[1][0] == grams[5][0] == grams[5][3]
    assert len({grams[0][0], grams[0][1], grams[2][0], grams[3][0], grams[5][1], grams[5][2]}) == 6


def test_jaccard_is_that_of_python_sets():
    draw = random.Random(1)
    rows = [[draw.randrange(40) for _ in range(draw.randrange(60))] for _ in range(60)] + [[], []]
    pairs = np.array([(i, j) for j in range(len(rows)) for i in range(j)])
    got = minhash.jaccard(*minhash.unique_sets(*ragged(rows)), pairs)
    for (i, j), value in zip(pairs, got, strict=True):
        union = set(rows[i]) | set(rows[j])
        assert value == (len(set(rows[i]) & set(rows[j])) / len(union) if union else 0)


def test_lsh_finds_what_its_curve_promises():
    """1 - (1 - J^rows)^bands (Leskovec, Rajaraman, Ullman, §3.4) within four standard errors, for pairs of known J."""
    draw, n, bands, rows = np.random.default_rng(3), 600, 16, 8
    for overlap in (0.6, 0.75, 0.9):
        common = round(200 * 2 * overlap / (1 + overlap))
        values = draw.integers(0, 2**64, (n, 400 - common), dtype=np.uint64)
        pairs = [part.tolist() for row in values for part in (row[:200], row[200 - common :])]
        keys = minhash.band_keys(
            minhash.signatures(*ragged(pairs), *minhash.permutations(bands * rows)), bands
        )
        found = (keys[::2] == keys[1::2]).any(axis=1).mean()
        true = common / (400 - common)
        expected = 1 - (1 - true**rows) ** bands
        assert abs(found - expected) < 4 * np.sqrt(expected * (1 - expected) / n) + 0.01


def test_bucket_pairs_are_all_pairs_of_a_bucket_up_to_the_window():
    keys = np.random.default_rng(5).integers(0, 30, 300).astype(np.uint64)
    order = np.argsort(keys, kind="stable")
    everyone = {(i, j) for j in range(300) for i in range(j) if keys[i] == keys[j]}
    assert {tuple(pair) for pair in minhash.bucket_pairs(keys, order, 300).tolist()} == everyone
    few = minhash.bucket_pairs(keys, order, 2).tolist()
    assert len({tuple(pair) for pair in few}) == len(few) <= 3 * 300
    assert {tuple(pair) for pair in few} < everyone
    joined = minhash.connected_components(300, np.array(few))
    assert all(joined[i] == joined[j] for i, j in everyone)


def test_union_find_agrees_with_scipy_and_names_the_smallest():
    draw = np.random.default_rng(6)
    for n, n_pairs in ((1, 0), (50, 30), (2000, 1500), (2000, 6000)):
        pairs = draw.integers(0, n, (n_pairs, 2))
        roots = minhash.connected_components(n, pairs)
        graph = coo_array((np.ones(n_pairs), (pairs[:, 0], pairs[:, 1])), (n, n))
        _, labels = connected_components(graph, directed=False)
        smallest = {label: node for node, label in reversed(list(enumerate(labels)))}
        assert roots.tolist() == [smallest[label] for label in labels]
        assert (minhash.connected_components(n, draw.permutation(pairs)) == roots).all()


def test_a_chain_keeps_what_is_not_like_a_kept_document():
    chain = np.array([(0, 1), (1, 2), (2, 3), (1, 4)])  # 0 ~ 1 ~ 2 ~ 3 and 1 ~ 4
    assert minhash.representatives(6, chain).tolist() == [0, 0, 2, 2, 4, 5]
