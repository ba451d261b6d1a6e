"""Proof that no evaluation question is in the training tokens: the texts that are tokenized are searched, word by word."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from kernels.minhash import ngrams
from kernels.text import unicode_tables, word_hashes
from moxin.arrow import utf8_buffers

ANCHOR = 4
"""Words at a question's start by which it is looked up; a shorter question lowers it for all."""


class QuestionIndex:
    """Finds which questions' full texts occur in documents. Words are compared in lower case and without punctuation."""

    def __init__(self, questions: Sequence[str]) -> None:
        hashes, starts = _words(pa.array(questions, pa.string()))
        lengths = np.diff(starts)
        asked = np.flatnonzero(lengths)
        self._anchor = int(min(ANCHOR, lengths[asked].min(initial=ANCHOR)))
        self._questions = [hashes[starts[number] : starts[number + 1]] for number in asked]
        begins = [question[: self._anchor] for question in self._questions]
        anchors, _ = ngrams(
            np.concatenate(begins or [np.empty(0, np.uint64)]),
            np.arange(len(asked) + 1) * self._anchor,
            self._anchor,
        )
        order = np.argsort(anchors, kind="stable")
        self._anchors, self._numbers, self._of = anchors[order], asked[order], order

    def found_in(self, texts: pa.Array) -> set[tuple[int, int]]:
        """Pairs (document, question) of the questions that occur in `texts`, by their positions."""
        hashes, starts = _words(texts)
        grams, gram_starts = ngrams(hashes, starts, self._anchor)
        first = np.searchsorted(self._anchors, grams, "left")
        last = np.searchsorted(self._anchors, grams, "right")
        found = set()
        for gram in np.flatnonzero(last > first).tolist():
            document = int(np.searchsorted(gram_starts, gram, "right")) - 1
            at = int(starts[document]) + gram - int(gram_starts[document])
            here = hashes[at : starts[document + 1]]
            for candidate in range(first[gram], last[gram]):
                question = self._questions[self._of[candidate]]
                if np.array_equal(here[: len(question)], question):
                    found.add((document, int(self._numbers[candidate])))
        return found


def _words(texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    return word_hashes(*utf8_buffers(texts), *unicode_tables())
