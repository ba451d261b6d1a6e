"""Words by Unicode's word boundaries, against uniseg, which DCLM uses; where it is not installed, against known cases.

uniseg 0.10 has the properties of Unicode 16.0, our table those of 18.0: text is made of the code points that are the same in
both. Of those that 16.0 assigns, they differ in U+00B8 and in pictographs that are no emoji (after a ZWJ).
"""

import functools
import itertools
import json
import random
from pathlib import Path

import numpy as np
import pytest
import zstandard
from fuzz_text import buffers, document
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import words_uax29

CORPUS = Path(__file__).resolve().parents[3] / "shared" / "data" / "corpus"
CASES = {
    "": "",
    " \t\n\u3000 \u2028\x85\u00a0\x1c": "",
    "The quick (“brown”) fox can’t jump 32.3 feet, right?": (
        "The|quick|(|“|brown|”|)|fox|can’t|jump|32.3|feet|,|right|?"
    ),
    "a.b a..b a. .b 1,2 1,,2 1;2 1:2 a:b a,b 3.a a.3 a'b a'1 1'2": (
        "a.b|a|.|.|b|a|.|.|b|1,2|1|,|,|2|1;2|1|:|2|a:b|a|,|b|3|.|a|a|.|3|a'b|a|'|1|1'2"
    ),
    "snake_case __x_1_ _ a-b x=y U.S.A. 'n' v2.0b": "snake_case|__x_1_|_|a|-|b|x|=|y|U.S.A|.|'|n|'|v2.0b",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f\u200d\U0001f525 \U0001f44d\U0001f3fd!": (
        "\U0001f468\u200d\U0001f469\u200d\U0001f467|\u2764\ufe0f\u200d\U0001f525|\U0001f44d\U0001f3fd|!"
    ),
    "a\u200d\U0001f525b \u200d\u2614": "a\u200d\U0001f525|b| \u200d\u2614",  # WB3c
    "\U0001f1e9\U0001f1ea\U0001f1eb\U0001f1f7\U0001f1ee x\U0001f1e9\u0308\U0001f1ea\U0001f1eb": (  # WB15, WB16
        "\U0001f1e9\U0001f1ea|\U0001f1eb\U0001f1f7|\U0001f1ee|x|\U0001f1e9\u0308\U0001f1ea|\U0001f1eb"
    ),
    "e\u0301te\u0301 \u0301 x\n\u0301y .\u0308.": "e\u0301te\u0301| \u0301|x|\u0301|y|.\u0308|.",  # WB4
    "a\u0308'\u0308b 1\u0308.\u03082 a'\u0308 b": "a\u0308'\u0308b|1\u0308.\u03082|a|'\u0308|b",
    "  \u0308 \u3000\u0308": "  \u0308| \u3000\u0308",  # WB3d, then WB4
    "x\u202fy \u202f": "x\u202fy",  # U+202F joins words, and alone it is white space
    "צה״ל צה\"ל ג' 'א א'ב א'1 \"א\"": "צה״ל|צה\"ל|ג'|'|א|א'ב|א'|1|\"|א|\"",  # WB7a, b, c
    "カタカナ ｶﾀ カ_ナ ひらがな 漢字 カa": "カタカナ|ｶﾀ|カ_ナ|ひ|ら|が|な|漢|字|カ|a",  # WB13
    "मैं सुबह مرحبا بالعالم สวัสดี": "मैं|सुबह|مرحبا|بالعالم|ส|วั|ส|ดี",
    "a\x00b \x00 \x00\u0301": "a|\x00|b|\x00|\x00\u0301",
    "\u200f\u202bab\u202c c\u00add \ufeff": "\u200f\u202b|ab\u202c|c\u00add| \ufeff",  # Format
}


def words(documents: list[str]) -> list[list[str]]:
    data, offsets = buffers(documents)
    starts, ends, doc_starts = words_uax29.split(data, offsets)
    found = [data[a:b].tobytes().decode() for a, b in zip(starts, ends, strict=True)]
    return [found[a:b] for a, b in itertools.pairwise(doc_starts)]


def entries() -> np.ndarray:
    """The table by code point, uint8."""
    blocks, entries, _, _ = words_uax29.tables()
    return entries.reshape(-1, 1 << words_uax29.BLOCK_BITS)[blocks].ravel()


@functools.cache
def same_points() -> list[str]:
    """Code points with equal properties here and in uniseg, by class."""
    wordbreak, emoji = pytest.importorskip("uniseg.wordbreak"), pytest.importorskip("uniseg.emoji")
    out: list[list[str]] = [[] for _ in words_uax29.CLASSES]
    for point, entry in enumerate(entries().tolist()):
        char, name = chr(point), words_uax29.CLASSES[entry & 31]
        if 0xD800 <= point < 0xE000 or wordbreak.word_break(char).value.upper() != name:
            continue
        if emoji.extended_pictographic(char) == bool(entry & 64):
            out[entry & 31].append(char)
    return ["".join(chars) for chars in out]


@functools.cache
def known_points() -> frozenset[str]:
    return frozenset(char for chars in same_points() for char in chars)


