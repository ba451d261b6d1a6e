"""Words against datatrove's own where it is installed, against known cases everywhere."""

import functools
import itertools
import random
import re
from pathlib import Path

import numpy as np
import pytest

from kernels import words, words_english

ROOT = Path(__file__).resolve().parents[2]


def buffers(documents: list[str]) -> tuple[np.ndarray, np.ndarray]:
    encoded = [document.encode() for document in documents]
    return np.frombuffer(b"".join(encoded), np.uint8), np.cumsum([0] + [len(item) for item in encoded])


def texts(documents: list[str], split=words.split) -> list[list[str]]:
    data, offsets = buffers(documents)
    starts, ends, doc_starts = split(data, offsets)
    found = [bytes(data[a:b]).decode() for a, b in zip(starts, ends, strict=True)]
    return [found[a:b] for a, b in itertools.pairwise(doc_starts)]


CASES = {
    "": "",
    " \t\n\u3000 ": "",
    "Hello, world!": "Hello , world !",
    "the U.S. and the U.S.A. (e.g. N.Y.) end. The": "the U.S. and the U.S.A. ( e.g. N.Y. ) end . The",
    "I can't, won’t; cannot. Im gonna y'all": "I ca n't , wo n’t ; can not . I m gon na y' all",
    "Its well, she's John's 's JOHN'S": "Its well , she 's John 's 's JOHN 'S",
    "10:30am 7a.m. 13pm 12p.m.": "10:30am 7 a.m. 13pm 12 p.m.",
    ":-) :) :)) (: >:( ;) xD <3 (>_<) (╯°□°）╯︵┻━┻": ":-) :) :)) (: >:( ;) xD <3 (>_<) (╯°□°）╯︵┻━┻",
    "a:) :):) ( : ) (a.) x-a.": "a :) : ): ) ( : ) ( a. ) x - a.",
    "' Cause ': '( :'(": "' Cause ' : ' ( :'(",
    "$5 5$ US$5 5US$ C$ €3.50, 10% 5km 3m². 20 km/h": "$ 5 5 $ US$ 5 5 US$ C$ € 3.50 , 10 % 5 km 3 m² . 20 km / h",
    "5°C. 5° F. °c. 1+1 3*4 2^8 +5 +a 5+": "5 ° C . 5 ° F. ° c . 1 + 1 3 * 4 2 ^ 8 +5 + a 5 +",
    "well-known a--b a---b x—y 5-a 5--3 a~b -- a/b": "well - known a -- b a --- b x — y 5 - a 5 - -3 a ~ b -- a / b",
    "wait... what…… a..b .... “quoted” «x»": "wait ... what …… a .. b .... “ quoted ” « x »",
    "see http://example.com/x?y=1. or me@here.com, foo.Bar file.txt": (
        "see http://example.com/x?y=1 . or me@here.com , foo . Bar file.txt"
    ),
    "8.8.8.8:53 10.0.0.1/x www.a-b.co.uk:80/?q (http://é.fr)": (
        "8.8.8.8:53 10.0.0.1 / x www.a-b.co.uk:80/?q ( http://é.fr )"
    ),
    "C++ <br> \\n w/o and/or either/or x=y 1=a": "C++ < br > \\n w/o and/or either / or x = y 1 = a",
    "中文，是。日本語 नमस्ते दुनिया। שלום": "中文，是。日本語 नमस्ते दुनिया । שלום",
    "hi😀there 👩‍👩‍👧‍👦 🇲🇽 e\u0301 a\u200bb": "hi 😀 there 👩 ‍ 👩 ‍ 👧 ‍ 👦 🇲 🇽 e\u0301 a\u200bb",
    "a\x00b \x00 x\u3000y\u00a0z\u2028w\x1c.": "a\x00b \x00 x y z w .",
    "don't\tstop\r\n\r\nnow": "do n't stop now",
}


