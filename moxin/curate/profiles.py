"""Curation as data one can read: what is done to the documents of a source, in which order, with which thresholds.

A profile's filters are a list of stages, a stage an optional edit of the text and an ordered list of rules. Signals are
measured once for each text (`kernels.quality`), rules decide, and the first that holds is the reason, by the name that the
code which published it reports. "Gopher" is not one filter but several, so every profile says whose it is. Around the
filters lies what else a published pipeline does: languages, blocklists, deduplication, a classifier, personal data.

    profile = override(find_profile("fineweb"), "list_ratio=0.2")
    profile = override(profile, "near.threshold=0.8")
    for row in profile.describe():
        print(*row)

`moxin.curate.verdicts` applies the filters to a batch of documents, `moxin.curate.run` a whole profile to a corpus.
"""

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from kernels import quality
from moxin import config
from moxin.curate import code as code_rules
from moxin.curate import fuzzy_shingles
from moxin.curate.fuzzy_shingles import Params


@dataclass(frozen=True)
class Rule:
    """Removes a document where `signal op threshold` holds."""

    reason: str
    signal: str
    op: str
    threshold: float


@dataclass(frozen=True)
class C4Lines:
    """C4's lines (`kernels.quality_lines.c4_lines`); gives the signals `lorem_ipsum`, `curly_bracket`, `sentences`."""

    min_words: int
    max_word_chars: int
    end_marks: str
    """A line must end with one of these; "" keeps lines whatever their end."""
    words_after_citations: bool = False


@dataclass(frozen=True)
class DclmLines:
    """RefinedWeb's line modifiers (`kernels.quality_dclm.dclm_lines`); signal `words_removed`, a share."""


@dataclass(frozen=True)
class LimitNewlines:
    """No more than `most` line feeds in a row."""

    most: int


Edit = C4Lines | DclmLines | LimitNewlines


@dataclass(frozen=True)
class Stage:
    """First edits the text, then removes documents: the first rule that holds is the reason."""

    name: str
    source: str
    """Where the rules are published."""
    rules: tuple[Rule, ...]
    edit: Edit | None = None
    words: str = "english"
    """Key of the splitter whose words the signals are of; "" where no signal needs words."""


@dataclass(frozen=True)
class Bloom:
    """Lines of which most was seen before, as DCLM's BFF has it (`moxin.curate.repeats`)."""

    ngram: int = 13
    """Words, by Unicode's word boundaries."""
    min_words: int = 13
    """Lines of fewer words are neither judged nor remembered."""
    threshold: float = 0.8
    """Share of its n-grams seen before above which a line goes, and a document."""
    fp_rate: float = 0.01
    streams: int = 1
    """Filters, and tasks that run at the same time: every one sees the units of its own, one after another. DCLM's corpus
    was deduplicated in parts, too. The result depends on it."""


@dataclass(frozen=True)
class Cutoff:
    """Which scores of the quality classifier (`curate.classifier`) are kept."""

    threshold: float = 0.0
    """Lowest score that stays; of a published model, as it was published."""
    keep: float = 0.0
    """Share of the documents that stays, where no threshold is given."""


Remedy = Literal["keep", "replace", "drop"]
Level = Literal["off", "document", "paragraph", "line"]


