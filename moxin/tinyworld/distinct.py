"""What makes planted labels true: no original is a near-duplicate of another or holds a held-out question.

Similarity is the Jaccard index of the sets of word 5-grams, the measure that MinHash estimates (Broder 1997).
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import TypeVar

N = 5
"""Words in a shingle."""
LEAK_WORDS = 8
"""Words in a row shared with a question and its answer that make a document contaminated."""
ATTEMPTS = 500

T = TypeVar("T")


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def ngrams(tokens: list[str], n: int) -> set[str]:
    """All runs of n words; the whole text where it is shorter."""
    return {" ".join(tokens[i : i + n]) for i in range(max(len(tokens) - n + 1, 1))}


def shingles(text: str) -> set[str]:
    return ngrams(words(text), N)


def jaccard(a: set[str], b: set[str]) -> float:
    return len(a & b) / len(a | b)


class Distinct:
    """Accepts texts one by one and refuses any that is too like an accepted one, or that holds a forbidden run of words.

    Exact, by prefix filtering: two sets with Jaccard >= t share at least t of the larger one, so at least one of any
    (1 - t) n + 1 shingles of the new text is in the other. Looking up its rarest shingles finds every candidate.
    """

    def __init__(self, limit: float, forbidden: Iterable[str] = ()) -> None:
        self.limit = limit
        self._sets: list[set[str]] = []
        self._holders: defaultdict[str, list[int]] = defaultdict(list)
        self._forbidden: defaultdict[int, set[str]] = defaultdict(set)
        for phrase in forbidden:
            tokens = words(phrase)
            self._forbidden[min(len(tokens), LEAK_WORDS)] |= ngrams(tokens, LEAK_WORDS)

    def add(self, text: str, may_leak: bool = False) -> bool:
        """Whether the text was accepted."""
        new = shingles(text)
        if not may_leak and self._leaks(text):
            return False
        rarest = sorted(new, key=lambda shingle: (len(self._holders.get(shingle, ())), shingle))
        prefix = rarest[: int(len(new) * (1 - self.limit)) + 2]  # + 1 and room for rounding
        candidates = {holder for shingle in prefix for holder in self._holders.get(shingle, ())}
        if any(jaccard(new, self._sets[candidate]) >= self.limit for candidate in candidates):
            return False
        for shingle in new:
            self._holders[shingle].append(len(self._sets))
        self._sets.append(new)
        return True

    def draw(self, make: Callable[[], T], text: Callable[[T], str], what: str, may_leak: bool = False) -> T:
        """The first of `make()`, `make()`, … that is accepted. Raises `ValueError` when the templates are used up."""
        for _ in range(ATTEMPTS):
            made = make()
            if self.add(text(made), may_leak):
                return made
        raise ValueError(
            f"tinyworld: {ATTEMPTS} attempts at one more {what} gave nothing new after {len(self._sets):,} documents; "
            "lower the counts of tinyworld (n_documents, n_quiz_documents, …) or raise tinyworld.n_people"
        )

    def _leaks(self, text: str) -> bool:
        tokens = words(text)
        return any(not phrases.isdisjoint(ngrams(tokens, n)) for n, phrases in self._forbidden.items())
