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


def components(n: int, pairs: np.ndarray, pieces: int = 1) -> np.ndarray:
    parent = np.arange(n)
    for piece in np.array_split(pairs, pieces):
        minhash.unite(parent, piece)
    minhash.flatten(parent)
    return parent


def test_union_find_agrees_with_scipy_and_names_the_smallest():
    draw = np.random.default_rng(6)
    for n, n_pairs in ((1, 0), (50, 30), (2000, 1500), (2000, 6000)):
        pairs = draw.integers(0, n, (n_pairs, 2))
        roots = components(n, pairs)
        graph = coo_array((np.ones(n_pairs), (pairs[:, 0], pairs[:, 1])), (n, n))
        _, labels = connected_components(graph, directed=False)
        smallest = {label: node for node, label in reversed(list(enumerate(labels)))}
        assert roots.tolist() == [smallest[label] for label in labels]
        assert (components(n, draw.permutation(pairs), 7) == roots).all()


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 2 / 3, 0.9, 1.0])
def test_jaccard_from_a_threshold_on_gives_up_nothing_that_reaches_it(threshold):
    draw = random.Random(2)
    rows = [draw.sample(range(14), draw.randrange(1, 14)) for _ in range(60)]
    left = minhash.unique_sets(*ragged(rows))
    right = minhash.unique_sets(*ragged(rows[::-1]))
    pairs = np.array(list(itertools.product(range(60), repeat=2)))
    expected = np.array(
        [len(set(rows[a]) & set(rows[59 - b])) / len(set(rows[a]) | set(rows[59 - b])) for a, b in pairs]
    )
    got = minhash.jaccard_from(*left, *right, pairs, threshold)
    assert got.tolist() == np.where(expected >= threshold, expected, -1).tolist()


@pytest.mark.parametrize("first_new", [0, 120, 300])
def test_bounded_buckets_compare_what_is_new_and_say_which_are_large(first_new):
    draw, window = np.random.default_rng(8), 6
    keys = draw.integers(0, 60, 300).astype(np.uint64)
    keys[draw.integers(0, 300, 40)] = 7
    order = np.argsort(keys, kind="stable")
    pairs, large, missed = minhash.bucket_pairs_bounded(keys[order], order, window, first_new)
    expected, expected_large, n_missed = set(), set(), 0
    for key in np.unique(keys):
        members = np.flatnonzero(keys == key).tolist()
        for k, document in enumerate(members):
            if document < first_new:
                continue
            earlier = set(members[max(k - window, 0) : k]) | set(members[: min(k, 1)])
            expected |= {(other, document) for other in earlier}
            n_missed += k - len(earlier)
            if k > window:
                expected_large |= set(members)
    assert {tuple(pair) for pair in pairs.tolist()} == expected
    assert len(pairs) == len(expected)
    assert set(order[large].tolist()) == expected_large
    assert missed == n_missed


def test_pairs_of_keys_are_equal_for_equal_pairs_only():
    values, starts = minhash.pairs_of_keys(*ragged([[1, 5, 9], [], [5, 9], [4], [1, 9, 12]]))
    assert starts.tolist() == [0, 3, 3, 4, 4, 7]
    assert values[2] == values[3]
    assert values[1] == values[4]
    assert len(set(values.tolist())) == 5


def test_keys_of_subsets_are_equal_for_equal_keys_of_all_their_bands():
    keys = [[0x100, 0x201, 0x302], [0x100, 0x201, 0x402], [0x201, 0x302], []]
    values, starts = minhash.keys_of_subsets(*ragged(keys), np.array([[0, 1], [1, 2]]))
    assert starts.tolist() == [0, 2, 4, 5, 5]
    assert values[0] == values[2]
    assert values[1] == values[4]
    assert len(set(values.tolist())) == 3


def settled(
    n: int, alike: dict[tuple[int, int], float], found: set[tuple[int, int]]
) -> tuple[list[int], int]:
    """`settle` of the pairs that were found, with `alike` as the truth for those that it asks for."""
    tested: dict[tuple[int, int], float] = {}
    kept, similarity = np.arange(n), np.empty(n)
    for calls in itertools.count():
        pairs = np.array(sorted(found, key=lambda pair: pair[::-1])).reshape(-1, 2)
        others = np.array(sorted(tested, key=lambda pair: pair[::-1]), np.int64).reshape(-1, 2)
        values = np.array([alike[tuple(pair)] for pair in pairs.tolist()])
        asked = minhash.settle(
            kept,
            pairs,
            values,
            others,
            np.array([tested[tuple(pair)] for pair in others.tolist()]),
            0,
            similarity,
        )
        for document, other in enumerate(kept.tolist()):
            assert kept[other] == other
            assert other == document or similarity[document] == alike[other, document]
        if not len(asked):
            return kept.tolist(), calls
        assert not {tuple(pair) for pair in asked.tolist()} & set(tested)
        tested |= {tuple(pair): alike.get(tuple(pair), -1.0) for pair in asked.tolist()}
    raise AssertionError


def test_a_document_whose_likes_have_gone_is_compared_with_what_they_went_for():
    # 1 and 2 are both like 0, but only 0 ~ 1 ~ 2 was found; 3 is like 2 only.
    alike = {(0, 1): 0.9, (1, 2): 0.8, (0, 2): 0.75, (2, 3): 0.7}
    assert settled(4, alike, {(0, 1), (1, 2), (2, 3)}) == ([0, 0, 0, 3], 2)
    assert settled(4, alike, set(alike)) == ([0, 0, 0, 3], 1)


def test_settling_agrees_with_deciding_one_document_after_another():
    draw = random.Random(10)
    for _ in range(50):
        n = 40
        every = [(i, j) for j in range(n) for i in range(j)]
        alike = {pair: draw.uniform(0.7, 1) for pair in every if draw.random() < 0.15}
        found = {pair for pair in alike if draw.random() < 0.6}
        kept = list(range(n))
        for j in range(n):
            likes = [i for i in range(j) if (i, j) in found]
            options = [i for i in likes if kept[i] == i]
            options = options or [kept[i] for i in likes if (kept[i], j) in alike]
            kept[j] = min(options, default=j)
        assert settled(n, alike, found)[0] == kept
