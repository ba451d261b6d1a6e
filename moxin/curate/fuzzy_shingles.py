"""What a document's shingles are and how many bands and rows find its likes; the published settings by name.

MinHash (Broder 1997) with LSH bands (Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, §3.4): a pair of Jaccard
similarity J shares a band with probability 1 - (1 - J^rows)^bands. Here that only makes a candidate; true Jaccard decides.
"""

import functools
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from kernels import minhash
from kernels import text as text_kernels
from moxin.arrow import utf8_buffers
from moxin.config import nearest
from moxin.curate.documents import stable_hash

Ragged = tuple[NDArray[np.uint64], NDArray[np.int64]]


@dataclass(frozen=True)
class Params:
    """Settings of a near-duplicate search; the defaults are FineWeb's."""

    bands: int = 14
    rows: int = 8
    shingle: int = 5
    """Words or characters per shingle."""
    unit: Literal["words", "identifiers", "characters"] = "words"
    """`words`: runs of letters and digits of any script, in lower case (`kernels.text.word_hashes`). `identifiers`: runs of
    ASCII letters, digits and underscores as they are. `characters`: of the text in NFC and lower case without ASCII
    punctuation, white space made single spaces."""
    threshold: float = 0.7
    """True Jaccard similarity of the shingle sets from which one of two documents is removed."""
    short: bool = False
    """Whether a document with fewer words or characters than a shingle has one shingle; else it has none and stays."""
    permutations: int = 0
    """How many permutations are drawn, if more than bands * rows are: the first ones are used. 0: bands * rows."""
    seed: int = 1
    window: int = 64
    """Earlier documents of a bucket that a document is compared with, besides the first; a quarter of it in buckets of
    several bands."""

    def window_at(self, level: int) -> int:
        return self.window if level == 1 else max(self.window // 4, 1)

    def validate(self) -> None:
        """Raises `ValueError` with the setting, its value and the fix."""
        for name in ("bands", "rows", "shingle", "window"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: must be at least 1")
        if self.bands > 256:
            raise ValueError(f"bands = {self.bands}: at most 256; a key names its band in eight bits")
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold = {self.threshold}: must be above 0 and at most 1")
        units = ("words", "identifiers", "characters")
        if self.unit not in units:
            raise ValueError(f"unit = {self.unit!r}: one of {', '.join(units)}")
        if self.permutations and self.permutations < self.bands * self.rows:
            raise ValueError(
                f"permutations = {self.permutations}: fewer than bands * rows = {self.bands * self.rows}"
            )

    def catch(self, similarity: float) -> float:
        """Probability that a pair of this Jaccard similarity becomes a candidate."""
        return float(1 - (1 - similarity**self.rows) ** self.bands)

    def catch_twice(self, similarity: float) -> float:
        """Probability that it shares two bands or more: that it is a candidate even where every bucket is a large one."""
        band = similarity**self.rows
        return float(self.catch(similarity) - self.bands * band * (1 - band) ** (self.bands - 1))

    def tag(self, *names: str) -> int:
        """A 64-bit hash of these settings, of all by default."""
        values = asdict(self)
        return stable_hash(repr([(name, values[name]) for name in names or sorted(values)]))

    @property
    def sets_tag(self) -> int:
        """Tag of files of shingle sets."""
        return self.tag("shingle", "unit", "short")

    @property
    def keys_tag(self) -> int:
        """Tag of files of band keys."""
        return self.tag("shingle", "unit", "short", "bands", "rows", "permutations", "seed")


@functools.cache
def optimal(threshold: float, n: int) -> tuple[int, int]:
    """Bands and rows of at most `n` permutations with the least sum of false positives and false negatives, equally weighed.

    The integrals of `datasketch.MinHashLSH(threshold, n)` (and BigCode's script), by Gauss-Legendre quadrature.
    """
    nodes, weights = np.polynomial.legendre.leggauss(256)
    best, found = np.inf, (0, 0)
    for bands in range(1, n + 1):
        rows = np.arange(1, n // bands + 1)[:, None]
        below, above = (nodes + 1) / 2 * threshold, threshold + (nodes + 1) / 2 * (1 - threshold)
        positive = ((1 - (1 - below**rows) ** bands) @ weights) / 2 * threshold
        negative = ((1 - above**rows) ** bands @ weights) / 2 * (1 - threshold)
        error = 0.5 * positive + 0.5 * negative
        if error.min() < best:
            best, found = float(error.min()), (bands, int(error.argmin()) + 1)
    return found


def fit(threshold: float, n: int, share: float = 0.95) -> tuple[int, int]:
    """Bands and rows of at most `n` permutations: the most rows with which pairs at the threshold are caught at this share.

    For candidates that are verified: `optimal` weighs what is missed against false positives, which cost no document here,
    and catches about half of the pairs at the threshold. Raises `ValueError` where `n` permutations cannot do it.
    """
    for rows in range(n, 0, -1):
        if Params(n // rows, rows).catch(threshold) >= share:
            return n // rows, rows
    raise ValueError(f"{n} permutations catch J = {threshold:g} with less than {share:g}: take more")


def the_stack(threshold: float = 0.7) -> Params:
    """BigCode's script: 256 permutations, bands and rows optimal for the threshold, documents under 5 tokens stay."""
    bands, rows = optimal(threshold, 256)
    return Params(bands, rows, 5, "identifiers", threshold, permutations=256)


PUBLISHED = {
    "fineweb": Params(14, 8, 5, threshold=0.72),
    "slimpajama": Params(9, 13, 13, "characters", 0.8, permutations=128),
    "redpajama-0.7": Params(14, 9, 13, threshold=0.7, permutations=128),
    "redpajama-0.8": Params(9, 13, 13, threshold=0.8, permutations=128),
    "redpajama-0.9": Params(5, 25, 13, threshold=0.9, permutations=128),
    "the-stack": the_stack(),
}
"""Published shingle sizes, bands and rows. FineWeb removes what shares a band (0.72 is (1/bands)^(1/rows)), The Stack takes
0.7; words are told apart our way in all of them, and nothing goes without its true Jaccard similarity."""


def published(name: str) -> Params:
    """Raises `ValueError` for a name that is not in `PUBLISHED`."""
    if name not in PUBLISHED:
        raise ValueError(
            f"near-duplicate settings {name!r}: {nearest(name, PUBLISHED)} Known: {', '.join(PUBLISHED)}"
        )
    return PUBLISHED[name]


@functools.cache
def _identifier_tables() -> tuple[NDArray[np.uint8], NDArray[np.uint32]]:
    flags = np.zeros(text_kernels.N_CODE_POINTS, np.uint8)
    flags[[point for point in range(128) if chr(point).isalnum() or chr(point) == "_"]] = text_kernels.ALNUM
    return flags, np.arange(text_kernels.N_CODE_POINTS, dtype=np.uint32)


def shingles(text: pa.Array, params: Params) -> Ragged:
    """Every document's shingles, hashed, in their order and with repeats, as a ragged array."""
    n = params.shingle
    if params.unit == "characters":
        grams, starts, lengths = minhash.character_ngrams(
            *utf8_buffers(_folded(text)), text_kernels.unicode_tables()[0], n
        )
    else:
        tables = text_kernels.unicode_tables() if params.unit == "words" else _identifier_tables()
        words, word_starts = text_kernels.word_hashes(*utf8_buffers(text), *tables)
        grams, starts = minhash.ngrams(words, word_starts, n)
        lengths = np.diff(word_starts)
    if not params.short and (lengths < n).any():
        sizes = np.diff(starts)
        grams = grams[np.repeat(lengths >= n, sizes)]
        starts = np.concatenate([[0], np.cumsum(np.where(lengths >= n, sizes, 0))])
    return grams, starts


def folded_chars(text: pa.Array) -> NDArray[np.int64]:
    """Characters of every document as shingles of characters see it: NFC, no ASCII punctuation, runs of white space one
    space. SlimPajama's "short" documents have fewer than 200."""
    return minhash.character_ngrams(*utf8_buffers(_folded(text)), text_kernels.unicode_tables()[0], 1)[2]


def _folded(text: pa.Array) -> pa.Array:
    """NFC and lower case where a document is not ASCII; the kernel does ASCII letters itself."""
    data, offsets = utf8_buffers(text)
    foreign = np.flatnonzero(np.diff(np.concatenate([[0], np.cumsum(data[: offsets[-1]] >> 7)])[offsets]))
    if not len(foreign):
        return text
    folded: list[str | None] = [
        unicodedata.normalize("NFC", value).lower() if value else value
        for value in text.take(pa.array(foreign)).to_pylist()
    ]
    mask = np.zeros(len(text), bool)
    mask[foreign] = True
    wide = text.cast(pa.large_string())
    return pc.replace_with_mask(wide, pa.array(mask), pa.array(folded, pa.large_string()))


def signatures(grams: Ragged, params: Params) -> NDArray[np.uint32]:
    """MinHash signatures uint32[n_docs, bands * rows], those of `datasketch` 2 with `scheme="affine32"` and this seed."""
    used = params.bands * params.rows
    a, b = minhash.permutations(params.permutations or used, params.seed)
    return minhash.signatures(*grams, a[:used].copy(), b[:used].copy())


def sets(text: pa.Array, params: Params) -> Ragged:
    """Every document's set of shingles, sorted: what true Jaccard similarity is computed on. A ragged array."""
    return minhash.unique_sets(*shingles(text, params))


def batches(text: Sequence[str], size: int = 4096) -> list[pa.Array]:
    """Texts as the Arrow columns that the steps take."""
    return [pa.array(text[start : start + size], pa.large_string()) for start in range(0, len(text), size)]