@dataclass(frozen=True)
class Profile:
    """What is done to the documents of a source. The order is that of the fields. Documents without text always go."""

    name: str
    stages: tuple[Stage, ...] = ()
    blocklists: bool = False
    """Whether addresses are held against `curate.blocklists`."""
    languages: Mapping[str, float] = field(default_factory=dict)
    """Lowest probability by language of lid.176, `*` for all others; a language that is not named goes. Empty: all stay."""
    code: tuple[code_rules.Rule, ...] = ()
    """For source code, in place of stages."""
    min_folded_chars: int = 0
    """Characters without case, punctuation and runs of white space (SlimPajama: 200)."""
    bad_words: bool = False
    """Whether pages with an entry of `curate.bad_words` go."""
    personal: Remedy = "keep"
    """E-mail and public IP addresses."""
    phones: Remedy = "keep"
    secrets: Remedy = "keep"
    """Keys and passwords."""
    exact: Level = "document"
    """What is compared exactly, case and white space apart; paragraphs and lines besides whole documents."""
    urls: bool = False
    """Whether of documents of one address only the first stays."""
    bloom: Bloom | None = None
    classifier: Cutoff | None = None
    near: Params | None = None

    @property
    def rules(self) -> list[Rule]:
        """Of all stages, in their order."""
        return [rule for stage in self.stages for rule in stage.rules]

    def describe(self) -> list["Row"]:
        """Every rule and step in its order, an edit before the rules of its stage."""
        nan = float("nan")
        rows = [Row("url", "blocklists", "curate.blocklists", "", nan, "", "RefinedWeb")] * self.blocklists
        rows += [
            Row("language", f"language: {name}", "probability", "<", least, "share", "fastText lid.176")
            for name, least in self.languages.items()
        ]
        for stage in self.stages:
            if stage.edit is not None:
                rows.append(Row(stage.name, "", str(stage.edit), "", nan, "", stage.source))
            rows += [
                Row(
                    stage.name,
                    rule.reason,
                    rule.signal,
                    rule.op,
                    rule.threshold,
                    UNITS[rule.signal],
                    stage.source,
                )
                for rule in stage.rules
            ]
        rows += [
            Row("code", reason, signal, op, threshold, "", f"{source}; {special or languages}")
            for reason, signal, op, threshold, languages, special, source in code_rules.describe(self.code)
        ]
        if self.min_folded_chars:
            rows.append(Row(*FOLDED, float(self.min_folded_chars), "characters", "SlimPajama"))
        if self.bad_words:
            rows.append(Row("bad words", "bad_words", "curate.bad_words", "", nan, "", "C4"))
        for name in ("personal", "phones", "secrets"):
            if getattr(self, name) != "keep":
                rows.append(Row("personal data", name, getattr(self, name), "", nan, "", ""))
        if self.exact != "off":
            rows.append(Row("exact dedup", f"exact: {self.exact}", "", "", nan, "", ""))
        if self.urls:
            rows.append(Row("exact dedup", "urls", "normalised address", "", nan, "", "RFC 3986"))
        for name, part in (("bloom", self.bloom), ("classifier", self.classifier), ("near", self.near)):
            for key, value in vars(part).items() if part is not None else ():
                rows.append(Row(name, f"{name}.{key}", f"{value}", "", nan, "", ""))
        return rows


class Row(NamedTuple):
    """One rule as `Profile.describe` prints it."""

    stage: str
    reason: str
    signal: str
    op: str
    threshold: float
    unit: str
    source: str


