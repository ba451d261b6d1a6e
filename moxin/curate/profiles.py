"""The published English filter sets as data one can read: which signal, compared how, with what, removes a document.

A profile is a list of stages, a stage an optional edit of the text and an ordered list of rules. Signals are measured once
for each text (`kernels.quality`), rules decide, and the first that holds is the reason, by the name that the code which
published it reports. "Gopher" is not one filter but several, so every profile says whose it is.

    profile = override(find_profile("fineweb"), "list_ratio=0.2")
    for row in profile.describe():
        print(*row)

`moxin.curate.verdicts` applies a profile to a batch of documents.
"""

import dataclasses
import difflib
from dataclasses import dataclass
from typing import NamedTuple

from kernels import quality


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


class Row(NamedTuple):
    """One rule as `Profile.describe` prints it."""

    stage: str
    reason: str
    signal: str
    op: str
    threshold: float
    unit: str
    source: str


@dataclass(frozen=True)
class Profile:
    """A named list of stages."""

    name: str
    stages: tuple[Stage, ...]

    def describe(self) -> list[Row]:
        """Every rule in its order, an edit before the rules of its stage."""
        rows = []
        for stage in self.stages:
            if stage.edit is not None:
                rows.append(Row(stage.name, "", str(stage.edit), "", float("nan"), "", stage.source))
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
        return rows


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
PROFILES = {
    profile.name: profile
    for profile in (
        Profile("gopher-quality/datatrove", (GOPHER_QUALITY,)),
        Profile("gopher-repetition/datatrove", (GOPHER_REPETITION,)),
        Profile("gopher/datatrove", (GOPHER_REPETITION, GOPHER_QUALITY)),
        Profile("gopher/dclm", (GOPHER_DCLM,)),
        Profile("c4/datatrove", (C4_DATATROVE,)),
        Profile("c4/tfds", (C4_TFDS,)),
        Profile("fineweb-quality/datatrove", (FINEWEB_QUALITY,)),
        Profile("fineweb", (GOPHER_REPETITION, GOPHER_QUALITY, C4_FINEWEB, FINEWEB_QUALITY)),
        Profile("refinedweb/dclm", (DCLM_NEWLINES, DCLM_LINES)),
    )
}


def find_profile(name: str) -> Profile:
    """The profile of this name.

    Raises:
        ValueError: There is none; the message names the nearest.
    """
    if name not in PROFILES:
        near = difflib.get_close_matches(name, PROFILES, 1, 0)[0]
        raise ValueError(
            f"no filter profile {name!r}; the nearest is {near!r}, and all are: {', '.join(PROFILES)}"
        )
    return PROFILES[name]


def override(profile: Profile, setting: str) -> Profile:
    """The profile with a threshold, or a number of an edit, changed by "name=value"; "name=off" leaves a rule out.

    A rule's name is its reason. Where several stages have a rule of that name, all are changed.

    Raises:
        ValueError: No such rule, or not a number.
    """
    name, _, text = (part.strip() for part in setting.partition("="))
    rules = [rule.reason for stage in profile.stages for rule in stage.rules]
    numbers = [number for stage in profile.stages for number in _numbers(stage.edit)]
    names = list(dict.fromkeys([*rules, *numbers]))
    if name not in names:
        near = difflib.get_close_matches(name, names, 1, 0)[0]
        raise ValueError(
            f"profile {profile.name!r} has no rule {name!r} (from {setting!r}); the nearest is {near!r}, "
            f"and all are: {', '.join(names)}"
        )
    try:
        value = None if text == "off" and name in rules else float(text)
    except ValueError:
        raise ValueError(
            f"{setting!r}: {text!r} is not a number, nor is it 'off'; write {name}=5, say"
        ) from None
    stages = []
    for stage in profile.stages:
        edit = stage.edit
        if value is not None and edit is not None and name in _numbers(edit):
            edit = type(edit)(**{**vars(edit), name: int(value)})
        changed = []
        for rule in stage.rules:
            if rule.reason != name:
                changed.append(rule)
            elif value is not None:
                changed.append(dataclasses.replace(rule, threshold=value))
        stages.append(dataclasses.replace(stage, rules=tuple(changed), edit=edit))
    return dataclasses.replace(profile, stages=tuple(stages))


def _numbers(edit: Edit | None) -> list[str]:
    """Names of the whole numbers that an edit is set by."""
    return [] if edit is None else [name for name, value in vars(edit).items() if type(value) is int]
