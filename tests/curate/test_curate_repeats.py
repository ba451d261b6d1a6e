"""Repeats against sets and hashlib, in any order of work and after restarts, and what a unit's report says of them."""

import hashlib
import itertools
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from kernels import bloom, words
from moxin import storage
from moxin.arrow import utf8_buffers
from moxin.curate import repeats

SEPARATORS = {"document": None, "line": "\n", "paragraph": "\n\n"}
Unit = list[str]
LOW = (1 << 32) - 1


def buffers(documents: list[str]) -> tuple[np.ndarray, np.ndarray]:
    encoded = [document.encode() for document in documents]
    return np.frombuffer(b"".join(encoded), np.uint8), np.cumsum([0] + [len(item) for item in encoded])


def strings(data: np.ndarray, offsets: np.ndarray) -> list[str]:
    return [data[a:b].tobytes().decode() for a, b in itertools.pairwise(offsets)]


def corpus(seed: int, n_units: int) -> list[Unit]:
    draw = random.Random(seed)
    pool = [
        " ".join(draw.choices(["Foo", "bar", "é\u0301", "中文", "😀", "\x00", "qux\u2028"], k=9))
        for _ in range(40)
    ]
    pool += ["", " ", "}", "\t\r", "short", "  indented   TEXT that is long enough\r"]
    units = []
    for _ in range(n_units):
        unit = []
        for _ in range(draw.randrange(30)):
            chosen = [
                draw.choice([str.lower, str.upper, str])(draw.choice(pool)) for _ in range(draw.randrange(6))
            ]
            unit.append(draw.choice(["\n", "\n\n"]).join(chosen))
        units.append(unit + [draw.choice([str.upper, str])(draw.choice(old)) for old in units if old])
    units.append(
        ["One paragraph, said again and again.\n\n" * 7 + "}", "One paragraph, said again and again.\n" * 7]
    )
    return [
        *units,
        [],
        ["", "\n\n", "\n"],
        ["The same paragraph, again and again."] * 2 + ["x y z " * 9 + "\n\n"] * 2,
    ]


def cut(document: str, level: str) -> list[str]:
    return document.split(SEPARATORS[level]) if SEPARATORS[level] else [document]


def normal(text: str, form: str) -> str:
    lower = text.lower().replace("ς", "σ")
    return {"raw": text, "words": " ".join(lower.split()), "line": lower.strip()}[form]


def plain(units: list[Unit], level: str, form: str, least: int) -> tuple[list[Unit], list[list[tuple]]]:
    """Texts that stay, and of every piece that repeats: row, piece, and unit, row, piece of the first."""
    first: dict[bytes, tuple[int, int, int]] = {}
    texts, removed = [], []
    for number, unit in enumerate(units):
        texts.append([])
        removed.append([])
        for row, document in enumerate(unit):
            kept, lost, substance = [], False, False
            for piece, text in enumerate(cut(document, level)):
                key = normal(text, form)
                if len(key.strip()) < least:
                    kept.append(text)
                    continue
                of = first.setdefault(hashlib.sha256(key.encode()).digest(), (number, row, piece))
                if of == (number, row, piece):
                    kept.append(text)
                    substance = True
                else:
                    removed[-1].append((row, piece, *of))
                    lost = True
            gone = lost and not substance
            texts[-1].append("" if gone else (SEPARATORS[level] or "").join(kept))
    return texts, removed


def write_unit(unit: Unit, url: str, level: str, form: str, least: int, n_ranges: int) -> None:
    pieces = repeats.find(*buffers(unit), level, form, least)
    repeats.write_hashes(url, pieces.keys[pieces.counts], pieces.places()[pieces.counts], n_ranges)