FOLDED = ("length", "too_short_folded", "folded_chars", "<")
UNITS = {signal.name: signal.unit for signal in quality.SIGNALS}
UNITS |= {
    "lorem_ipsum": "0 or 1",
    "curly_bracket": "0 or 1",
    "sentences": "sentences",
    "words_removed": "share",
}
_DATATROVE = "datatrove 0.10 "
_DCLM = "DCLM dclm_baseline_refinedweb.yaml"
GOPHER_QUALITY = Stage(
    "gopher quality",
    _DATATROVE + "GopherQualityFilter",
    (
        Rule("gopher_short_doc", "non_symbol_words", "<", 50),
        Rule("gopher_long_doc", "non_symbol_words", ">", 100_000),
        Rule("gopher_below_avg_threshold", "mean_word_chars", "<", 3),
        Rule("gopher_above_avg_threshold", "mean_word_chars", ">", 10),
        Rule("gopher_too_many_hashes", "hashes_per_word", ">", 0.1),
        Rule("gopher_too_many_ellipsis", "ellipses_per_word", ">", 0.1),
        Rule("gopher_too_many_bullets", "bullet_lines", ">", 0.9),
        Rule("gopher_too_many_end_ellipsis", "ellipsis_lines", ">", 0.3),
        Rule("gopher_below_alpha_threshold", "alpha_words", "<", 0.8),
        Rule("gopher_enough_stop_words", "stop_words", "<", 2),
    ),
)
_TOP = {2: 0.2, 3: 0.18, 4: 0.16}
_REPEATED = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
GOPHER_REPETITION = Stage(
    "gopher repetition",
    _DATATROVE + "GopherRepetitionFilter",
    (
        Rule("empty", "n_chars", "<", 1),
        Rule("dup_para_frac", "duplicate_paragraphs", ">", 0.3),
        Rule("dup_para_char_frac", "duplicate_paragraph_chars", ">", 0.2),
        Rule("dup_line_frac", "duplicate_lines", ">", 0.3),
        Rule("dup_line_char_frac", "duplicate_line_chars", ">", 0.2),
        *[Rule(f"top_{n}_gram", f"top_{n}_gram", ">", share) for n, share in _TOP.items()],
        *[
            Rule(f"duplicated_{n}_n_grams", f"repeated_{n}_grams", ">", share)
            for n, share in _REPEATED.items()
        ],
    ),
)
_C4_RULES = (
    Rule("lorem_ipsum", "lorem_ipsum", ">", 0),
    Rule("curly_bracket", "curly_bracket", ">", 0),
    Rule("too_few_sentences", "sentences", "<", 5),
)
C4_DATATROVE = Stage("c4", _DATATROVE + "C4QualityFilter", _C4_RULES, C4Lines(3, 1000, ".?!\"'"))
C4_FINEWEB = Stage(
    "c4", "FineWeb: C4QualityFilter(filter_no_terminal_punct=False)", _C4_RULES, C4Lines(3, 1000, "")
)
C4_TFDS = Stage(
    "c4",
    "tensorflow_datasets c4_utils.clean_page; its sentences are punkt's, here spaCy's",
    (
        Rule("loremipsum", "lorem_ipsum", ">", 0),
        Rule("squigglybracket", "curly_bracket", ">", 0),
        Rule("toofewsentences", "sentences", "<", 3),
    ),
    C4Lines(5, 1000, '.?!"', words_after_citations=True),
)
FINEWEB_QUALITY = Stage(
    "fineweb quality",
    _DATATROVE + "FineWebQualityFilter",
    (
        Rule("empty", "full_lines", "<", 1),
        Rule("line_punct_ratio", "terminal_lines", "<", 0.12),
        Rule("short_line_ratio", "short_lines", ">", 0.67),
        Rule("char_dup_ratio", "repeated_line_chars", ">", 0.01),
        Rule("list_ratio", "newlines_per_word", ">", 0.3),
    ),
)
GOPHER_DCLM = Stage(
    "gopher",
    _DCLM,
    (
        Rule("page_length_filter_min", "dclm_words", "<", 50),
        Rule("page_length_filter_max", "dclm_words", ">", 100_000),
        Rule("word_length_filter_min", "dclm_mean_word_chars", "<", 3),
        Rule("word_length_filter_max", "dclm_mean_word_chars", ">", 10),
        Rule("symbol_ratio_filter", "dclm_symbols_per_word", ">", 0.1),
        Rule("bullet_count_filter", "dclm_bullet_lines", ">", 0.9),
        Rule("ellipsis_count_filter", "dclm_ellipsis_lines", ">", 0.3),
        Rule("alphabetic_word_ratio_filter", "dclm_non_alpha_words", ">", 0.2),
        Rule("stop_word_filter", "dclm_stop_words", "<", 2),
        Rule("repeated_lines", "dclm_copied_lines", ">", 0.3),
        Rule("repeated_paragraphs", "dclm_copied_paragraphs", ">", 0.3),
        Rule("repeated_line_chars", "dclm_copied_line_chars", ">", 0.2),
        Rule("repeated_paragraph_chars", "dclm_copied_paragraph_chars", ">", 0.2),
        *[Rule(f"repeated_{n}_grams", f"dclm_top_{n}_gram", ">", share) for n, share in _TOP.items()],
        *[
            Rule(f"repeated_{n}_grams", f"dclm_copied_{n}_grams", ">", share)
            for n, share in _REPEATED.items()
        ],
    ),
    words="uax29",
)
DCLM_NEWLINES = dataclasses.replace(GOPHER_DCLM, edit=LimitNewlines(2))
DCLM_LINES = Stage(
    "line modifiers",
    _DCLM,
    (
        Rule("no_line_left", "n_chars", "<", 1),
        Rule("word_removal_ratio_filter", "words_removed", ">", 0.05),
    ),
    DclmLines(),
    words="",
)
PLAIN = Stage(
    "quality",
    "Gopher's heuristics (arXiv 2112.11446), looser, for documents of a few sentences",
    (
        Rule("empty", "n_chars", "<", 1),
        Rule("too_short", "n_chars", "<", 60),
        Rule("too_long", "n_chars", ">", 200_000),
        Rule("short_words", "mean_word_chars", "<", 2.5),
        Rule("long_words", "mean_word_chars", ">", 12),
        Rule("few_words_with_letters", "alpha_words", "<", 0.4),
        Rule("symbols", "hashes_per_word", ">", 0.1),
        Rule("repeated_lines", "duplicate_lines", ">", 0.5),
    ),
)
FINEWEB = (GOPHER_REPETITION, GOPHER_QUALITY, C4_FINEWEB, FINEWEB_QUALITY)
_ENGLISH = {"en": 0.65}
PROFILES = {
    profile.name: profile
    for profile in (
        Profile("plain", (PLAIN,), languages={"en": 0.5}, personal="replace", near=Params(16, 8)),
        Profile("slimpajama", min_folded_chars=200, near=fuzzy_shingles.published("slimpajama")),
        Profile(
            "dclm-baseline",
            (DCLM_NEWLINES, DCLM_LINES),
            blocklists=True,
            languages=_ENGLISH,
            exact="off",
            bloom=Bloom(),
            classifier=Cutoff(threshold=0.018112),
        ),
        Profile(
            "fineweb",
            FINEWEB,
            blocklists=True,
            languages=_ENGLISH,
            personal="replace",
            exact="off",
            near=fuzzy_shingles.published("fineweb"),
        ),
        Profile("c4", (C4_TFDS,), languages=_ENGLISH, bad_words=True, exact="line"),
        Profile(
            "gopher",
            (GOPHER_REPETITION, GOPHER_QUALITY),
            languages=_ENGLISH,
            near=fuzzy_shingles.published("redpajama-0.8"),
        ),
        Profile(
            "the-stack",
            code=code_rules.RULES,
            personal="replace",
            secrets="replace",
            near=fuzzy_shingles.published("the-stack"),
        ),
        Profile("near-only", near=fuzzy_shingles.published("fineweb")),
        Profile("gopher-quality/datatrove", (GOPHER_QUALITY,), exact="off"),
        Profile("gopher-repetition/datatrove", (GOPHER_REPETITION,), exact="off"),
        Profile("gopher/datatrove", (GOPHER_REPETITION, GOPHER_QUALITY), exact="off"),
        Profile("gopher/dclm", (GOPHER_DCLM,), exact="off"),
        Profile("c4/datatrove", (C4_DATATROVE,), exact="off"),
        Profile("c4/tfds", (C4_TFDS,), exact="off"),
        Profile("fineweb-quality/datatrove", (FINEWEB_QUALITY,), exact="off"),
        Profile("fineweb/datatrove", FINEWEB, exact="off"),
        Profile("refinedweb/dclm", (DCLM_NEWLINES, DCLM_LINES), exact="off"),
    )
}
SETTINGS = [each.name for each in dataclasses.fields(Profile) if each.name not in ("name", "stages", "code")]
OFF: dict[str, Any] = {
    "blocklists": False,
    "bad_words": False,
    "urls": False,
    "languages": {},
    "exact": "off",
}
OFF |= {"bloom": None, "classifier": None, "near": None, "min_folded_chars": 0}
OFF |= dict.fromkeys(("personal", "phones", "secrets"), "keep")
GROUPS: dict[str, Any] = {"bloom": Bloom(), "classifier": Cutoff(), "near": Params()}
"""What a setting of a group is set in where the profile has none."""


