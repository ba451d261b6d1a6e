"""Cuts and hashes against Python's strings and mmh3, Bloom filters against the textbook, BFF against sets of n-grams."""

import itertools
import math
import random

import mmh3
import numpy as np
import pytest

from kernels import bloom, spans, words

PIECES = [
    *[
        "the ",
        "OF\n",
        " ",
        "  ",
        "\n",
        "\n\n",
        "\n\n\n",
        "Ab",
        "ß",
        "é",
        "e\u0301",
        "中",
        "😀",
        "#",
        ".",
        "7",
        "\t",
    ],
    *[
        "\u2028",
        "İ",
        "\r\n",
        "\r",
        "\x00",
        "\u212a",
        "Ⱥ",
        "ΣΑΣ ",
        "ς",
        "\x1c",
        "\x85",
        "\u3000",
        "Z[@`{az",
        "\U00010400",
    ],
]


def buffers(documents: list[str]) -> tuple[np.ndarray, np.ndarray]:
    encoded = [document.encode() for document in documents]
    return np.frombuffer(b"".join(encoded), np.uint8), np.cumsum([0] + [len(item) for item in encoded])


def texts(data: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> list[str]:
    return [data[a:b].tobytes().decode() for a, b in zip(starts, ends, strict=True)]


def random_documents(seed: int, n: int) -> list[str]:
    draw = random.Random(seed)
    return ["", "\n", "\n\n", "a"] + ["".join(draw.choices(PIECES, k=draw.randrange(60))) for _ in range(n)]


def normal(text: str, form: int) -> str:
    lower = text.lower().replace("ς", "σ")
    return {spans.RAW: text, spans.WORDS: " ".join(lower.split()), spans.LINE: lower.strip()}[form]


@pytest.mark.parametrize(("n_line_feeds", "separator"), [(0, None), (1, "\n"), (2, "\n\n")])
def test_pieces_their_hashes_and_what_is_joined_are_those_of_python(n_line_feeds, separator):
    documents = random_documents(1, 1500)
    data, offsets = buffers(documents)
    starts, ends, doc_starts = spans.cut(data, offsets, n_line_feeds)
    expected = [document.split(separator) if separator else [document] for document in documents]
    pieces = [piece for row in expected for piece in row]
    assert texts(data, starts, ends) == pieces
    assert np.diff(doc_starts).tolist() == [len(row) for row in expected]
    for form in (spans.RAW, spans.WORDS, spans.LINE):
        hashes, n_chars = spans.hashes(data, starts, ends, form)
        forms = [normal(piece, form) for piece in pieces]
        assert n_chars.tolist() == [len(text.strip()) for text in forms]
        theirs = [mmh3.hash64(text.encode(), signed=False, x64arch=True) for text in forms]
        assert [tuple(row) for row in hashes.tolist()] == theirs
    keep = np.random.default_rng(0).random(len(starts)) < 0.6
    joined, new_offsets = spans.join(data, starts, ends, doc_starts, keep)
    for row, (document, own) in enumerate(
        zip(texts(joined, new_offsets[:-1], new_offsets[1:]), expected, strict=True)
    ):
        kept = keep[doc_starts[row] : doc_starts[row + 1]]
        assert document == (separator or "").join(
            piece for piece, stays in zip(own, kept, strict=True) if stays
        )
    everything, same_offsets = spans.join(data, starts, ends, doc_starts, np.ones(len(starts), np.bool_))
    assert (everything == data).all()
    assert (same_offsets == offsets).all()


def test_a_slice_of_a_batch_is_cut_like_the_batch_and_nothing_has_no_pieces():
    data, offsets = buffers(["a\n\nb", "c\nd", "\n", "e"])
    assert texts(data, *spans.cut(data, offsets[1:4], 1)[:2]) == ["c", "d", "", ""]
    for n_line_feeds in (0, 1, 2):
        starts, ends, doc_starts = spans.cut(*buffers([]), n_line_feeds)
        assert (len(starts), len(ends), doc_starts.tolist()) == (0, 0, [0])


def test_one_line_of_fifty_megabytes():
    text = "A word, " * 6_250_000
    data, offsets = buffers([text])
    starts, ends, _ = spans.cut(data, offsets, 1)
    hashes, n_chars = spans.hashes(data, starts, ends, spans.WORDS)
    assert tuple(hashes[0].tolist()) == mmh3.hash64(text.lower().strip().encode(), signed=False, x64arch=True)
    assert n_chars.tolist() == [50_000_000 - 1]


@pytest.mark.parametrize("fp_rate", [0.5, 0.1, 0.01, 1e-3, 1e-6, 1e-9])
def test_the_size_is_the_smallest_that_keeps_the_rate(fp_rate):
    """Compared with every number of hashes up to 60; and within 3 % of the textbook's -n ln p / (ln 2)^2."""
    n = 1_000_003
    n_bits, n_hashes = bloom.size(n, fp_rate)
    assert (1 - math.exp(-n_hashes * n / n_bits)) ** n_hashes <= fp_rate * (1 + 1e-9)
    others = [(1 - math.exp(-k * n / (n_bits - 100))) ** k for k in range(1, 60)]
    assert min(others) > fp_rate
    assert abs(n_hashes - math.log2(1 / fp_rate)) < 1
    assert n_bits == pytest.approx(-n * math.log(fp_rate) / math.log(2) ** 2, rel=0.03)


@pytest.mark.parametrize(
    ("fp_rate", "shard_bytes"), [(0.01, 2**30), (0.01, 50_000), (0.2, 7_000), (1e-3, 2**30)]
)
def test_the_rate_is_that_of_the_textbook_and_nothing_added_is_ever_denied(fp_rate, shard_bytes):
    n, n_asked = 200_000, 1_000_000
    draw = np.random.default_rng(7).integers(0, 2**64, n + n_asked, dtype=np.uint64)
    filter_ = bloom.Bloom(n, fp_rate, shard_bytes=shard_bytes)
    half = bloom.Bloom(n, fp_rate, shard_bytes=shard_bytes)
    filter_.judge(draw[: n // 2], np.arange(n // 2 + 1), 1.0)
    half.add(draw[: n // 2][::-1])
    assert (filter_.bits == half.bits).all()
    filter_.add(
        draw[n // 2 : n - n // 100]
    )  # a hundredth less: those taken for known are not counted as added
    added = n - n // 100
    assert filter_.contains(draw[:added]).all()
    # Bits are whole words per shard, so it is a little better than asked for.
    n_bits = filter_.bits.size * 64
    expected = (1 - math.exp(-filter_.n_hashes * added / n_bits)) ** filter_.n_hashes
    found = filter_.contains(draw[n:]).mean()
    # Four standard errors, and those of the filter itself: the fill of n_bits bits varies by less than 0.5 %.
    assert abs(found - expected) < 4 * math.sqrt(expected / n_asked) + 0.02 * expected
    assert found < fp_rate * 1.05
    assert filter_.fill() == pytest.approx(1 - math.exp(-filter_.n_hashes * added / n_bits), rel=0.01)


def test_shards_held_apart_give_the_answers_of_one_filter():
    draw = np.random.default_rng(8).integers(0, 2**64, 60_000, dtype=np.uint64)
    whole = bloom.Bloom(50_000, 0.01, shard_bytes=9_000)
    assert whole.n_shards == 7
    whole.add(draw[:30_000])
    place, answers = bloom.shard_of(draw, whole.n_shards), np.zeros(len(draw), np.bool_)
    for shards in ([0, 3], [1], [2, 4, 5, 6]):
        part = bloom.Bloom(50_000, 0.01, shard_bytes=9_000, shards=shards)
        assert part.bits.nbytes <= 9_000 * len(shards)
        mine = np.isin(place, shards)
        part.add(draw[:30_000][mine[:30_000]])
        answers[mine] = part.contains(draw[mine])
    assert (answers == whole.contains(draw)).all()
    with pytest.raises(AssertionError):
        part.contains(draw)


def test_a_filter_refuses_to_hold_more_than_it_was_made_for():
    grams = np.random.default_rng(9).integers(0, 2**64, 3_000, dtype=np.uint64)
    filter_ = bloom.Bloom(1_000, 1e-6)
    filter_.add(grams[:900])
    filter_.add(grams[:900])  # known ones take no room
    with pytest.raises(
        ValueError, match=r"full: it was made for 1,000 .* holds 900.*Set n_expected above 1,000"
    ):
        filter_.add(grams[:1_200])
    assert not filter_.contains(grams[900:]).any()
    with pytest.raises(ValueError, match="is full"):
        filter_.judge(grams, np.arange(0, 3_001, 10), 0.8)
    assert filter_.n_added == 1_000
    assert filter_.contains(grams[:1_000]).all()
    filter_.judge(grams, np.arange(0, 3_001, 10), 0.8, update=False)
    for n_expected, fp_rate in ((0, 0.1), (10, 0.0), (10, 1.0)):
        with pytest.raises(ValueError, match="set n_expected >= 1 and 0 < fp_rate < 1"):
            bloom.size(n_expected, fp_rate)


def plain_bff(
    documents: list[str], least: int, most: int, threshold: float
) -> tuple[list[list[bool]], list[bool]]:
    """BFF's `process_line_oldboth` with a set: whether each line goes, and whether each document does."""
    known: set[tuple[str, ...]] = set()
    lines, whole = [], []
    for document in documents:
        total = total_contained = 0
        gone = []
        for line in document.split("\n"):
            tokens = line.split()
            grams = [tuple(tokens[k : k + most]) for k in range(len(tokens) - most + 1)]
            if not grams and len(tokens) >= least:
                grams = [tuple(tokens)]
            contained = sum(gram in known for gram in grams)
            total, total_contained = total + len(grams), total_contained + contained
            gone.append(bool(grams) and contained / len(grams) > threshold)
            if not gone[-1]:
                known.update(grams)
        lines.append(gone)
        whole.append(total > 0 and total_contained / total > threshold)
    return lines, whole


@pytest.mark.parametrize(
    ("least", "most", "threshold"), [(13, 13, 0.8), (3, 5, 0.5), (1, 2, 0.8), (2, 4, 0.0)]
)
def test_bff_is_the_one_of_dclm_with_a_set(least, most, threshold):
    draw = random.Random(11)
    sentences = [" ".join(draw.choices("abcdefghijklmn", k=draw.randrange(25))) for _ in range(60)]
    documents = ["\n".join(draw.choices(sentences, k=draw.randrange(8))) for _ in range(150)]
    documents += ["é\u0301 中\u3000😀 \x00\n\r\n", "", "\n\n"] * 3
    data, offsets = buffers(documents)
    starts, ends, doc_starts = spans.cut(data, offsets, 1)
    grams = bloom.word_grams(data, (starts, ends), words.split_whitespace(data, offsets)[:2], least, most)
    seen = bloom.Bloom(100_000, 1e-12).judge(*grams, threshold)
    lines, _ = plain_bff(documents, least, most, threshold)
    assert [seen.removed[a:b].tolist() for a, b in itertools.pairwise(doc_starts)] == lines
    assert 0 < seen.removed.sum() < len(starts)


def test_ngrams_tell_order_words_and_length_apart():
    data, offsets = buffers(
        ["a b c", "ab c", "a bc", "c b a", "a b", "a b c d", "longerthan8 bytes x", "longerthan8 bytesx"]
    )
    starts, ends, _ = spans.cut(data, offsets, 0)
    grams, gram_starts = bloom.word_grams(
        data, (starts, ends), words.split_whitespace(data, offsets)[:2], 2, 3
    )
    assert np.diff(gram_starts).tolist() == [1, 1, 1, 1, 1, 2, 1, 1]
    assert len(set(grams.tolist())) == 8
    assert grams[gram_starts[0]] == grams[gram_starts[5]]
    with pytest.raises(ValueError, match="set 1 <= min_words <= max_words"):
        bloom.word_grams(data, (starts, ends), (starts, ends), 5, 3)


def test_a_corpus_without_repeats_loses_nothing():
    """DCLM #83: n-grams that are added before they are looked for make every paragraph its own duplicate (98 % removed)."""
    draw = np.random.default_rng(12)
    documents = [
        "\n".join(" ".join(map(str, draw.integers(0, 10**9, 40))) for _ in range(5)) for _ in range(400)
    ]
    data, offsets = buffers(documents)
    starts, ends, _ = spans.cut(data, offsets, 1)
    grams = bloom.word_grams(data, (starts, ends), words.split_whitespace(data, offsets)[:2], 13, 13)
    seen = bloom.Bloom(len(grams[0]), 0.01).judge(*grams, 0.8)
    assert not seen.removed.any()
    assert seen.contained.sum() < 0.01 * seen.total.sum()
