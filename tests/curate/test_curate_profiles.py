"""The filter profiles give the verdict, the reason and the text that datatrove's own filters give, on every document."""

import dataclasses
import itertools
import json
import random
import sysconfig
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zstandard
from fuzz_text import buffers, document, joined_words, spans, texts

from kernels import quality
from moxin.curate import profiles
from moxin.curate.profiles import PROFILES, Profile, find_profile, override
from moxin.curate.verdicts import OPERATORS, Verdicts, Words, apply

CORPUS = Path(__file__).resolve().parents[3] / "shared" / "data" / "corpus"


def whitespace(data: np.ndarray, offsets: np.ndarray) -> Words:
    documents = texts(data, offsets)
    return spans(documents, [text.split() for text in documents])


def run(profile: Profile, documents: list[str], **splitters: Callable) -> Verdicts:
    return apply(profile, *buffers(documents), {"english": whitespace, "uax29": whitespace, **splitters})


def outcome(profile: Profile, documents: list[str], **splitters: Callable) -> list[tuple[str, str | None]]:
    """Reason and remaining text of every document, as `judged` gives them."""
    verdicts = run(profile, documents, **splitters)
    kept = dict(zip(verdicts.kept.tolist(), texts(verdicts.data, verdicts.offsets), strict=True))
    return [(reason, kept.get(place)) for place, reason in enumerate(verdicts.reasons(profile))]


class Datatrove:
    """datatrove's filters and its English words."""

    def __init__(self) -> None:
        pytest.importorskip("datatrove")
        pytest.importorskip("spacy")
        from datatrove.data import Document
        from datatrove.pipeline import filters
        from datatrove.utils.text import split_into_words

        self.document, self.split = Document, split_into_words
        repetition, quality_ = filters.GopherRepetitionFilter, filters.GopherQualityFilter
        fineweb = [
            repetition(),
            quality_(),
            filters.C4QualityFilter(filter_no_terminal_punct=False),
            filters.FineWebQualityFilter(),
        ]
        self.filters = {
            "gopher-quality/datatrove": [quality_()],
            "gopher-repetition/datatrove": [repetition()],
            "gopher/datatrove": [repetition(), quality_()],
            "c4/datatrove": [filters.C4QualityFilter()],
            "fineweb-quality/datatrove": [filters.FineWebQualityFilter()],
            "fineweb/datatrove": fineweb,
        }

    def words(self, data: np.ndarray, offsets: np.ndarray) -> Words:
        documents = texts(data, offsets)
        return spans(documents, [self.split(text) for text in documents])

    def judged(self, name: str, text: str) -> tuple[str, str | None]:
        """The reason, and where there is none the text that remains."""
        item = self.document(text=text, id="")
        for each in self.filters[name]:
            verdict = each.filter(item)
            if verdict is not True:
                return verdict[1], None
        return "", item.text

    def agrees(self, name: str, documents: list[str]) -> None:
        ours = outcome(PROFILES[name], documents, english=self.words)
        theirs = [self.judged(name, text) for text in documents]
        different = [each for each in zip(documents, ours, theirs, strict=True) if each[1] != each[2]]
        assert not different, f"{len(different)} of {len(documents)} differ, the first: {different[0]}"


@pytest.fixture(scope="module")
def datatrove() -> Datatrove:
    return Datatrove()


FILTERS = [name for name in PROFILES if "/" in name]
NAMES = [name for name in FILTERS if name not in ("gopher/dclm", "c4/tfds", "refinedweb/dclm")]


@pytest.mark.parametrize("name", NAMES)
def test_fuzzed_documents_fare_as_with_datatrove(datatrove: Datatrove, name: str) -> None:
    draw = random.Random(21)
    documents = [document(draw) for _ in range(250)] + [joined_words(draw) for _ in range(40)]
    datatrove.agrees(name, documents)
    assert len({reason for reason, _ in outcome(PROFILES[name], documents)}) > 3


