"""fastText's supervised models in numba: features of a text, probabilities, training (arXiv 1607.01759).

Arrow's UTF-8 buffers go in: `data` uint8, documents one after the other, `offsets` int64[n_docs + 1]. The GIL is released.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import njit, uint32, uint64
from numpy.typing import NDArray

FNV_START: Any = np.uint32(2166136261)


class Tables(NamedTuple):
    """What the kernels read of a model."""

    word_bytes: NDArray[np.uint8]
    word_offsets: NDArray[np.int64]
    """The dictionary's entries one after the other, words before labels: int64[n_words + n_labels + 1]."""
    slots: NDArray[np.int32]
    """Open addressing by a word's hash: an entry, or -1. A power of two."""
    n_words: int
    bucket: int
    minn: int
    maxn: int
    word_ngrams: int
    prune: NDArray[np.int32]
    """int32[bucket]: the row after the words' rows, -1 where it was pruned; empty where nothing was."""
    kept: NDArray[np.uint64]
    """One bit per bucket, whether it was not pruned: 250 KB stay in the cache where `prune`, 8 MB, does not."""
    input: NDArray[np.float32]
    output: NDArray[np.float32]
    """float32[n_labels, dim]; in a hierarchical softmax, of the tree's inner nodes."""
    children: NDArray[np.int32]
    """int32[2 * n_labels - 1, 2]: the tree, leaves first, the root last; empty for a plain softmax."""


@njit(inline="always")
def _fnv(state: Any, byte: Any) -> Any:
    """FNV-1a of 32 bits; fastText reads a byte as signed."""
    return uint32((uint32(state) ^ uint32(byte | (0xFFFFFF00 if byte > 127 else 0))) * uint32(16777619))


@njit(nogil=True, cache=True)
def slots(data: NDArray[np.uint8], offsets: NDArray[np.int64], size: int) -> NDArray[np.int32]:
    """`Tables.slots` of a dictionary's entries; `size` is a power of two, above their number."""
    found = np.full(size, np.int32(-1), np.int32)
    for entry in range(len(offsets) - 1):
        state = FNV_START
        for at in range(offsets[entry], offsets[entry + 1]):
            state = _fnv(state, data[at])
        slot = np.int64(state) & (size - 1)
        while found[slot] >= 0:
            slot = (slot + 1) & (size - 1)
        found[slot] = entry
    return found


@njit(nogil=True, cache=True)
def _entry(tables: Tables, word: NDArray[np.uint8], state: Any) -> Any:
    slot = np.int64(state) & (len(tables.slots) - 1)
    while tables.slots[slot] >= 0:
        entry = np.int64(tables.slots[slot])
        first = tables.word_offsets[entry]
        if tables.word_offsets[entry + 1] - first == len(word):
            same = True
            for k in range(len(word)):
                same = same and tables.word_bytes[first + k] == word[k]
            if same:
                return entry
        slot = (slot + 1) & (len(tables.slots) - 1)
    return -1


@njit(inline="always")
def _push(tables: Tables, hashed: Any, rows: NDArray[np.int64], n: Any) -> Any:
    """A hashed n-gram's row after the others, unless it was pruned; returns how many rows there are."""
    if len(tables.kept) == 0:
        rows[n] = tables.n_words + hashed
        return n + 1
    if (tables.kept[hashed >> 6] >> uint64(hashed & 63)) & uint64(1):
        rows[n] = tables.n_words + tables.prune[hashed]
        return n + 1
    return n


@njit(nogil=True, cache=True)
def _features(
    tables: Tables,
    text: NDArray[np.uint8],
    max_chars: int,
    word: NDArray[np.uint8],
    rows: NDArray[np.int64],
    hashes: NDArray[np.int64],
) -> tuple[int, int]:
    """`Dictionary::getLine`: fills `rows` of the input matrix; returns how many, and how many words there are with EOS.

    `word` and `hashes` are scratch, longer than the text.
    """
    n_rows, n_words, at, n_chars = 0, 0, 0, 0
    ended, inverse = False, 1.0 / max(tables.bucket, 1)  # a division takes four times as long
    while not ended:
        length, state = 0, FNV_START
        while at < len(text) and n_chars < max_chars:
            byte = text[at]
            space = byte == 32 or 9 <= byte <= 13 or byte == 0
            if space and length:
                break
            at += 1
            n_chars += at == len(text) or (text[at] & 0xC0) != 0x80
            if not space:
                length += 1
                word[length] = byte
                state = _fnv(state, byte)
        ended = length == 0
        if ended:
            for byte in (60, 47, 115, 62):  # "</s>"
                length += 1
                word[length] = byte
                state = _fnv(state, byte)
        entry = _entry(tables, word[1 : length + 1], state)
        is_eos = length == 4 and word[1] == 60 and word[2] == 47 and word[3] == 115 and word[4] == 62
        ended = ended or is_eos
        is_label = length >= 9
        for k, byte in enumerate((95, 95, 108, 97, 98, 101, 108, 95, 95)):  # "__label__"
            is_label = is_label and word[1 + k] == byte
        if entry >= tables.n_words or (entry < 0 and is_label):
            continue
        hashes[n_words] = np.int64(np.int32(state))
        n_words += 1
        if entry >= 0:
            rows[n_rows] = entry
            n_rows += 1
        if tables.maxn > 0 and not is_eos:
            word[0], word[length + 1] = 60, 62
            for first in range(length + 2):
                if word[first] & 0xC0 == 0x80:
                    continue
                state, last, n = FNV_START, first, 1
                while last < length + 2 and n <= tables.maxn:
                    state = _fnv(state, word[last])
                    last += 1
                    while last < length + 2 and word[last] & 0xC0 == 0x80:
                        state = _fnv(state, word[last])
                        last += 1
                    if n >= tables.minn and not (n == 1 and (first == 0 or last == length + 2)):
                        hashed = np.int64(uint32(state))
                        hashed -= np.int64(np.float64(hashed) * inverse) * tables.bucket
                        if hashed < 0:  # the quotient may be one too large or too small
                            hashed += tables.bucket
                        elif hashed >= tables.bucket:
                            hashed -= tables.bucket
                        n_rows = _push(tables, hashed, rows, n_rows)
                    n += 1
    for first in range(n_words):
        state64 = uint64(hashes[first])
        for last in range(first + 1, min(first + tables.word_ngrams, n_words)):
            state64 = state64 * uint64(116049371) + uint64(hashes[last])
            n_rows = _push(tables, np.int64(state64 % uint64(tables.bucket)), rows, n_rows)
    return n_rows, n_words


