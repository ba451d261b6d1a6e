"""The quality rules as a list that one can read: which signal, compared how, with what, removes a document.

Signals are measured once (`kernels.text`); rules decide. Prose is held to the heuristics of Gopher (arXiv 2112.11446), code
to those of The Stack and StarCoder (arXiv 2211.15533, 2305.06161).
"""

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moxin.recipe import CurateConfig

OPERATORS = {"<": operator.lt, ">": operator.gt}
MAX_LINE_LENGTH, MAX_MEAN_LINE_LENGTH, MIN_ALNUM_RATIO = 1000, 100, 0.25
GENERATED = (
    r"(?i)\b(auto-?generated|automatically generated|generated (by|from|using)|do not (edit|modify))\b"
)
CODE_KINDS = ("code", "tree")
"""Kinds of sources that hold code."""
GENERATED_CHARS = 1000
"""Code that says within so many characters that a program wrote it was not written by anybody."""


@dataclass(frozen=True)
class Rule:
    """Removes a document where `signal op threshold` holds."""

    step: str
    """The line of the funnel in which the removal is counted."""
    name: str
    """The reason that is recorded."""
    signal: str
    op: str
    threshold: float


def rules_for(kind: str, config: CurateConfig) -> list[Rule]:
    """The rules for a source of this kind, in their order: the first that holds is the reason."""
    length = [
        Rule("length", "empty", "n_chars", "<", 1),
        Rule("length", "too_short", "n_chars", "<", config.min_chars),
        Rule("length", "too_long", "n_chars", ">", config.max_chars),
    ]
    if kind in CODE_KINDS:
        return [
            *length,
            Rule("quality", "long_line", "max_line_length", ">", MAX_LINE_LENGTH),
            Rule("quality", "long_lines", "mean_line_length", ">", MAX_MEAN_LINE_LENGTH),
            Rule("quality", "few_letters", "alnum_ratio", "<", MIN_ALNUM_RATIO),
            Rule("quality", "generated_code", "generated", ">", 0),
        ]
    return [
        *length,
        Rule("language", "other_language", "wanted_language", "<", config.language_threshold),
        Rule("quality", "short_words", "mean_word_length", "<", config.min_mean_word_length),
        Rule("quality", "long_words", "mean_word_length", ">", config.max_mean_word_length),
        Rule("quality", "few_words_with_letters", "alpha_words", "<", config.min_alpha_words),
        Rule("quality", "symbols", "symbol_ratio", ">", config.max_symbol_ratio),
        Rule("quality", "repeated_lines", "duplicate_lines", ">", config.max_duplicate_lines),
        Rule("quality", "no_stop_words", "stop_words", "<", config.min_stop_words),
    ]


def apply(rules: list[Rule], signals: Mapping[str, NDArray[Any]], n_docs: int) -> NDArray[np.int64]:
    """The position of the first rule that removes each document, -1 where none does: int64[n_docs]."""
    first = np.full(n_docs, -1, np.int64)
    for position, rule in reversed(list(enumerate(rules))):
        first[OPERATORS[rule.op](signals[rule.signal], rule.threshold)] = position
    return first