def find_profile(name: str) -> Profile:
    """The profile of this name.

    Raises:
        ValueError: There is none; the message names the nearest.
    """
    if name not in PROFILES:
        near = difflib.get_close_matches(name, PROFILES, 1, 0)[0]
        raise ValueError(
            f"no curation profile {name!r}; the nearest is {near!r}, and all are: {', '.join(PROFILES)}"
        )
    return PROFILES[name]


def override(profile: Profile, setting: str) -> Profile:
    """The profile with one thing changed by "name=value".

    A rule's name is its reason: its threshold is changed, or with "off" the rule is left out; where several stages have a
    rule of that name, in all of them. Other names are the numbers of edits, and the settings of a profile with a dot for
    what lies inside: "near.threshold=0.8", "languages.de=0.65", "bloom=off", "classifier.keep=0.1", "personal=drop".

    Raises:
        ValueError: No such rule or setting, or a value that cannot be.
    """
    name, _, text = (part.strip() for part in setting.partition("="))
    head = name.partition(".")[0]
    if head in SETTINGS:
        return _set(profile, name, text, setting)
    numbers = [number for stage in profile.stages for number in _numbers(stage.edit)]
    reasons = [rule.reason for rule in profile.rules] + [rule.reason for rule in profile.code]
    names = list(dict.fromkeys([*reasons, *numbers]))
    if name not in names:
        near = difflib.get_close_matches(name, [*names, *SETTINGS], 1, 0)[0]
        raise ValueError(
            f"profile {profile.name!r} has no rule or setting {name!r} (from {setting!r}); the nearest is {near!r}. "
            f"Rules: {', '.join(names) or 'none'}. Settings: {', '.join(SETTINGS)}"
        )
    try:
        value = None if text == "off" and name in reasons else float(text)
    except ValueError:
        raise ValueError(
            f"{setting!r}: {text!r} is not a number, nor is it 'off'; write {name}=5, say"
        ) from None
    stages = []
    for stage in profile.stages:
        edit = stage.edit
        if value is not None and edit is not None and name in _numbers(edit):
            edit = type(edit)(**{**vars(edit), name: int(value)})
        stages.append(dataclasses.replace(stage, rules=_changed(stage.rules, name, value), edit=edit))
    return dataclasses.replace(profile, stages=tuple(stages), code=_changed(profile.code, name, value))


