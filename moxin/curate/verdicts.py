"""Applies a profile of filters to a batch of documents: edits, signals, rules, and what became of every document.

verdicts = apply(find_profile("fineweb"), data, offsets)
"""

import operator
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels import quality, quality_dclm, quality_lines, words, words_uax29
from kernels.quality_text import character_flags
from moxin.curate.profiles import DclmLines, Edit, LimitNewlines, Profile

OPERATORS = {"<": operator.lt, ">": operator.gt}
Words = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
"""Byte spans `starts` and `ends`, int64[n_words], and int64[n_docs + 1], where each document's words begin."""
Splitter = Callable[[NDArray[np.uint8], NDArray[np.int64]], Words]


class Verdicts(NamedTuple):
    """What became of every document of a batch of n."""

    stage: NDArray[np.int64]
    """int64[n]: position of the stage that removed it, -1 where none did."""
    rule: NDArray[np.int64]
    """int64[n]: position of the rule within its stage, -1 where none did."""
    value: NDArray[np.float64]
    """float64[n]: the signal of that rule, NaN where none removed it."""
    kept: NDArray[np.int64]
    """int64[n_kept]: positions of the documents that stay."""
    data: NDArray[np.uint8]
    """Their text after all edits: UTF-8, and `offsets` int64[n_kept + 1]."""
    offsets: NDArray[np.int64]
    lines: dict[str, NDArray[np.int64]]
    """By edit and outcome: lines, int64[n]; 0 for documents that the edit did not see."""
    signals: list[NDArray[np.float32]]
    """By stage, the signals of its rules in their order, float32[n, n_rules]; NaN for documents that it did not see."""

    def reasons(self, profile: Profile) -> list[str]:
        """The reason of every document, "" where it stays."""
        return [
            profile.stages[stage].rules[rule].reason if stage >= 0 else ""
            for stage, rule in zip(self.stage, self.rule, strict=True)
        ]


SPLITTERS: Mapping[str, Splitter] = {"english": words.split, "uax29": words_uax29.split}
"""By the names that stages give: as datatrove's English tokenizer splits, and by Unicode's word boundaries."""


COSTLY = quality.GRAM_SIGNALS | quality.DCLM_GRAM_SIGNALS | quality.WORD_SIGNALS | quality.LINE_SIGNALS