def deduplicate(units: list[Unit], folder: Path, level: str, form: str, least: int, n_ranges: int, seed: int):
    """Every task in an order of its own; a batch is seven documents."""
    draw = random.Random(seed)
    hashes = [str(folder / f"unit-{k}.arrow") for k in range(len(units))]
    for k in draw.sample(range(len(units)), len(units)):
        write_unit(units[k], hashes[k], level, form, least, n_ranges)
    found = [str(folder / f"range-{k}.arrow") for k in range(n_ranges)]
    for k in draw.sample(range(n_ranges), n_ranges):
        repeats.write_repeats(found[k], repeats.first_in_range(hashes, k), len(units))
    texts, tables = [], []
    for k, unit in enumerate(units):
        mine = repeats.read_repeats(found, k)
        texts.append([])
        rows = []
        for first in range(0, len(unit), 7):
            data, offsets = buffers(unit[first : first + 7])
            pieces = repeats.find(data, offsets, level, form, least)
            again, at = mine.find(pieces.places(first))
            new_data, new_offsets, keep = repeats.keep_first(data, pieces, again)
            texts[-1] += strings(new_data, new_offsets)
            assert not (keep & again).any()
            places, of = mine.place[at], mine.of_place[at]
            columns = (places >> 32, places & LOW, mine.of_unit[at], of >> 32, of & LOW)
            rows += [tuple(row) for row in np.stack(columns, axis=1).tolist()]
        tables.append(rows)
    files = {path.name: storage.sha256(str(path)) for path in sorted(folder.iterdir())}
    return texts, tables, files


@pytest.mark.parametrize("level", ["document", "line", "paragraph"])
@pytest.mark.parametrize(("form", "least"), [("raw", 1), ("words", 20), ("line", 1)])
def test_the_first_of_equals_stays_whatever_the_order_of_work(tmp_path, level, form, least):
    units = corpus(3, 8)
    texts, removed = plain(units, level, form, least)
    results = [
        deduplicate(units, tmp_path / str(seed), level, form, least, n_ranges, seed)
        for seed, n_ranges in ((1, 1), (2, 4), (3, 4), (4, 16))
    ]
    for kept, tables, _ in results:
        assert kept == texts
        assert tables == removed
    assert sum(map(len, removed)) > 10
    assert results[1][2] == results[2][2]  # the very bytes of every file


def test_a_restart_goes_on_from_the_files_that_are_whole(tmp_path):
    units = corpus(4, 6)
    _, _, whole = deduplicate(units, tmp_path, "line", "words", 5, 4, 1)
    for name in ("unit-2.arrow", "range-1.arrow"):
        (tmp_path / name).unlink()
    write_unit(units[2], str(tmp_path / "unit-2.arrow"), "line", "words", 5, 4)
    hashes = [str(tmp_path / f"unit-{k}.arrow") for k in range(len(units))]
    found = repeats.first_in_range(hashes, 1)
    repeats.write_repeats(str(tmp_path / "range-1.arrow"), found, len(units))
    assert {path.name: storage.sha256(str(path)) for path in sorted(tmp_path.iterdir())} == whole


def test_a_damaged_range_and_one_that_is_not_there_are_told(tmp_path):
    url = tmp_path / "unit.arrow"
    keys = np.sort(np.random.default_rng(0).integers(0, 2**64, (1000, 2), dtype=np.uint64), axis=0)
    repeats.write_hashes(str(url), keys, np.arange(1000), 2)
    with pytest.raises(ValueError, match="has 2 ranges, number 2 was asked for"):
        repeats.first_in_range([str(url)], 2)
    data = bytearray(url.read_bytes())
    at = data.find(keys[10, 0].tobytes())
    data[at] ^= 1
    url.write_bytes(data)
    with pytest.raises(ValueError, match="range 0 is damaged"):
        repeats.first_in_range([str(url)], 0)
    assert len(repeats.first_in_range([str(url)], 1).unit) == 0


def test_keys_that_agree_in_half_of_their_bits_are_different(tmp_path):
    url = str(tmp_path / "unit.arrow")
    keys = np.array([[7, 1], [7, 2], [7, 1], [7, 2], [7, 3], [7, 2], [0, 0], [2**64 - 1, 5]], np.uint64)
    repeats.write_hashes(url, keys, np.arange(8), 1)
    found = repeats.first_in_range([url, url], 0)
    pairs = list(
        zip(
            found.unit.tolist(),
            found.place.tolist(),
            found.of_unit.tolist(),
            found.of_place.tolist(),
            strict=True,
        )
    )
    own = [(0, 2, 0, 0), (0, 3, 0, 1), (0, 5, 0, 1)]
    assert pairs == own + [(1, k, 0, [0, 1, 0, 1, 4, 1, 6, 7][k]) for k in range(8)]


