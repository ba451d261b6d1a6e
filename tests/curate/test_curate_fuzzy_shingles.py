"""Shingles against plain Python, signatures against datasketch, bands and rows against its optimum."""

import itertools
import re
import string
import unicodedata

import numpy as np
import pyarrow as pa
import pytest
from datasketch import MinHash, MinHashLSH

from moxin.curate import fuzzy_shingles
from moxin.curate.fuzzy_shingles import Params

TEXTS = [
    "The quick brown fox jumps over the lazy dog, and the quick brown fox jumps again!",
    "  Tabs\tand\n\nlines \u00a0 \u3000 between -- words ... ",
    "Straße İstanbul ΟΔΟΣ e\u0301te\u0301 \u212b naïve ﬁn 𠀀𠀀 नमस्ते",
    "snake_case = camelCase(x1, 'It''s'); # 12 + 3",
    "a",
    "",
    "...",
    "exactly 13 ch",
    "twelve chars",
    "\x00\x00\x1c\x1d nul",
    None,
    "word " * 300 + "end",
]
MASK = 2**64 - 1
BASE = 0x9E3779B97F4A7C15


def mix64(value: int) -> int:
    value ^= value >> 33
    value = value * 0xFF51AFD7ED558CCD & MASK
    value ^= value >> 33
    value = value * 0xC4CEB9FE1A85EC53 & MASK
    return value ^ value >> 33


def polynomial(values: list[int]) -> int:
    state = 0
    for value in values:
        state = (state * BASE + value) & MASK
    return mix64(state)


def word_hash(word: str) -> int:
    state = 0xCBF29CE484222325
    for char in word:
        state = (state ^ ord(char)) * 0x100000001B3 & MASK
    return mix64(state)


def units(text: str, unit: str) -> list[int]:
    if unit == "characters":
        folded = unicodedata.normalize("NFC", text).lower()
        folded = folded.translate(str.maketrans("", "", string.punctuation))
        return [ord(char) + 1 for char in re.sub(r"\s+", " ", folded.strip())]
    if unit == "identifiers":
        return [word_hash(word) for word in re.findall(r"[A-Za-z0-9_]+", text)]
    marks = "".join(char if char.isalnum() or unicodedata.category(char)[0] == "M" else " " for char in text)
    return [word_hash("".join(char.lower()[0] for char in word)) for word in marks.split()]


def shingles(text: str | None, params: Params) -> list[int]:
    values, n = units(text or "", params.unit), params.shingle
    if len(values) < n:
        return [polynomial(values)] if values and params.short else []
    return [polynomial(values[k : k + n]) for k in range(len(values) - n + 1)]


CASES = {
    **fuzzy_shingles.PUBLISHED,
    "short words": Params(4, 4, short=True, seed=7),
    "short characters": Params(5, 3, 5, "characters", short=True),
}


@pytest.mark.parametrize("name", CASES)
def test_shingles_are_those_of_plain_python_and_signatures_those_of_datasketch(name):
    params = CASES[name]
    column = pa.array(["left out", *TEXTS], pa.large_string()).slice(1)
    grams = fuzzy_shingles.shingles(column, params)
    expected = [shingles(text, params) for text in TEXTS]
    assert grams[1].tolist() == np.cumsum([0] + [len(row) for row in expected]).tolist()
    assert grams[0].tolist() == [value for row in expected for value in row]
    n = params.permutations or params.bands * params.rows
    for row, ours in zip(expected, fuzzy_shingles.signatures(grams, params), strict=True):
        theirs = MinHash(n, params.seed, scheme="affine32", hashfunc=lambda value: value % 2**32)
        theirs.update_batch(row)
        assert ours.tolist() == theirs.hashvalues[: params.bands * params.rows].tolist()
    sets, starts = fuzzy_shingles.sets(column, params)
    assert [set(sets[a:b].tolist()) for a, b in itertools.pairwise(starts)] == [set(row) for row in expected]


@pytest.mark.parametrize(("threshold", "n"), [(0.7, 256), (0.5, 64), (0.85, 128), (0.9, 100)])
def test_bands_and_rows_are_the_optimum_that_datasketch_finds(threshold, n):
    lsh = MinHashLSH(threshold, n)
    assert fuzzy_shingles.optimal(threshold, n) == (lsh.b, lsh.r)


def test_published_settings_have_the_published_numbers():
    found = {name: (p.bands, p.rows, p.shingle) for name, p in fuzzy_shingles.PUBLISHED.items()}
    assert found == {
        "fineweb": (14, 8, 5),
        "slimpajama": (9, 13, 13),
        "redpajama-0.7": (14, 9, 13),
        "redpajama-0.8": (9, 13, 13),
        "redpajama-0.9": (5, 25, 13),
        "the-stack": (25, 10, 5),
    }
    assert fuzzy_shingles.published("fineweb").catch(0.8) == pytest.approx(0.924, abs=0.001)
    with pytest.raises(ValueError, match=r"'slimpyjama'.*did you mean 'slimpajama'"):
        fuzzy_shingles.published("slimpyjama")


def test_fitted_bands_catch_what_is_asked_with_the_most_rows():
    bands, rows = fuzzy_shingles.fit(0.7, 128, 0.95)
    assert Params(bands, rows).catch(0.7) >= 0.95 > Params(128 // (rows + 1), rows + 1).catch(0.7)
    with pytest.raises(ValueError, match="take more"):
        fuzzy_shingles.fit(0.1, 2)


def test_two_bands_are_shared_as_often_as_the_binomial_says():
    params, band = Params(6, 2), 0.8**2
    expected = 1 - (1 - band) ** 6 - 6 * band * (1 - band) ** 5
    assert params.catch_twice(0.8) == pytest.approx(expected)


@pytest.mark.parametrize(
    "wrong", [{"bands": 0}, {"threshold": 0.0}, {"unit": "lines"}, {"permutations": 100}, {"window": 0}]
)
def test_settings_that_cannot_be_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Params(**wrong).validate()