class _Text:
    """Documents at one moment of a profile, and what was measured of them."""

    def __init__(
        self, data: NDArray[np.uint8], offsets: NDArray[np.int64], splitters: Mapping[str, Splitter]
    ) -> None:
        self.data, self.offsets, self.splitters = data, offsets, splitters
        self.words: dict[str, Words] = {}
        self.tables: dict[str, tuple[frozenset[str], NDArray[np.float64]]] = {}

    def split(self, kind: str) -> Words:
        if kind not in self.words:
            if kind and kind not in self.splitters:
                raise ValueError(
                    f"a stage needs the words of splitter {kind!r}; given are {sorted(self.splitters)}"
                )
            nothing = np.zeros(0, np.int64)
            none = (nothing, nothing, np.zeros(len(self.offsets), np.int64))
            self.words[kind] = self.splitters[kind](self.data, self.offsets) if kind else none
        return self.words[kind]

    def table(self, kind: str, wanted: frozenset[str]) -> NDArray[np.float64]:
        wanted &= COSTLY  # the others are always measured
        if kind not in self.tables or not wanted <= self.tables[kind][0]:
            table = quality.signals(self.data, self.offsets, *self.split(kind), wanted=wanted)
            self.tables[kind] = (wanted, table)
        return self.tables[kind][1]

    def free(self, name: str) -> NDArray[np.float64]:
        """A signal that does not depend on words, from whatever was measured already."""
        tables = [table for _, table in self.tables.values()] or [self.table("", frozenset())]
        return tables[0][:, quality.NAMES.index(name)]

    def where(self, keep: NDArray[np.bool_]) -> "_Text":
        """Some of the documents, with what was measured of them."""
        if keep.all():
            return self
        out = self.take(self.offsets[:-1][keep], self.offsets[1:][keep])
        out.tables = {kind: (wanted, table[keep]) for kind, (wanted, table) in self.tables.items()}
        return out

    def take(self, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> "_Text":
        return _Text(*quality_lines.take(self.data, starts, ends), self.splitters)


def apply(
    profile: Profile,
    data: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    splitters: Mapping[str, Splitter] = SPLITTERS,
) -> Verdicts:
    """Runs a profile over a batch: `data` uint8, UTF-8, and `offsets` int64[n + 1].

    A document that a stage removes is not seen by the next.

    Raises:
        ValueError: A stage needs the words of a splitter that was not given.
    """
    n = len(offsets) - 1
    stage_of, rule_of = np.full(n, -1, np.int64), np.full(n, -1, np.int64)
    value_of = np.full(n, np.nan)
    lines: dict[str, NDArray[np.int64]] = {}
    signals: list[NDArray[np.float32]] = []
    text, rows = _Text(data, offsets, splitters), np.arange(n)
    for position, stage in enumerate(profile.stages):
        extra: dict[str, NDArray[np.float64]] = {}
        if stage.edit is not None:
            alive = stage_of[rows] < 0
            rows = rows[alive]
            text = text.where(alive)
            text, extra, counts = _edit(stage.edit, text)
            for name, count in counts.items():
                lines[name] = np.zeros(n, np.int64)
                lines[name][rows] = count
        table = text.table(stage.words, _wanted(profile, position))
        seen = stage_of[rows] < 0
        signals.append(np.full((n, len(stage.rules)), np.nan, np.float32))
        for number, rule in enumerate(stage.rules):
            value = extra[rule.signal] if rule.signal in extra else table[:, quality.NAMES.index(rule.signal)]
            signals[-1][rows[seen], number] = value[seen]
            removed = OPERATORS[rule.op](value, rule.threshold) & (stage_of[rows] < 0)
            where = rows[removed]
            stage_of[where], rule_of[where], value_of[where] = position, number, value[removed]
    alive = stage_of[rows] < 0
    kept = text.where(alive)
    return Verdicts(stage_of, rule_of, value_of, rows[alive], kept.data, kept.offsets, lines, signals)


def _wanted(profile: Profile, position: int) -> frozenset[str]:
    """The signals that this stage, and those after it that see the same text, have rules about."""
    wanted = {rule.signal for rule in profile.stages[position].rules}
    for stage in profile.stages[position + 1 :]:
        if stage.edit is not None:
            break
        if stage.words == profile.stages[position].words:
            wanted |= {rule.signal for rule in stage.rules}
    return frozenset(wanted)


def _edit(
    edit: Edit, text: _Text
) -> tuple[_Text, dict[str, NDArray[np.float64]], dict[str, NDArray[np.int64]]]:
    """The edited text, signals that only the edit gives, and lines by outcome."""
    if isinstance(edit, LimitNewlines):
        return (
            _Text(*quality_lines.limit_newlines(text.data, text.offsets, edit.most), text.splitters),
            {},
            {},
        )
    if isinstance(edit, DclmLines):
        data, offsets, counts = quality_dclm.dclm_lines(text.data, text.offsets)
        after = _Text(data, offsets, text.splitters)
        n_before, n_after = (each.free("dclm_words") for each in (text, after))
        outcomes = {f"line modifiers: {name}": counts[:, k] for k, name in enumerate(quality_dclm.DCLM_LINES)}
        return after, {"words_removed": (n_before - n_after) / np.maximum(n_before, 1)}, outcomes
    edited = quality_lines.c4_lines(text.data, text.offsets, **vars(edit))
    after = _Text(edited.data, edited.offsets, text.splitters)
    n_sentences = quality_lines.sentences(
        after.data, after.offsets, *after.split("english"), edited.counts[:, 5]
    )
    extra = {
        "lorem_ipsum": (edited.marks == 1).astype(float),
        "curly_bracket": (edited.marks == 2).astype(float),
        "sentences": n_sentences.astype(float),
    }
    starts, ends = quality_lines.stripped(after.data, after.offsets, character_flags())
    if (starts != after.offsets[:-1]).any() or (ends != after.offsets[1:]).any():
        after = after.take(starts, ends)
    outcomes = {f"c4: {name}": edited.counts[:, k] for k, name in enumerate(quality_lines.C4_LINES)}
    return after, extra, outcomes
