"""Every signal and every line edit against its definition in plain Python, to the last bit, on nasty text."""

import math
import random
import re
from collections import Counter

import numpy as np
import pytest
from fuzz_text import buffers, document, joined_words, spans, texts

from kernels import quality, quality_dclm, quality_lines, quality_text
from kernels.quality_text import STOP_WORDS, SYMBOLS, TERMINALS, character_flags, code_points

TERMINAL = tuple(map(chr, code_points(TERMINALS)))
PUNCTUATION = {chr(point) for point in code_points(SYMBOLS)} | set(TERMINAL)


@pytest.fixture(scope="module")
def documents() -> list[str]:
    draw = random.Random(11)
    return [document(draw) for _ in range(500)] + [joined_words(draw) for _ in range(100)]


def split(text: str) -> list[str]:
    return re.findall(r"\w[\w']*|[^\w\s]+", text)


def share(part: float, whole: float) -> float:
    return part / max(whole, 1)


def beyond_first(items: list[str]) -> tuple[int, int]:
    again = [item for place, item in enumerate(items) if item in items[:place]]
    return len(again), sum(map(len, again))


def grams(words: list[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[k : k + n]) for k in range(len(words) - n + 1)]


def greedy(words: list[str], n: int) -> int:
    seen, chars, at = set(), 0, 0
    while at <= len(words) - n:
        gram = "".join(words[at : at + n])
        chars += len(gram) * (gram in seen)
        at += n if gram in seen else 1
        seen.add(gram)
    return chars


def datatrove_signals(text: str, words: list[str]) -> dict[str, float]:
    plain = [word for word in words if set(word) - PUNCTUATION]
    lines = text.splitlines()
    full = [line for line in text.split("\n") if line.strip()]
    out = {
        "n_chars": len(text),
        "n_words": len(words),
        "non_symbol_words": len(plain),
        "mean_word_chars": sum(map(len, plain)) / len(plain) if plain else math.nan,
        "hashes_per_word": share(text.count("#"), len(words)),
        "ellipses_per_word": share(text.count("...") + text.count("…"), len(words)),
        "bullet_lines": share(sum(line.lstrip().startswith(("•", "-")) for line in lines), len(lines)),
        "ellipsis_lines": share(sum(line.rstrip().endswith(("...", "…")) for line in lines), len(lines)),
        "alpha_words": share(sum(any(map(str.isalpha, word)) for word in words), len(words)),
        "stop_words": len(set(words) & set(STOP_WORDS)),
        "full_lines": len(full),
        "terminal_lines": share(sum(line.endswith(TERMINAL) for line in full), len(full)),
        "short_lines": share(sum(len(line) <= 30 for line in full), len(full)),
        "repeated_line_chars": share(beyond_first(full)[1], len(text.replace("\n", ""))),
        "newlines_per_word": share(text.count("\n"), len(words)),
    }
    parts = {"paragraph": re.split(r"\n{2,}", text.strip()), "line": re.split(r"\n+", text)}
    for name, items in parts.items():
        again, chars = beyond_first(items)
        out |= {f"duplicate_{name}s": again / len(items), f"duplicate_{name}_chars": share(chars, len(text))}
    for n in (2, 3, 4):
        [(gram, count)] = Counter(grams(words, n)).most_common(1) or [((), 0)]
        out[f"top_{n}_gram"] = share(len(" ".join(gram)) * count, len(text))
    return out | {f"repeated_{n}_grams": share(greedy(words, n), len(text)) for n in range(5, 11)}


def dclm_signals(text: str, words: list[str]) -> dict[str, float]:
    split_words, fast = text.split(), [word for word in re.split("[ \n\r\t\v\f\0]+", text) if word]
    lines = [stripped for line in text.split("\n") if (stripped := line.strip())]
    paragraphs = [stripped for part in text.split("\n\n") if (stripped := part.strip())]
    out = {
        "dclm_words": sum(word[0].isalnum() for word in fast),
        "dclm_mean_word_chars": share(sum(map(len, split_words)), len(split_words)),
        "dclm_symbols_per_word": share(sum(map(text.count, ["#", "...", ". . .", "…"])), len(split_words)),
        "dclm_bullet_lines": share(sum(line.startswith(("●", "•", "*", "-")) for line in lines), len(lines)),
        "dclm_ellipsis_lines": share(sum(line.endswith(("...", ". . .", "…")) for line in lines), len(lines)),
        "dclm_non_alpha_words": share(
            sum(not any(map(str.isalpha, w)) for w in split_words), len(split_words)
        ),
        "dclm_stop_words": sum(word.lower() in STOP_WORDS for word in split_words),
    }
    for name, items in {"line": lines, "paragraph": paragraphs}.items():
        copies = [item for item in items if items.count(item) > 1]
        out[f"dclm_copied_{name}s"] = share(len(copies), len(items))
        out[f"dclm_copied_{name}_chars"] = share(sum(map(len, copies)), sum(map(len, items)))
    words = [word for word in words if word[0].isalnum()]
    for n in range(2, 11):
        counts, chars = Counter(grams(words, n)), sum(map(len, words))
        most = max(counts.values(), default=0)
        if n < 5:
            longest = max((len("".join(gram)) for gram in counts if counts[gram] == most), default=0)
            out[f"dclm_top_{n}_gram"] = share(longest * most, chars) if most > 1 else 0
        else:
            places = [k for k, gram in enumerate(grams(words, n)) if counts[gram] > 1]
            covered = {k + i for k in places for i in range(n)}
            out[f"dclm_copied_{n}_grams"] = share(sum(len(words[k]) for k in covered), chars)
    return out


