"""Documents that hold an evaluation question: shared runs of words, as for GPT-3 (arXiv 2005.14165, appendix C).

Words are compared in lower case and without punctuation. A question, with its answer after it, of at least n words is found
by any n of them in a row; a shorter question by all of its words in a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kernels.minhash import ngrams
from kernels.text import unicode_tables, word_hashes
from moxin.arrow import utf8_buffers

MIN_WORDS = 4
"""A question of fewer words is found only together with its answer: "How so?" is in many documents."""


@dataclass(frozen=True)
class Index:
    """Hashes of word runs by their length, sorted, with the position of the question that each is from."""

    ids: list[str]
    runs: dict[int, tuple[NDArray[np.uint64], NDArray[np.int64]]]


def build(questions: Sequence[dict[str, Any]], n: int) -> Index:
    """The index of rows with `id`, `question` and `text` (the answer). Raises `ValueError` for n < 1."""
    if n < 1:
        raise ValueError(f"curate.decontamination_ngram = {n}: at least 1 word")
    both = [text for row in questions for text in (row["question"], f"{row['question']} {row['text']}")]
    hashes, starts = word_hashes(*utf8_buffers(pa.array(both, pa.string())), *unicode_tables())
    found: dict[int, list[tuple[int, int]]] = {}
    for position in range(len(questions)):
        alone = hashes[starts[2 * position] : starts[2 * position + 1]]
        words = hashes[starts[2 * position + 1] : starts[2 * position + 2]]
        if MIN_WORDS <= len(alone) < n:
            words = alone
        if not len(words):
            continue
        length = min(n, len(words))
        values, _ = ngrams(words, np.array([0, len(words)]), length)
        found.setdefault(length, []).extend((int(value), position) for value in values)
    runs = {}
    for length, pairs in sorted(found.items()):
        values_, positions = zip(*sorted(set(pairs)), strict=True)
        runs[length] = (np.array(values_, np.uint64), np.array(positions, np.int64))
    return Index([str(row["id"]) for row in questions], runs)


def hits(index: Index, words: NDArray[np.uint64], starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Pairs (document, question) that share a run of words, sorted: int64[n_hits, 2]. `words` from `word_hashes`."""
    found = [np.empty((0, 2), np.int64)]
    for length, (values, positions) in index.runs.items():
        grams, gram_starts = ngrams(words, starts, length)
        first, last = np.searchsorted(values, grams, "left"), np.searchsorted(values, grams, "right")
        for gram in np.flatnonzero(last > first):
            document = np.searchsorted(gram_starts, gram, "right") - 1
            found += [np.array([[document, positions[k]]]) for k in range(first[gram], last[gram])]
    return np.unique(np.concatenate(found), axis=0)
