"""Speculative decoding by prompt look-up: what followed the last tokens when they came before is guessed to follow again
(github.com/apoorvumang/prompt-lookup-decoding; arXiv 2211.17192 for the verification).

The guesses are read in one pass with the last token. Each position's token is then drawn as without guesses, from the same
distribution with the same random number, and the guesses that it agrees with have saved a pass. For a guess without a
distribution of its own that is arXiv 2211.17192's rule, and it keeps every single token what it would have been.
"""

from collections.abc import Sequence

LONGEST_MATCH = 4
"""Tokens that are looked up, at most; longer ones first, as they promise more."""
SHORTEST_MATCH = 2


class PromptLookup:
    """The guesses for one sequence; remembers where every n-gram of it came last, so that a look-up does not search."""

    def __init__(self, n_guesses: int) -> None:
        self.n_guesses = n_guesses
        self._seen = 0
        self._last: dict[tuple[int, ...], int] = {}
        """An n-gram -> the index behind its last occurrence that has something behind it."""

    def guess(self, tokens: Sequence[int]) -> list[int]:
        """`n_guesses` tokens that may follow; none where the last ones are new."""
        for end in range(self._seen + 1, len(tokens)):  # the n-grams that end before the last token
            for n in range(SHORTEST_MATCH, LONGEST_MATCH + 1):
                if n <= end:
                    self._last[tuple(tokens[end - n : end])] = end
        self._seen = max(self._seen, len(tokens) - 1)
        for n in range(min(LONGEST_MATCH, len(tokens)), SHORTEST_MATCH - 1, -1):
            if (at := self._last.get(tuple(tokens[len(tokens) - n :]))) is not None:
                found = list(tokens[at : at + self.n_guesses])
                while (
                    len(found) < self.n_guesses
                ):  # the text repeats itself right up to its end: so it may go on
                    found.append(found[len(found) - (len(tokens) - at)])
                return found
        return []
