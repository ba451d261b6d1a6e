"""Documents that text filters disagree about: odd line ends, joined n-grams, repeats, marks, scripts; and their buffers."""

import itertools
import random

import numpy as np

SPACED = r"""the be to of and that have with Have cat dog runs quickly over lazy # ## ... … - • ● * . ? ! " ' naïve Straße
İstanbul नमस्ते שלום مرحبا é 👩‍👩‍👧 𠀀 word. word! it's Mr. U.S. 12 3.5 1,000 javascript JavaScript cooKies use cookies
uses of policy privacy cookie terms lorem ipsum Lorem İpsum { [1] [edit] [] [٣] [[2] end. said." a.b.c http://x.y/z?q=1
don't ⸮ ؟ 。 １ １１ …… .. .... . ab abc bc c a ITEMS items in cart more... more!!! Sign-in ſign-ın 3 3.5K likes views"""
WORDS = [*SPACED.split(), "[citation needed]", "Read more...", "e\u0301", "\x00", "coo\u212aies"]
PLAIN = [
    "the",
    "cat",
    "of",
    "ran",
    "house",
    "river",
    "slowly",
    "that",
    "and",
    "have",
    "green",
    "walk",
    "be",
    "stone",
    "sun",
]
SEPARATORS = [
    *[" "] * 7,
    "\n",
    "\n",
    "\n\n",
    "\n\n\n",
    "\r\n",
    "\r",
    "\u2028",
    "\u2029",
    "\x0b",
    "\x0c",
    "\x1c",
    "\x1d",
]
SEPARATORS += ["\x1e", "\x1f", "\x85", "\t", "  ", "\u00a0", "\u3000", " \n", "\n ", " \n \n"]
ENDS = [".", ".", "!", "?", "", "...", "…", " .", ". . .", '"', "'", '." ', " [1]", "[2]."]
TINY = ["", " ", "\n", "\n\n", " \n", "\n \n", "\x1f", "\u2028", "a", "\r\n", "\n\n\n a", "abc\n", "\nabc\n"]
TINY += ["\nabc\n\n", "\u00a0", "\x00", "…", "...", "a\n\nb\n\n", "3 likes\n", "ABC\n\n", "sign-in", "#" * 60]


def document(draw: random.Random) -> str:
    """One document, up to some 2 kB."""
    kind = draw.random()
    if kind < 0.04:
        return draw.choice(TINY)
    words = PLAIN + draw.sample(WORDS, draw.randint(0, 6))
    if draw.random() < 0.5:
        words = draw.sample(WORDS, draw.randint(2, len(WORDS)))
    if kind < 0.4:
        between = SEPARATORS if kind < 0.25 else SEPARATORS[:7] * 3 + SEPARATORS
        return "".join(draw.choice(words) + draw.choice(between) for _ in range(draw.randint(1, 160)))
    lines = [" ".join(draw.choices(words, k=draw.randint(1, 14))) for _ in range(draw.randint(3, 30))]
    lines = [line + draw.choice(ENDS) for line in lines]
    if kind < 0.6:
        for _ in range(draw.randint(1, 4)):
            lines[draw.randrange(len(lines))] = draw.choice(lines)
    if kind < 0.5:
        lines = [draw.choice(["- ", "• ", "", "  - ", "* "]) + line for line in lines]
    if draw.random() < 0.1:
        lines = [line.replace(" ", "  ") for line in lines]
    return "".join(line + draw.choice(["\n", "\n", "\n\n", " ", "\n\n\n", "\r\n", "  "]) for line in lines)


def joined_words(draw: random.Random) -> str:
    """Words such that different n-grams are the same text once their spaces are gone."""
    return " ".join(draw.choices(["a", "ab", "abc", "bc", "c", "b", "ca"], k=draw.randint(1, 90)))


def buffers(documents: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """What an Arrow large_string array holds: uint8, int64[n + 1]."""
    encoded = [text.encode() for text in documents]
    return np.frombuffer(b"".join(encoded), np.uint8), np.cumsum([0] + [len(item) for item in encoded])


def texts(data: np.ndarray, offsets: np.ndarray) -> list[str]:
    """The documents of a pair of buffers."""
    return [data[a:b].tobytes().decode() for a, b in itertools.pairwise(offsets)]


def spans(documents: list[str], words: list[list[str]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Byte spans of each document's words, which lie in it in this order."""
    starts, ends, doc_starts, base = [], [], [0], 0
    for text, found in zip(documents, words, strict=True):
        at = byte = 0
        for word in found:
            begin = text.index(word, at)
            byte += len(text[at:begin].encode())
            starts.append(base + byte)
            byte += len(word.encode())
            ends.append(base + byte)
            at = begin + len(word)
        base += len(text.encode())
        doc_starts.append(len(starts))
    return np.array(starts, np.int64), np.array(ends, np.int64), np.array(doc_starts, np.int64)
