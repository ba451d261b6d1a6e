"""What has wiped out whole sources elsewhere: templates, boilerplate, near-empty pages, one document many times."""

import itertools
import random

import numpy as np
import pytest

from moxin.curate import fuzzy, fuzzy_shingles
from moxin.curate.fuzzy_candidates import candidates
from moxin.curate.fuzzy_keys import Search, write_keys
from moxin.curate.fuzzy_shingles import Params

FINEWEB = fuzzy_shingles.published("fineweb")


def function_calls(n: int, copies: int) -> tuple[list[str], int]:
    """Records that share a frame, and copies of some with one word changed. Returns them and how many are not copies."""
    draw = random.Random(1)
    frame = " ".join(f"field{k} string required description" for k in range(24))
    records = []
    for _ in range(n):
        topic = " ".join(f"topic{draw.randrange(10**6)}" for _ in range(20))
        records.append(f"{frame} name {topic} returns object status code message")
    for record in draw.sample(records, copies):
        words = record.split()
        words[-28] = "changed"
        records.append(" ".join(words))
    return records, n


def books(n: int) -> list[str]:
    draw = random.Random(2)
    licence = " ".join(f"licence{k}" for k in range(900))
    return [
        licence + " " + " ".join(f"w{draw.randrange(20_000)}" for _ in range(draw.randrange(400, 2500)))
        for _ in range(n)
    ]


def near_empty(n: int) -> list[str]:
    return [
        f"404 not found page {k % 50}" if k % 2 else ("home", "login", "", "...")[k % 4] for k in range(n)
    ]


def sets_of(documents: list[str], params: Params) -> list[set[int]]:
    values, starts = fuzzy_shingles.sets(fuzzy_shingles.batches(documents, len(documents) or 1)[0], params)
    return [set(values[a:b].tolist()) for a, b in itertools.pairwise(starts)]


def check(documents: list[str], params: Params) -> tuple[list[int], fuzzy.Summary]:
    """Searches, and holds whatever went against what stands for it."""
    found = fuzzy.find([documents[::3], documents[1::3], documents[2::3]], params)
    ordered = documents[::3] + documents[1::3] + documents[2::3]
    sets = sets_of(ordered, params)
    gone = np.flatnonzero(found.kept != np.arange(len(ordered))).tolist()
    for row in gone:
        kept = int(found.kept[row])
        true = len(sets[row] & sets[kept]) / len(sets[row] | sets[kept])
        assert found.kept[kept] == kept
        assert true == found.similarity[row] >= params.threshold
    return gone, found.summary


@pytest.mark.parametrize("unit", ["words", "characters"])
def test_records_of_one_template_stay_and_their_copies_go(unit):
    params = Params(14, 8, 5, unit, 0.9)
    records, n = function_calls(3000, 300)
    gone, summary = check(records, params)
    assert summary.beyond > 0
    assert 0.85 * 300 <= len(gone) <= 300
    assert len(records) - len(gone) >= n


def test_books_with_the_same_licence_stay():
    gone, _ = check(books(300) + books(3), FINEWEB)
    assert len(gone) == 3


def test_pages_without_text_go_only_where_they_are_equal():
    gone, _ = check(near_empty(2000), Params(14, 8, 3, threshold=0.7, short=True))
    n_distinct, n_without_words = 25 + 1, 500
    assert 2000 - len(gone) == n_distinct + n_without_words
    assert check(near_empty(2000), Params(14, 8, 6))[0] == []


def test_one_document_twenty_thousand_times_leaves_one():
    document = " ".join(f"w{k}" for k in range(60))
    gone, summary = check([document] * 20_000, FINEWEB)
    assert len(gone) == 19_999
    assert summary.alike == 19_999
    assert summary.largest_documents == 20_000


@pytest.mark.parametrize("n", [500, 1000, 2000])
def test_pairs_grow_with_documents_and_not_with_their_square(tmp_path, n):
    """All in one bucket of nearly every band, at all levels."""
    params = Params(5, 1, 5, threshold=0.9, window=16)
    records, _ = function_calls(n, 0)
    unit = write_keys(str(tmp_path), 0, 0, 0, fuzzy_shingles.batches(records), params)
    search = Search(str(tmp_path), (unit,), params, 1)
    first = candidates(search, 0)
    fuzzy.refine(search, 0)
    second = candidates(search, 0, 2)
    fuzzy.refine(search, 0, 3)
    third = candidates(search, 0, 3)
    assert n * 16 / 2 < first <= 5 * n * 17
    assert 0 < second <= 10 * n * 5
    assert 0 < third <= 5 * n * 5


def test_copies_in_a_template_are_found_wherever_they_are():
    """A window of 2: nearly every bucket is too large for it, and copies lie a thousand documents away."""
    params = Params(14, 8, 5, threshold=0.9, window=2)
    records, _ = function_calls(4000, 200)
    gone, summary = check(records, params)
    assert summary.beyond > 10**6
    assert len(gone) >= 198