def test_known_cases():
    for (text, expected), found in zip(CASES.items(), texts(list(CASES)), strict=True):
        assert found == [word for word in expected.split(" ") if word], repr(text)


def test_white_space_is_that_of_str_split():
    space = [chr(point) for point in range(0x110000) if chr(point).isspace()]
    documents = [*CASES, *(f"{blank}a{blank}{blank}é{blank}" for blank in space), "\u2000\u200bx\u2030"]
    assert texts(documents, words.split_whitespace) == [document.split() for document in documents]


def test_a_slice_of_a_batch_has_the_words_of_the_batch():
    data, offsets = buffers(list(CASES))
    for split in (words.split, words.split_whitespace):
        starts, ends, doc_starts = split(data, offsets)
        a, b = doc_starts[3], doc_starts[9]
        part = split(data, offsets[3:10])
        assert (part[0] == starts[a:b]).all()
        assert (part[1] == ends[a:b]).all()
        assert (part[2] == doc_starts[3:10] - a).all()
        assert [array.size for array in split(data[:0], np.zeros(1, np.int64))] == [0, 0, 1]


def test_long_chunks_take_time_in_proportion():
    """With time that grows with the square each of these would take minutes."""
    n = 300_000
    documents = [
        "(" * n,
        "a" * n,
        "." * n,
        "5+" * n,
        ":)" * n,
        "a@" * n,
        "a.b" * n,
        "中" * n,
        "'s" * n,
        "-" * n,
    ]
    found = dict(zip(documents, texts(documents), strict=True))
    assert [len(found[c * n]) for c in ("(", "a", ".", "中", "-")] == [n, 1, 1, 1, 1]
    assert all("".join(found[document]) == document for document in documents)


def test_pieces_make_up_their_special_case():
    assert all("".join(pieces) == case for case, pieces in words_english.special_cases().items())


@functools.cache
def datatrove():
    tokenizers = pytest.importorskip("datatrove.utils.word_tokenizers")
    pytest.importorskip("spacy")
    return tokenizers.load_word_tokenizer("eng").word_tokenize


def assert_same(documents: list[str]) -> None:
    for document, found in zip(documents, texts(documents), strict=True):
        assert found == datatrove()(document), repr(document)


def test_facts_are_spacys():
    spacy = pytest.importorskip("spacy")
    classes = pytest.importorskip("spacy.lang.char_classes")
    rules = spacy.blank("en").tokenizer.rules
    theirs = {case: tuple(piece[spacy.symbols.ORTH] for piece in rule) for case, rule in rules.items()}
    assert words_english.special_cases() == {case: rule for case, rule in theirs.items() if case.strip()}

    def points(*ranges: str) -> set[int]:
        return {point for item in ranges for point in words_english.code_points(item)}

    def members(pattern: str) -> set[int]:
        everything = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)]))
        return {ord(char) for char in re.findall(f"[{pattern}]", everything)}

    english = words_english
    assert points(english.CASELESS, english.LOWER) == members(classes.ALPHA_LOWER)
    assert points(english.CASELESS, english.UPPER) == members(classes.ALPHA_UPPER)
    assert points(english.CASELESS, english.LOWER, english.UPPER, english.TITLE) == members(classes.ALPHA)
    assert points(english.ICONS) == members(classes.CONCAT_ICONS)
    plain = [
        {item.replace("\\", "") for item in items} - {""}
        for items in (classes.LIST_QUOTES, classes.LIST_PUNCT)
    ]
    assert [set(english.QUOTES), {*english.PUNCTUATION, "……"}] == plain
    assert set(english.UNITS) == set(classes.LIST_UNITS)
    assert {*english.CURRENCY, *english.DOLLARS} == {item.replace("\\", "") for item in classes.LIST_CURRENCY}


def test_known_cases_are_datatroves():
    assert_same(list(CASES))


def test_prose_and_code_have_datatroves_words():
    paths = sorted(ROOT.glob("docs/*.md"))[:3] + sorted(ROOT.glob("kernels/*.py"))[:6]
    pages = [path.read_text()[:8000] for path in (ROOT / "README.md", *paths)]
    assert_same(pages)