def assert_same(documents: list[str]) -> None:
    wordbreak = pytest.importorskip("uniseg.wordbreak")
    same = known_points()
    documents = ["".join(char for char in text if char in same) for text in documents]
    for text, ours in zip(documents, words(documents), strict=True):
        assert ours == [word for word in wordbreak.words(text) if word.strip()], repr(text)


def test_known_cases():
    for (text, expected), found in zip(CASES.items(), words(list(CASES)), strict=True):
        assert found == [word for word in expected.split("|") if word], repr(text)
    assert_same(list(CASES))


def test_the_table_is_that_of_the_standard():
    """As far as uniseg and the table speak of the same version; the rest is new, or no longer a pictograph."""
    points = sum(map(len, same_points()))
    assert points > 0x110000 - 0x800 - 1600
    assert all(same_points())
    blank = {chr(point) for point in np.flatnonzero(entries() & 32).tolist()}
    assert blank == {chr(point) for point in range(0x110000) if chr(point).isspace()}


@pytest.mark.parametrize("seed", range(3))
def test_fuzzed_documents_have_unisegs_words(seed: int):
    draw = random.Random(seed)
    assert_same([document(draw) for _ in range(150)])


def test_every_sequence_of_classes_is_cut_as_by_uniseg():
    draw, points = random.Random(7), same_points()
    marks = [
        points[words_uax29.CLASSES.index(name)]
        for name in ("OTHER", "ALETTER", "EXTEND", "NUMERIC", "MIDNUM")
    ]
    pictographs = "".join(chr(point) for point in np.flatnonzero(entries() & 64))
    for pools in (points, [*points, pictographs, "a", "1", "\u200d"], marks):
        assert_same(
            ["".join(draw.choice(draw.choice(pools)) for _ in range(draw.randrange(50))) for _ in range(400)]
        )
    classes = [chars[-1] for chars in points]
    assert_same(["".join(chars) for chars in itertools.product(classes, repeat=3)])


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.text(max_size=40)
        | st.text("ab1,.:;'\"_ \u05d0\u0308\u200d\U0001f1e6\u261d\u30a2\r\n\t\u202f\u24c2")
    )
)
def test_any_text_has_unisegs_words(documents: list[str]):
    assert_same(documents)


def test_380_languages_have_unisegs_words():
    path = CORPUS / "udhr2.jsonl.zst"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    raw = zstandard.ZstdDecompressor().stream_reader(path.read_bytes()).read().decode()
    documents = [json.loads(line)["text"] for line in raw.split("\n") if line]
    assert len(documents) >= 380
    assert_same([text[:1500] for text in documents])


def test_a_slice_of_a_batch_has_the_words_of_the_batch():
    data, offsets = buffers(list(CASES))
    starts, ends, doc_starts = words_uax29.split(data, offsets)
    a, b = doc_starts[3], doc_starts[9]
    part = words_uax29.split(data, offsets[3:10])
    assert (part[0] == starts[a:b]).all()
    assert (part[1] == ends[a:b]).all()
    assert (part[2] == doc_starts[3:10] - a).all()
    assert [array.dtype for array in part] == [np.int64] * 3
    assert [array.size for array in words_uax29.split(data[:0], np.zeros(1, np.int64))] == [0, 0, 1]


def test_bytes_that_are_no_utf8_do_no_harm():
    draw = np.random.default_rng(3)
    encoded = "añ漢\U0001f468\u200d\U0001f469 e\u0301'b 1,2".encode()
    pools = [np.arange(256), np.arange(128, 256), np.frombuffer(encoded, np.uint8)]
    for pool in pools:
        for _ in range(200):
            data = draw.choice(pool, draw.integers(1, 60)).astype(np.uint8)
            cuts = np.sort(draw.integers(0, data.size + 1, 3))
            offsets = np.array([0, *cuts, data.size], np.int64)
            starts, ends, doc_starts = words_uax29.split(data, offsets)
            assert (starts < ends).all()
            assert (ends[:-1] <= starts[1:]).all()
            for doc in range(4):
                of_doc = slice(doc_starts[doc], doc_starts[doc + 1])
                assert (starts[of_doc] >= offsets[doc]).all()
                assert (ends[of_doc] <= offsets[doc + 1]).all()
    # A character cut short is not completed from the document after it.
    both = np.frombuffer(b"x" + "é".encode(), np.uint8)
    starts, ends, _ = words_uax29.split(both, np.array([0, 2, 3]))
    assert [*zip(starts.tolist(), ends.tolist(), strict=True)] == [(0, 1), (1, 2), (2, 3)]


def test_long_documents_take_time_in_proportion():
    """With time that grows with the square each of these would take minutes."""
    n = 300_000
    pieces = [
        "a",
        ".",
        "a.",
        "a'\u0308",
        "\u0308",
        "1,",
        "é",
        "\U0001f1e9",
        "\u200d\u2614",
        "א'",
        'א"',
        "_\u30a2",
        " ",
    ]
    found = words([piece * n for piece in pieces])
    assert [len(found[k]) for k in (0, 1, 4, 6, 12)] == [1, n, 1, 1, 0]
    assert all("".join(ours) == piece * n for piece, ours in zip(pieces[:-1], found, strict=False))
