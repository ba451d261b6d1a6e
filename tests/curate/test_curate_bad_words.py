"""Pages with bad words, as Python's regular expressions find them."""

import random
import re
from pathlib import Path

import pyarrow as pa
import pytest

from moxin.curate.bad_words import BadWords

ENTRIES = ["frob", "σας", "two words", "c++", "i̇x"]


@pytest.fixture
def words(tmp_path: Path) -> BadWords:
    (tmp_path / "list").write_text("# comment\n\n" + "\n".join(ENTRIES) + "\n猫\n")
    return BadWords.read(str(tmp_path / "list"))


def test_entries_are_found_where_python_finds_them(words):
    draw = random.Random(3)
    pieces = [
        "frob",
        "FROB",
        "ΣΑΣ",
        "Two Words",
        "c++",
        "C++",
        "İX",
        "猫",
        "frobs",
        *" _-.é\u03011²́あ\n\U0001f600\u0e33",
    ]
    texts = ["".join(draw.choices(pieces, k=draw.randrange(6))) for _ in range(4000)]
    pattern = re.compile(r"(?:\W|^)(" + "|".join(map(re.escape, ENTRIES)) + r")(?:\W|$)|猫")
    expected = [bool(pattern.search(text.lower())) for text in texts]
    assert 500 < sum(expected) < 3500
    found = words.holds(pa.array(texts, pa.large_string())).tolist()
    assert [text for text, one, other in zip(texts, found, expected, strict=True) if one != other] == []


def test_every_neighbour_is_judged_as_python_judges_it(words):
    chars = [chr(point) for point in range(0x110000) if not 0xD800 <= point < 0xE000]
    texts = [f"a {char}frob z" for char in chars]
    pattern = re.compile(r"(?:\W|^)frob(?:\W|$)")
    expected = [bool(pattern.search(text.lower())) for text in texts]
    assert words.holds(pa.array(texts, pa.large_string())).tolist() == [
        one or char == "猫" for one, char in zip(expected, chars, strict=True)
    ]


def test_a_list_without_entries_is_told(tmp_path):
    (tmp_path / "empty").write_text("# nothing\n")
    with pytest.raises(ValueError, match="has no entries: give a text file"):
        BadWords.read(str(tmp_path / "empty"))