def test_every_mark_around_words_is_cut_as_datatrove_does():
    points = [*range(0x0, 0x3100), *range(0xFE00, 0x10000), *range(0x1F000, 0x1FB00)]
    lines = [f"{c} x{c} {c}x A{c}B 1{c}2 {c}. a.{c} a{c}.B\n" for c in map(chr, points)]
    assert_same(["".join(lines[at : at + 500]) for at in range(0, len(lines), 500)])


ADDRESSES = """http://example.com https://a.b.co.uk/x?y=1#z www.foo.org foo.bar foo.Bar me@here.com mailto:x@y.de
ftp://user:pw@host.net:8080/p 1.2.3.4 10.0.0.1 192.168.1.1 172.16.0.1 172.32.0.1 223.255.255.254 224.1.1.1 8.8.8.8:53
127.0.0.1 user@10.1.1.1 1.2.3.4.5 ٣.2.3.4 1.٣.3.4 172.2٣.1.1 25٣.1.1.1 -a.com a-.com a_b.com _a.com é.fr 中文.中国 a.b:1
a.bc:12 a.bc:123456 @a.com a@b@c.de x://a.com xy://a.com (http://a.com) a..com a.c a.CO foo.com?q file.txt 1.com 1.2.3.255"""
LABELS = ["x" * 64 + ".com", "x" * 65 + ".com", "a." + "b" * 63, "a." + "b" * 64]
NUMBERS = """5km 10% $5 5$ US$5 5US$ A$5 1.5m 3m² 5°C. 5°F 1,000 1+1 1-2 3*4 2^8 5+ +5 +a 1am 12p.m. 10m/s 5км/ч 5كم 5تбكم 5G
1. 3.14 ١٢km ²km 5²"""
OTHERS = """don't DON'T can’t I'ma we'll've y'all John's 'tis rock'n'roll the.End U.S. e.g. Mr.Smith Ph.D. a. x-a. A. AB. aB.
and/or C++ the Foo ß 中 שלום a--b a——b a…b a...b .... …… ."""


@pytest.mark.parametrize("seed", range(3))
def test_random_texts_have_datatroves_words(seed):
    draw = random.Random(seed)
    specials, emoticons = list(words_english.special_cases()), words_english.EMOTICONS.split()
    marks = list(
        words_english.PUNCTUATION + words_english.QUOTES + words_english.CURRENCY + "§%=+-.~^*/\\|@²°–—"
    )
    blanks = [*[""] * 12, *[" "] * 5, "\n", "  ", " \n", "\t", "\u00a0", "\u3000", "\x1c"]
    addresses = ADDRESSES.split() + LABELS
    pools = [specials, marks, addresses, NUMBERS.split(), OTHERS.split(), list("abAB019.,-'’:;/@()\"+$")]

    def joined(pools: list[list[str]], blanks: list[str], n: int) -> str:
        return "".join(draw.choice(draw.choice(pools)) + draw.choice(blanks) for _ in range(n))

    assert_same([joined(pools, blanks, draw.randrange(300)) for _ in range(60)])
    assert_same([joined([emoticons], ["", "", " ", "a", "."], 60) for _ in range(20)])
    assert_same([joined([sorted(set("".join(emoticons)))], ["", "", "", " "], 200) for _ in range(20)])
    assert_same([joined([list("ab0-_.:/@?#A٣中é\U00020000+")], [""] * 9 + [" "], 400) for _ in range(20)])
    assert_same(
        [joined([list("0159"), list(words_english.UNITS), marks], ["", "", " "], 200) for _ in range(20)]
    )
    planes = [(1, 0xD800), (0xE000, 0x110000), (1, 0x250), (32, 127)]
    assert_same(["".join(chr(draw.randrange(*draw.choice(planes))) for _ in range(400)) for _ in range(20)])