def _changed(rules: tuple[Any, ...], name: str, value: float | None) -> tuple[Any, ...]:
    """The rules with the threshold of those called `name` changed, or without them."""
    return tuple(
        rule if rule.reason != name else dataclasses.replace(rule, threshold=value)
        for rule in rules
        if rule.reason != name or value is not None
    )


def _set(profile: Profile, name: str, text: str, setting: str) -> Profile:
    head, dot, rest = name.partition(".")
    if text == "off" and not dot:
        return dataclasses.replace(profile, **{head: OFF[head]})
    if head == "languages" and text == "off":
        left = {language: least for language, least in profile.languages.items() if language != rest}
        return dataclasses.replace(profile, languages=left)
    if head in GROUPS and getattr(profile, head) is None:
        if not dot:
            return dataclasses.replace(profile, **{head: GROUPS[head]})
        profile = dataclasses.replace(profile, **{head: GROUPS[head]})
    if head in OFF and isinstance(OFF[head], bool) and text == "on":
        text = "true"
    try:
        return config.override(profile, name, text)
    except ValueError as error:
        raise ValueError(f"{setting!r}: {str(error).removeprefix('--set ')}") from None


def check(profile: Profile) -> None:
    """Raises `ValueError` for settings that cannot be, naming the setting."""
    where = f"profile {profile.name!r}"
    for name, least in profile.languages.items():
        if not 0 < least <= 1:
            raise ValueError(f"{where}: languages.{name} = {least:g}: must be above 0 and at most 1")
    if profile.phones != "keep" and profile.personal == "keep":
        raise ValueError(
            f"{where}: phones = {profile.phones} has no effect with personal = keep; set that to replace, too"
        )
    if profile.near is not None:
        try:
            profile.near.validate()
        except ValueError as error:
            raise ValueError(f"{where}: near.{error}") from None
    if (cut := profile.classifier) is not None:
        if not 0 <= cut.threshold <= 1 or not 0 <= cut.keep <= 1:
            raise ValueError(
                f"{where}: classifier.threshold = {cut.threshold:g}, classifier.keep = {cut.keep:g}: from 0 to 1"
            )
        if (cut.threshold > 0) == (cut.keep > 0):
            raise ValueError(
                f"{where}: classifier.threshold = {cut.threshold:g}, classifier.keep = {cut.keep:g}: set one of the two, "
                "the other to 0"
            )
    if (bloom := profile.bloom) is not None:
        if not 1 <= bloom.min_words <= bloom.ngram or bloom.streams < 1:
            raise ValueError(
                f"{where}: bloom.min_words = {bloom.min_words}, bloom.ngram = {bloom.ngram}, bloom.streams = "
                f"{bloom.streams}: at least 1, and min_words at most ngram"
            )
        for name in ("threshold", "fp_rate"):
            if not 0 < getattr(bloom, name) < 1:
                raise ValueError(f"{where}: bloom.{name} = {getattr(bloom, name):g}: between 0 and 1")


def _numbers(edit: Edit | None) -> list[str]:
    """Names of the whole numbers that an edit is set by."""
    return [] if edit is None else [name for name, value in vars(edit).items() if type(value) is int]