@njit(nogil=True, cache=True)
def _scratch(
    tables: Tables, offsets: NDArray[np.int64], max_chars: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    longest = 0
    for doc in range(len(offsets) - 1):
        longest = max(longest, min(offsets[doc + 1] - offsets[doc], 4 * max_chars))
    n_words = longest // 2 + 3
    n_rows = n_words * tables.word_ngrams + tables.maxn * (longest + 2 * n_words)
    return np.empty(longest + 12, np.uint8), np.empty(n_rows, np.int64), np.empty(n_words, np.int64)


@njit(nogil=True, cache=True)
def _hidden(matrix: NDArray[np.float32], rows: NDArray[np.int64], hidden: NDArray[np.float32]) -> None:
    hidden[:] = 0
    for row in rows:
        for k in range(len(hidden)):
            hidden[k] += matrix[row, k]
    scale = np.float32(1.0 / len(rows))
    for k in range(len(hidden)):
        hidden[k] *= scale


@njit(nogil=True, cache=True)
def _softmax(output: NDArray[np.float32], hidden: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    for label in range(len(out)):
        total = np.float32(0)
        for k in range(len(hidden)):
            total += output[label, k] * hidden[k]
        out[label] = total
    out[:] = np.exp(out - out.max())
    out /= out.sum()


@njit(nogil=True, cache=True)
def probabilities(
    tables: Tables, data: NDArray[np.uint8], offsets: NDArray[np.int64], max_chars: int, n_labels: int
) -> NDArray[np.float32]:
    """Of every label, by a document's first `max_chars` characters: float32[n_docs, n_labels]; 0 for a text of nothing."""
    n_docs, n_nodes = len(offsets) - 1, len(tables.children)
    out = np.zeros((n_docs, n_labels), np.float32)
    word, rows, hashes = _scratch(tables, offsets, max_chars)
    hidden, logs = np.empty(tables.input.shape[1], np.float32), np.zeros(n_nodes, np.float32)
    for doc in range(n_docs):
        text = data[offsets[doc] : offsets[doc + 1]]
        n_rows, _ = _features(tables, text, max_chars, word, rows, hashes)
        if not n_rows:
            continue
        _hidden(tables.input, rows[:n_rows], hidden)
        if n_nodes == 0:
            _softmax(tables.output, hidden, out[doc])
            out[doc] += np.float32(1e-5)
            continue
        for node in range(n_nodes - 1, n_labels - 1, -1):  # a parent comes after its children
            total = np.float32(0)
            for k in range(len(hidden)):
                total += tables.output[node - n_labels, k] * hidden[k]
            right = np.float32(1.0 / (1.0 + np.exp(-np.float64(total))))
            left_child, right_child = tables.children[node]
            logs[left_child] = logs[node] + np.float32(np.log(1.0 - right + 1e-5))
            logs[right_child] = logs[node] + np.float32(np.log(right + 1e-5))
        out[doc] = np.exp(logs[:n_labels])
    return out


@njit(nogil=True, cache=True)
def train(
    tables: Tables,
    data: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    targets: NDArray[np.int64],
    order: NDArray[np.int64],
    epochs: int,
    learning_rate: float,
) -> None:
    """Stochastic gradient descent over the documents in `order`, `epochs` times, into `tables.input` and `tables.output`.

    `targets` int64[n_docs] are label numbers. The rate falls linearly to 0, as in fastText.
    """
    word, rows, hashes = _scratch(tables, offsets, 1 << 40)
    dim, n_labels = tables.output.shape[1], len(tables.output)
    hidden, gradient = np.empty(dim, np.float32), np.empty(dim, np.float32)
    shares = np.empty(n_labels, np.float32)
    total = 0
    for doc in order:
        text = data[offsets[doc] : offsets[doc + 1]]
        total += _features(tables, text, 1 << 40, word, rows, hashes)[1] + 1  # its label is a token too
    done = 0
    for _ in range(epochs):
        for doc in order:
            text = data[offsets[doc] : offsets[doc + 1]]
            rate = learning_rate * (1.0 - done / (epochs * total))
            n_rows, n_words = _features(tables, text, 1 << 40, word, rows, hashes)
            done += n_words + 1
            if not n_rows:
                continue
            _hidden(tables.input, rows[:n_rows], hidden)
            _softmax(tables.output, hidden, shares)
            gradient[:] = 0
            for label in range(n_labels):
                step = np.float32(rate * ((label == targets[doc]) - shares[label]))
                for k in range(dim):
                    gradient[k] += step * tables.output[label, k]
                    tables.output[label, k] += step * hidden[k]
            gradient *= np.float32(1.0 / n_rows)
            for row in rows[:n_rows]:
                for k in range(dim):
                    tables.input[row, k] += gradient[k]