def test_settings_that_would_do_something_else_are_refused(tmp_path):
    with pytest.raises(ValueError, match="set one of"):
        repeats.find(*buffers(["a"]), "page", "raw")
    with pytest.raises(ValueError, match="blank lines are duplicates of each other"):
        repeats.find(*buffers(["a"]), "line", "raw", 0)
    with pytest.raises(ValueError, match="set a power of two"):
        repeats.write_hashes(str(tmp_path / "x"), np.zeros((0, 2), np.uint64), np.zeros(0, np.int64), 3)
    assert [repeats.ranges_for(n, 10**9) for n in (1, 7 * 10**6, 8 * 10**6, 10**9)] == [1, 1, 2, 256]


def grams_of(documents: list[str], least: int = 3, most: int = 3):
    data, offsets = buffers(documents)
    pieces = repeats.find(data, offsets, "line", "raw", 1)
    split = words.split_whitespace(data, offsets)[:2]
    return data, pieces, bloom.word_grams(data, (pieces.starts, pieces.ends), split, least, most)


def lines(seed: int, n: int) -> list[str]:
    draw = random.Random(seed)
    pool = [" ".join(draw.choices("abcdefghijkl", k=draw.randrange(2, 12))) for _ in range(80)]
    return ["\n".join(draw.choices(pool, k=draw.randrange(1, 6))) for _ in range(n)]


def test_a_stream_goes_on_from_a_saved_filter(tmp_path):
    documents = lines(8, 90)
    whole = bloom.Bloom(5_000, 1e-3, shard_bytes=1_000)
    _, _, (grams, gram_starts) = grams_of(documents)
    at_once = whole.judge(grams, gram_starts, 0.6)
    half = bloom.Bloom(5_000, 1e-3, shard_bytes=1_000)
    _, _, first = grams_of(documents[:40])
    removed = half.judge(*first, 0.6).removed.tolist()
    repeats.save(half, str(tmp_path / "filter"))
    loaded = repeats.load(str(tmp_path / "filter"))
    _, _, second = grams_of(documents[40:])
    removed += loaded.judge(*second, 0.6).removed.tolist()
    assert removed == at_once.removed.tolist()
    assert (loaded.n_added, loaded.bits.tolist()) == (whole.n_added, whole.bits.tolist())
    shard = tmp_path / "filter" / "shard-00001.bin"
    shard.write_bytes(shard.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"shard-00001.bin has \d+ bytes instead of \d+"):
        repeats.load(str(tmp_path / "filter"))


def test_what_bff_removes_is_told_and_one_line_six_times_over_goes_altogether():
    documents = ["one two three four\nfive six seven", "new words stand here\none two three four\nhi"]
    documents += [
        "\n".join(["again and again it says"] * 6),
        "\n".join(["five times it says this"] * 5),
        "",
        "\n",
    ]
    data, pieces, grams = grams_of(documents)
    seen = bloom.Bloom(1_000, 1e-9).judge(*grams, 0.8)
    new_data, new_offsets, keep = repeats.keep_new(data, pieces, seen, 0.8)
    kept = [documents[0], "new words stand here\nhi", "", "five times it says this", "", "\n"]
    assert strings(new_data, new_offsets) == kept
    assert (~keep).sum() == 1 + 6 + 4
    nothing = repeats.keep_new(*grams_of([])[:2], bloom.decide(*np.zeros((2, 0), np.int64), 0.8), 0.8)
    assert (len(nothing[0]), nothing[1].tolist(), len(nothing[2])) == (0, [0], 0)


@pytest.mark.parametrize("level", ["document", "line", "paragraph"])
def test_a_corpus_without_repeats_loses_nothing(tmp_path, level):
    """DCLM #83 removed 98 % of 505 GiB; blank and short lines are no repeats (datatrove #273)."""
    documents = [
        f"{{\n\n  unique text number {k} of a long kind\n\n\n}}\nanother long line, {k}\n\n"
        for k in range(300)
    ]
    texts, tables, _ = deduplicate([documents[:150], documents[150:]], tmp_path, level, "words", 20, 2, 1)
    assert texts == [documents[:150], documents[150:]]
    assert tables == [[], []]


def test_arrow_text_goes_in_as_it_is():
    column = pa.chunked_array(
        [["A line that is long enough", None], ["a LINE that is  long enough"]], pa.large_string()
    )
    pieces = repeats.find(*utf8_buffers(column), "document", "words")
    assert pieces.counts.tolist() == [True, False, True]
    assert (pieces.keys[0] == pieces.keys[2]).all()