def corpus(file: str) -> list[str]:
    if file == "standard library":
        paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:60]
        documents = [path.read_text(errors="replace") for path in paths]
    else:
        if not (CORPUS / file).exists():
            pytest.skip(f"{CORPUS / file} is not there")
        raw = (CORPUS / file).read_bytes()
        if file.endswith(".zst"):
            raw = zstandard.ZstdDecompressor().stream_reader(raw).read()
            documents = [json.loads(line)["text"] for line in raw.decode().split("\n") if line]
        else:
            documents = [raw.decode()]
    draw = random.Random(5)
    pieces = []
    for text in documents:
        cuts = [0]
        while cuts[-1] < len(text):
            cuts.append(cuts[-1] + draw.randint(1000, 8000))
        pieces += [text[a:b] for a, b in itertools.pairwise(cuts)]
    return draw.sample(pieces, min(25, len(pieces)))


FILES = [
    *("abc.jsonl.zst", "inaugural.jsonl.zst", "peps.jsonl.zst", "state_union.jsonl.zst", "udhr2.jsonl.zst"),
    *("webtext.jsonl.zst", "tinyshakespeare.txt", "standard library"),
]


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
def test_real_documents_fare_as_with_datatrove(datatrove: Datatrove, file: str) -> None:
    documents = corpus(file)
    for name in NAMES:
        datatrove.agrees(name, documents)


def test_lines_are_counted_as_datatrove_counts_them() -> None:
    draw, datatrove = random.Random(3), Datatrove()  # its filters count all they ever saw
    documents = [document(draw) for _ in range(150)]
    verdicts = run(PROFILES["c4/datatrove"], documents, english=datatrove.words)
    for text in documents:
        datatrove.judged("c4/datatrove", text)
    theirs = datatrove.filters["c4/datatrove"][0].stats
    for name, lines in verdicts.lines.items():
        key = name.replace("c4: ", "line-filter-").replace("line-filter-kept", "line-kept")
        assert lines.sum() == theirs[key].total, name


def test_the_sets_are_those_of_datatrove(datatrove: Datatrove) -> None:
    from datatrove.utils.text import PUNCTUATION_SET, TERMINAL_PUNCTUATION
    from spacy.pipeline import Sentencizer

    from kernels.quality_text import NO_SENTENCE_END, SYMBOLS, TERMINALS, code_points

    terminals, symbols = set(code_points(TERMINALS)), set(code_points(SYMBOLS))
    assert terminals == set(map(ord, TERMINAL_PUNCTUATION))
    assert symbols | terminals == set(map(ord, PUNCTUATION_SET))
    assert terminals - set(code_points(NO_SENTENCE_END)) == set(map(ord, Sentencizer.default_punct_chars))


@pytest.mark.parametrize("name", FILTERS)
def test_the_first_rule_that_holds_is_the_reason(name: str) -> None:
    """Thresholds at a document's own value let it pass, and the next number beyond removes it, for that reason."""
    draw = random.Random(9)
    profile = PROFILES[name]
    removed = 0
    for text in [document(draw) for _ in range(150)]:
        verdicts = run(profile, [text])
        if verdicts.stage[0] < 0:
            continue
        removed += 1
        stage, value = profile.stages[verdicts.stage[0]], float(verdicts.value[0])
        rule = stage.rules[verdicts.rule[0]]
        assert OPERATORS[rule.op](value, rule.threshold)
        if sum(other.reason == rule.reason for each in profile.stages for other in each.rules) > 1:
            continue
        same = run(override(profile, f"{rule.reason}={value!r}"), [text])
        assert same.reasons(profile)[0] != rule.reason
        beyond = float(np.nextafter(value, -np.inf if rule.op == ">" else np.inf))
        assert run(override(profile, f"{rule.reason}={beyond!r}"), [text]).reasons(profile)[0] == rule.reason
        off = override(profile, f"{rule.reason}=off")
        assert run(off, [text]).reasons(off)[0] == same.reasons(profile)[0]
    assert removed > 20


def test_a_batch_fares_like_its_documents_alone() -> None:
    draw = random.Random(2)
    documents = [document(draw) for _ in range(60)]
    for profile in PROFILES.values():
        assert outcome(profile, documents) == [outcome(profile, [text])[0] for text in documents]
        assert outcome(profile, []) == []