def measured(documents: list[str]) -> np.ndarray:
    return quality.signals(*buffers(documents), *spans(documents, [split(text) for text in documents]))


def test_signals_are_their_definitions(documents: list[str]) -> None:
    for text, row in zip(documents, measured(documents), strict=True):
        got = dict(zip(quality.NAMES, row.tolist(), strict=True))
        expected = datatrove_signals(text, split(text)) | dclm_signals(text, split(text))
        assert got.keys() == expected.keys()
        different = {name: (got[name], value) for name, value in expected.items() if got[name] != value}
        assert not {name for name in different if not math.isnan(expected[name])}, (different, text)


def test_only_the_n_grams_that_are_wanted_are_counted(documents: list[str]) -> None:
    words = spans(documents, [split(text) for text in documents])
    everything, nothing = (
        measured(documents),
        quality.signals(*buffers(documents), *words, wanted=frozenset()),
    )
    groups = (quality.GRAM_SIGNALS, quality.DCLM_GRAM_SIGNALS, quality.WORD_SIGNALS, quality.LINE_SIGNALS)
    costly = frozenset().union(*groups)
    cheap = [name not in costly for name in quality.NAMES]
    assert np.isnan(nothing[:, ~np.array(cheap)]).all()
    assert np.array_equal(nothing[:, cheap], everything[:, cheap], equal_nan=True)
    for group in groups:
        for name in sorted(group)[:2]:
            some = quality.signals(*buffers(documents), *words, wanted=frozenset([name]))
            of_group = [each in group for each in quality.NAMES]
            assert np.array_equal(some[:, of_group], everything[:, of_group], equal_nan=True), name
            rest = [each in costly - group for each in quality.NAMES]
            assert np.isnan(some[:, rest]).all(), name


def test_a_slice_of_a_batch_is_measured_like_the_batch(documents: list[str]) -> None:
    data, offsets = buffers(documents)
    starts, ends, doc_starts = spans(documents, [split(text) for text in documents])
    part = quality.signals(data, offsets[40:61], starts, ends, doc_starts[40:61])
    assert np.array_equal(part, measured(documents)[40:60], equal_nan=True)
    for edit in (quality_lines.c4_lines, quality_dclm.dclm_lines):
        whole, sliced = edit(data, offsets), edit(data, offsets[40:61])
        assert texts(*sliced[:2]) == texts(*whole[:2])[40:60]


def test_strings_with_equal_hashes_are_told_apart() -> None:
    """Thue-Morse strings and their complements have equal polynomial hashes mod 2^64, whatever the odd base."""
    line = "".join("ab"[number.bit_count() & 1] for number in range(4096))
    other = line.translate({97: "b", 98: "a"})
    words = [line, *"pqrs", other, *"pqrs"]
    for text, same in (("\n".join([line, other]), 0), ("\n".join([line, line]), 0.5), (" ".join(words), 0)):
        row = dict(zip(quality.NAMES, measured([text])[0], strict=True))
        assert row["duplicate_lines"] == row["duplicate_paragraphs"] + same == same
        assert row["repeated_5_grams"] == 0


def c4(
    text: str, ends: tuple[str, ...], min_words: int, longest: int, after: bool
) -> tuple[str, dict[str, int], int]:
    kept, counts = [], dict.fromkeys(quality_lines.C4_LINES, 0)
    for raw in text.splitlines():
        words = raw.split()
        line = re.sub(r"\[\d*]|\[edit]|\[citation needed]", "", raw.strip())
        lower = line.lower()
        if any(len(word) > longest for word in words):
            counts["too_long_word"] += 1
        elif ends and (not line.endswith(ends) or line.endswith("...")):
            counts["no_terminal_punc"] += 1
        elif len(line.split() if after else words) < min_words:
            counts["too_few_words"] += 1
        elif "lorem ipsum" in lower:
            return "", counts, 1
        elif "javascript" in lower:
            counts["javascript"] += 1
        elif "{" in line:
            return "", counts, 2
        elif re.search(
            "terms of use|privacy policy|cookie policy|uses cookies|use of cookies|use cookies", lower
        ):
            counts["policy"] += 1
        else:
            counts["kept"] += 1
            kept.append(line)
    return "\n".join(kept), counts, 0


