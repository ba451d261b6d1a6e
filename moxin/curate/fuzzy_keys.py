"""The first step of the near-duplicate search, a unit's band keys; and what every step knows: units, numbers, file names."""

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kernels import minhash
from moxin import storage
from moxin.curate import fuzzy_files as files
from moxin.curate import fuzzy_shingles
from moxin.curate.documents import stable_hash
from moxin.curate.fuzzy_shingles import Params

SLOTS = 4096
"""Groups of a file of keys, by the first 12 bits: a range of keys is a run of slots, so there are at most as many ranges."""
LEVELS = 3
"""Kinds of buckets: of one band, of two, of four; the latter for documents in large buckets of the former only."""
Texts = Iterable[pa.Array]


@dataclass(frozen=True, order=True)
class Unit:
    """Documents that one task reads; sorting units gives the order in which their documents are numbered."""

    generation: int
    """A corpus that was decided before has a smaller one; its documents are never removed by a later one."""
    source: int
    """Place of the source in the order of preference."""
    number: int
    documents: int
    folder: str = field(compare=False)
    """Where its `keys/`, `sets/` and `verdicts/` are."""

    def url(self, kind: str, folder: str | None = None) -> str:
        return storage.join(folder or self.folder, kind, f"{self.name}.bin")

    @property
    def name(self) -> str:
        return f"{self.generation:03d}-{self.source:04d}-{self.number:06d}"


@dataclass(frozen=True)
class Search:
    """One run: units of the newest generation are decided, those of earlier ones only compared with."""

    folder: str
    units: tuple[Unit, ...]
    params: Params
    n_ranges: int = 64
    """Tasks over which the keys are spread; see `fuzzy_plan.rows` for the memory of one."""

    def __post_init__(self) -> None:
        self.params.validate()
        object.__setattr__(self, "units", tuple(sorted(self.units)))
        if not 1 <= self.n_ranges <= SLOTS:
            raise ValueError(f"n_ranges = {self.n_ranges}: must be from 1 to {SLOTS}")
        names = [unit.name for unit in self.units]
        if len(set(names)) < len(names):
            raise ValueError("two units have the same generation, source and number")
        if self.n >= 2**32:
            raise ValueError(f"{self.n:,} documents: pairs are numbered for fewer than 2^32")

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """Number of each unit's first document, and of all documents: int64[n_units + 1]."""
        return np.cumsum([0] + [unit.documents for unit in self.units])

    @property
    def n(self) -> int:
        return int(self.starts[-1])

    @cached_property
    def new(self) -> range:
        """Places of the units that are decided."""
        newest = max((unit.generation for unit in self.units), default=0)
        first = next((k for k, unit in enumerate(self.units) if unit.generation == newest), 0)
        return range(first, len(self.units))

    @property
    def first_new(self) -> int:
        return int(self.starts[self.new.start])

    @cached_property
    def tag(self) -> int:
        """Of files that depend on the list of units."""
        named = [(unit.name, unit.documents) for unit in self.units]
        return stable_hash(f"{self.params.tag()} {named}")

    @property
    def ranges_tag(self) -> int:
        return stable_hash(f"{self.tag} {self.n_ranges}")

    def range_url(self, kind: str, level: int, range_: int) -> str:
        return storage.join(self.folder, kind, f"{level}-{range_:04d}-of-{self.n_ranges:04d}.bin")

    def unit_of(self, document: int) -> tuple[int, int]:
        """Place in `units` and row of a document."""
        place = bisect_right(self.starts.tolist(), document) - 1
        return place, document - int(self.starts[place])


def write_keys(folder: str, generation: int, source: int, number: int, texts: Texts, params: Params) -> Unit:
    """Writes the band keys of one unit's documents, given in batches, in their order; returns the unit.

    Memory: 16 bytes per document and band, twice while they are sorted, and what a batch needs.
    """
    unit = Unit(generation, source, number, 0, folder)
    url = unit.url("keys")
    if not files.finished(url, "keys", params.keys_tag):
        parts, n = [], 0
        for text in texts:
            parts.append(_keys(text, params, n))
            n += len(text)
        items = files.concatenated(parts, files.KEYS)
        items = by_key(items)
        files.write(url, "keys", params.keys_tag, items, slots(items["key"]), n)
    return Unit(
        generation, source, number, files.Reader(url, "keys", params.keys_tag).header.n_documents, folder
    )


def _keys(text: pa.Array, params: Params, first: int) -> np.ndarray:
    """Unsorted entries of a batch; a document without shingles has none."""
    grams, starts = fuzzy_shingles.shingles(text, params)
    signatures = fuzzy_shingles.signatures((grams, starts), params)
    rows = np.flatnonzero(np.diff(starts))
    keys = minhash.band_keys(signatures[rows], params.bands)
    # A key names its band, so that one sort does for all bands, and `refine` knows which a document shares.
    keys &= ~np.uint64(255)
    keys |= np.arange(params.bands, dtype=np.uint64)
    out = np.empty(keys.shape, files.KEYS)
    out["key"] = keys
    out["signature"] = minhash.band_keys(signatures[rows], 1) >> np.uint64(32)
    out["row"] = rows[:, None] + first
    return out.reshape(-1)


def by_key(items: np.ndarray) -> np.ndarray:
    """Entries sorted by key; those of one key stay in their order, which is that of the rows."""
    return items[np.argsort(items["key"].copy(), kind="stable")]


def slots(keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    bounds = np.arange(1, SLOTS, dtype=np.uint64) << np.uint64(52)
    return np.concatenate([[0], np.searchsorted(keys, bounds), [len(keys)]])


def units_in(folder: str) -> list[Unit]:
    """The units whose keys a folder holds: an earlier corpus, to go on with."""
    names = storage.files_under(storage.join(folder, "keys"))
    found = []
    for name in (name for name in names if name.endswith(".bin") and not name.startswith(".")):
        numbers = [int(part) for part in name.removesuffix(".bin").split("-")]
        reader = files.Reader(storage.join(folder, "keys", name), "keys", None)
        found.append(Unit(numbers[0], numbers[1], numbers[2], reader.header.n_documents, folder))
    return sorted(found)
