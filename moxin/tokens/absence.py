"""Proof that no evaluation question is in the training tokens: the shards are decoded and searched, word by word."""

import re
from collections import defaultdict
from collections.abc import Sequence

ANCHOR = 4
"""Words at a question's start by which it is looked up; a shorter question lowers it for all."""
_WORDS = re.compile(r"\w+")


def words(text: str) -> tuple[str, ...]:
    """Lower-case words without punctuation: what counts as the same text."""
    return tuple(_WORDS.findall(text.lower()))


class QuestionIndex:
    """Finds which questions' full texts occur in a text, in time proportional to the text."""

    def __init__(self, questions: Sequence[str]) -> None:
        wanted = {number: words(question) for number, question in enumerate(questions)}
        wanted = {number: question for number, question in wanted.items() if question}
        self._anchor = min((len(question) for question in wanted.values()), default=ANCHOR)
        self._anchor = min(self._anchor, ANCHOR)
        self._by_start: dict[tuple[str, ...], list[tuple[int, tuple[str, ...]]]] = defaultdict(list)
        for number, question in wanted.items():
            self._by_start[question[: self._anchor]].append((number, question))

    def found_in(self, text: str) -> set[int]:
        """Numbers of the questions that occur in `text`."""
        here = words(text)
        return {
            number
            for at, start in enumerate(zip(*(here[skip:] for skip in range(self._anchor)), strict=False))
            if start in self._by_start
            for number, question in self._by_start[start]
            if here[at : at + len(question)] == question
        }