@pytest.mark.parametrize(
    ("marks", "min_words", "longest", "after"),
    [
        (".?!\"'", 3, 1000, False),
        ("", 3, 1000, False),
        ('.?!"', 5, 1000, True),
        ("", 0, 7, True),
        ("", -1, 9, False),
    ],
)
def test_c4_keeps_the_lines_it_says(documents, marks, min_words, longest, after) -> None:
    policies = "use cookies", "USES cookies", "Cookie Policy", "terms of use", "Use of Cookies"
    more = [f"we say: {policy} [1] here." for policy in policies]
    more += ["Lor[1]em ip[edit]sum dolor sit.", "The Privacy [12]Policy is this.", "a java[٣]script b c."]
    documents = documents + more
    edited = quality_lines.c4_lines(
        *buffers(documents),
        min_words=min_words,
        max_word_chars=longest,
        end_marks=marks,
        words_after_citations=after,
    )
    expected = [c4(text, tuple(marks), min_words, longest, after) for text in documents]
    assert texts(edited.data, edited.offsets) == [text for text, _, _ in expected]
    assert edited.counts.tolist() == [list(counts.values()) for _, counts, _ in expected]
    assert edited.marks.tolist() == [mark for _, _, mark in expected]


COUNTER = re.compile(
    r"^\W*\d(?:,|\.|\d)*(?:K|k|M|m|B|b)?\s+(?:likes|shares|comments|retweets|reposts|quotes|bookmarks|upvotes|downvotes|"
    r"downloads|views|followers)\W*$"
)
CUTS = [
    re.compile(cut, re.I) for cut in (r"\s?(?:items in cart)", r"\s?(?:read more...)$", r"^(?:sign-in)\s?")
]


def dclm_edit(text: str) -> tuple[str, list[int]]:
    removed = []
    for which in range(7):
        kept, lines = [], text.split("\n")
        for line in lines:
            new, goes = line, False
            if line and which < 2:
                flagged = sum(char.isupper() if which == 0 else char.isdigit() for char in line)
                goes = flagged / len(line) > (0.5 if which == 0 else 0.999999)
            elif line and which == 2:
                goes = bool(COUNTER.search(line.lower()))
            elif line and which == 3:
                goes = len(line.split()) < 2
            elif line and len(line.split()) <= 10:
                new = CUTS[which - 4].sub("", line)
                goes = not new or new.isspace()
            if not goes:
                kept.append(new)
        removed.append(len(lines) - len(kept))
        text = "\n".join(kept) if which == 3 else "\n".join(kept).strip()
    return text, removed


def test_line_modifiers_do_what_dclm_does(documents: list[str]) -> None:
    draw = random.Random(4)
    spaced = (
        "items in cart ITEMS ıtems İn Read more... read more!!! more.. Sign-in ſign-in 3 4,5k 3.5K 7M ٣ likes"
    )
    pieces = spaced.split()
    pieces += [
        "items in cart",
        "sign-in",
        "Sign-in",
        "read more…..",
        "Read more",
        "5 like\u212a",
        "\u00a0",
        "12 views!",
    ]
    pieces += ["Views", "12", "AB", "Cd", "_", "-", "é", ""]
    made = [
        "".join(draw.choice(pieces) + draw.choice("  \n\n \t\u2003") for _ in range(draw.randint(0, 40)))
        for _ in range(1500)
    ]
    documents = documents + made
    data, offsets, counts = quality_dclm.dclm_lines(*buffers(documents))
    expected = [dclm_edit(text) for text in documents]
    for text, got, (wanted, _) in zip(documents, texts(data, offsets), expected, strict=True):
        assert got == wanted, text
    assert counts.tolist() == [removed for _, removed in expected]


def test_stripping_and_limiting_line_feeds(documents: list[str]) -> None:
    data, offsets = buffers(documents)
    bounds = quality_lines.stripped(data, offsets, character_flags())
    assert texts(*quality_lines.take(data, *bounds)) == [text.strip() for text in documents]
    limited = quality_lines.limit_newlines(data, offsets, 2)
    assert texts(*limited) == [re.sub("\n{3,}", "\n\n", text) for text in documents]


def test_flags_are_those_of_python() -> None:
    flags = character_flags()
    points = [point for point in range(len(flags)) if not 0xD800 <= point < 0xE000]
    tests = {
        quality_text.ALPHA: str.isalpha,
        quality_text.ALNUM: str.isalnum,
        quality_text.SPACE: str.isspace,
        quality_text.UPPER: str.isupper,
    }
    tests |= {quality_text.DIGIT: str.isdigit, quality_text.DECIMAL: str.isdecimal}
    for flag, test in tests.items():
        assert [bool(flags[point] & flag) for point in points] == [test(chr(point)) for point in points]
        assert not any(test(chr(point)) for point in range(len(flags), 0x110000))
    assert all(bool(flags[point] & quality_text.SYMBOL) == (chr(point) in PUNCTUATION) for point in points)
