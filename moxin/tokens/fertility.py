"""How many bytes of text a token stands for, by source and language, beside tokenizers that others use.

The higher, the shorter the sequences; a source or language far below the others is one that the vocabulary has not learned.
"""

import importlib.resources
from collections.abc import Hashable, Mapping, Sequence
from importlib.util import find_spec

import numpy as np
import pyarrow as pa

from moxin.arrow import utf8_buffers
from moxin.tokens.tokenizer import Tokenizer

MISTRAL = "mistral-common"
"""The package that has Mistral's 32,000 pieces, and what they are called in reports."""

Row = tuple[Hashable, int, dict[str, float]]


def measure(tokenizers: Mapping[str, Tokenizer], texts: pa.Array, groups: Sequence[Hashable]) -> list[Row]:
    """(group, bytes of text, bytes per token of every tokenizer) of every group that has text, sorted.

    `groups` has one name for each text: its source, or (source, language). Control tokens around a text do not count.
    """
    if len(groups) != len(texts):
        raise ValueError(f"{len(groups)} groups for {len(texts)} texts; give each its own")
    names = sorted(set(groups), key=str)
    number = {name: i for i, name in enumerate(names)}
    codes = np.array([number[group] for group in groups], np.int64)

    def per_group(offsets: np.ndarray) -> np.ndarray:
        total = np.zeros(len(names), np.int64)
        np.add.at(total, codes, np.diff(offsets))
        return total

    sizes = per_group(utf8_buffers(texts)[1])
    tokens = {name: per_group(tokenizer.encode_arrow(texts)[1]) for name, tokenizer in tokenizers.items()}
    return [
        (group, int(size), {name: float(size / max(counts[i], 1)) for name, counts in tokens.items()})
        for i, (group, size) in enumerate(zip(names, sizes, strict=True))
        if size
    ]


def references(paths: Sequence[str]) -> dict[str, Tokenizer]:
    """The tokenizers at `paths` by the last part of their path, or all of it where two have the same, and Mistral's where
    its packages are installed. Raises `ValueError` as `Tokenizer.load` does."""
    short = [path.rstrip("/").rpartition("/")[2] for path in paths]
    found = {
        name if short.count(name) == 1 else path: Tokenizer.load(path)
        for name, path in zip(short, paths, strict=True)
    }
    if all(map(find_spec, ("mistral_common", "sentencepiece"))):
        file = importlib.resources.files("mistral_common") / "data" / "tokenizer.model.v1"
        found[MISTRAL] = Tokenizer.load(str(file))
    return found