def test_what_dclm_does_is_not_what_datatrove_does() -> None:
    assert outcome(PROFILES["gopher-repetition/datatrove"], ["The quick brown fox"])[0][0] == "top_2_gram"
    none = override(PROFILES["gopher/dclm"], "page_length_filter_min=off")
    assert outcome(override(none, "stop_word_filter=off"), ["The quick brown fox"]) == [
        ("", "The quick brown fox")
    ]
    varied = " ".join(
        f"the {a}{b} of {b}{a}" for a, b in itertools.permutations(["ab", "cd", "ef", "gh", "ij"], 2)
    )
    varied += " " + " ".join(a + b + a for a, b in itertools.permutations(["kl", "mn", "op", "qr"], 2)) + "."
    assert outcome(PROFILES["refinedweb/dclm"], [f"{varied}\n7 likes\n\n\n\n{varied[:8]}"]) == [
        ("", f"{varied}\n\n{varied[:8]}")
    ]
    assert (
        outcome(PROFILES["refinedweb/dclm"], [f"{varied}\n" + varied.upper()[:120]])[0][0]
        == "word_removal_ratio_filter"
    )


def test_c4_has_two_sets_of_thresholds() -> None:
    text = "\n".join(
        [
            "Four words are here.",
            "This line has five words.",
            "It ends in a quote'",
            "Six words are in this line!",
        ]
        * 2
    )
    ours, theirs = outcome(PROFILES["c4/datatrove"], [text])[0], outcome(PROFILES["c4/tfds"], [text])[0]
    assert ours[0] == theirs[0] == ""
    assert ours[1] == text
    assert theirs[1] == "\n".join(["This line has five words.", "Six words are in this line!"] * 2)


def test_a_profile_can_be_read_and_changed() -> None:
    for profile in PROFILES.values():
        profiles.check(profile)
        rows = profile.describe()
        reasons = [row.reason for row in rows]
        assert set(reasons) >= {rule.reason for rule in (*profile.rules, *profile.code)}
        assert all(
            row.source and row.unit
            for row in rows
            if row.stage in {stage.name for stage in profile.stages} and row.reason
        )
    fineweb = find_profile("fineweb")
    assert [
        row.threshold for row in override(fineweb, "list_ratio=0.2").describe() if row.reason == "list_ratio"
    ] == [0.2]
    edits = [stage.edit for stage in override(fineweb, "min_words = 7").stages if stage.edit]
    assert edits == [dataclasses.replace(profiles.C4_FINEWEB.edit, min_words=7)]
    assert "list_ratio" not in {row.reason for row in override(fineweb, "list_ratio=off").describe()}
    assert fineweb == PROFILES["fineweb"]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("list_ration=0.2", "no rule or setting 'list_ration'.*nearest is 'list_ratio'"),
        ("min_wrods=3", "nearest is 'min_words'"),
        ("list_ratio=much", "'much' is not a number"),
        ("min_words=off", "'off' is not a number"),
        ("list_ratio", "'' is not a number"),
    ],
)
def test_a_wrong_setting_is_told_with_the_nearest_right_one(setting: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        override(PROFILES["fineweb"], setting)


def test_wrong_names_are_told() -> None:
    with pytest.raises(
        ValueError, match="no curation profile 'gopher/datatrov'; the nearest is 'gopher/datatrove'"
    ):
        find_profile("gopher/datatrov")
    with pytest.raises(ValueError, match="needs the words of splitter 'uax29'; given are \\['english'\\]"):
        apply(PROFILES["gopher/dclm"], *buffers(["some text"]), {"english": whitespace})


def test_every_rule_is_about_a_signal_that_is_measured() -> None:
    measured = set(quality.NAMES) | {"lorem_ipsum", "curly_bracket", "sentences", "words_removed"}
    assert set(profiles.UNITS) == measured
    for profile in PROFILES.values():
        assert {rule.signal for stage in profile.stages for rule in stage.rules} <= measured
