"""Text signals against their plain-Python definitions, on ordinary text and on nasty Unicode."""

import itertools
import random
import unicodedata

import numpy as np
import pytest

from kernels import text


def buffers(documents: list[str]) -> tuple[np.ndarray, np.ndarray]:
    encoded = [document.encode() for document in documents]
    return np.frombuffer(b"".join(encoded), np.uint8), np.cumsum([0] + [len(item) for item in encoded])


def is_word_char(char: str) -> bool:
    return char.isalnum() or (unicodedata.category(char)[0] == "M" and ord(char) < text.N_CODE_POINTS)


def plain_words(document: str) -> list[str]:
    return "".join(char if is_word_char(char) else " " for char in document).split(" ")


def plain_signals(document: str) -> dict[str, float]:
    words, visible = document.split(), "".join(document.split())
    lines = document.split("\n")
    full = [" ".join(line.split()) for line in lines if line.split()]
    bare = ["".join(char.lower()[0] for char in word if is_word_char(char)) for word in words]
    runs = [
        char
        for char, before in zip(document, " " + document, strict=False)
        if char != before and not char.isspace()
    ]
    symbols = [char for char in runs if not is_word_char(char) and char not in ".,;:!?'\"()-–—‘’“”…"]
    return {
        "n_chars": len(document),
        "n_words": len(words),
        "mean_word_length": len(visible) / max(len(words), 1),
        "alpha_words": sum(any(char.isalpha() for char in word) for word in words) / max(len(words), 1),
        "symbol_ratio": len(symbols) / max(len(visible), 1),
        "duplicate_lines": (len(full) - len(set(full))) / max(len(full), 1),
        "stop_words": len(set(bare) & set(text.STOP_WORDS)),
        "max_line_length": max(len(line) for line in lines),
        "mean_line_length": sum(len(line) for line in lines) / len(lines),
        "alnum_ratio": sum(map(is_word_char, document)) / max(len(document), 1),
    }


NASTY = [
    "",
    " ",
    "\n",
    "\n\n \n",
    "a",
    "the\n",
    "The THE the, don't! He's (of) AND-the",
    "\u3000wide\u2003space\u00a0here\u2028there",
    "naïve Straße ΣΊΣΥΦΟΣ İstanbul ﬁne",
    "नमस्ते दुनिया — שלום עולם — مرحبا",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 👩‍👩‍👧‍👦 🇲🇽 \U00020000\U0002a6df \U000e0101x\U0010ffff",
    "e\u0301 combining \u0301alone",
    "x  y\nx y\n  x\ty \nz",
    "\x00\x1f\x7f\x85control",
    "####\n====\n####\n*** $$$ #$#$",
]


def random_document(draw: random.Random) -> str:
    alphabet = [
        "the ",
        "of\n",
        " ",
        "\n",
        "Ab",
        "ß",
        "é",
        "\u0301",
        "中",
        "😀",
        "#",
        ".",
        "7",
        "\t",
        "\u2029",
        "İ",
    ]
    return "".join(draw.choices(alphabet, k=draw.randrange(80)))


def test_signals_are_what_plain_python_counts():
    draw = random.Random(7)
    documents = NASTY + [random_document(draw) for _ in range(300)]
    table = text.signals(*buffers(documents))
    for document, row in zip(documents, table, strict=True):
        assert dict(zip(text.SIGNALS, row, strict=True)) == pytest.approx(plain_signals(document)), repr(
            document
        )


def test_every_word_has_one_hash_whatever_its_case_and_surroundings():
    documents = [
        "Hello, World!",
        "hello world",
        "HELLO\n(world)",
        "worldhello",
        "नमस्ते",
        "E\u0301te e\u0301te",
        "",
        "…!",
    ]
    hashes, starts = text.word_hashes(*buffers(documents), *text.unicode_tables())
    rows = [list(hashes[a:b]) for a, b in itertools.pairwise(starts)]
    assert rows[0] == rows[1] == rows[2]
    assert [len(row) for row in rows] == [2, 2, 2, 1, 1, 2, 0, 0]
    assert rows[5][0] == rows[5][1]
    words = ["".join(char.lower()[0] for char in word) for d in NASTY for word in plain_words(d) if word]
    hashes, _ = text.word_hashes(*buffers(NASTY), *text.unicode_tables())
    assert len(hashes) == len(words)
    assert len(set(hashes.tolist())) == len(set(words))


def test_a_slice_of_a_batch_counts_like_the_batch():
    data, offsets = buffers(NASTY)
    assert (text.signals(data, offsets[4:9]) == text.signals(data, offsets)[4:8]).all()
