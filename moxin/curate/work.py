"""What every task of curation is told, where its files are, and how the documents of a unit are numbered.

A unit's documents have three numberings, each a part of the one before: rows as they were read, `alive` those that no rule
removed (what exact deduplication compares), `passed` those that stay after it (what the near-duplicate search compares).
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from moxin import storage
from moxin.curate import profiles
from moxin.curate.fuzzy_shingles import Params
from moxin.curate.profiles import Profile
from moxin.curate.sources import Unit
from moxin.recipe import CurateConfig, SourceConfig

CODE_KINDS = ("code", "tree")
"""Kinds of sources that hold code."""
GENERATED_KINDS = ("tinyworld", "quiz")
GENERATED_PROFILE = "plain"
"""Documents of the made-up world are a few sentences long: what is meant for web pages would leave none of them."""


def profile_of(source: SourceConfig, config: CurateConfig) -> Profile:
    """The profile that a source is held to. Raises `ValueError` for one that does not exist or cannot be."""
    by_kind = dict.fromkeys(CODE_KINDS, config.code_profile) | dict.fromkeys(
        GENERATED_KINDS, GENERATED_PROFILE
    )
    name = source.profile or by_kind.get(source.kind, config.profile)
    profile = profiles.find_profile(name)
    common = config.overrides if name == config.profile else ()
    for setting in (*common, *source.overrides):
        profile = profiles.override(profile, setting)
    if source.overrides:  # else two profiles of one name would be one in the report
        profile = replace(profile, name=f"{name} of {source.name}")
    profiles.check(profile)
    return profile


@dataclass(frozen=True)
class Earlier:
    """The units of a corpus that was curated before, as its `index.json` tells."""

    url: str
    exact: tuple[str, ...]
    """Files of the keys of documents, by unit."""
    near: tuple[tuple[int, str], ...]
    """Tags of settings, and the folder with the keys, sets and verdicts that were found with them."""


@dataclass(frozen=True)
class Work:
    """What every task is told; small, and the same for all."""

    scratch: str
    index: str
    """Folder of what a later corpus is compared with: in the artifact, or below `scratch`."""
    sources: tuple[SourceConfig, ...]
    profiles: tuple[Profile, ...]
    """Of the sources, in their order."""
    config: CurateConfig
    units: tuple[Unit, ...]
    n_ranges: int
    """Ranges of hashes of the exact deduplication."""
    examples: frozenset[int] = frozenset()
    """Units from which the report takes examples."""
    samples: tuple[float, ...] = ()
    """By source the share of the documents that is looked at, drawn by the hash of their ids; empty: all."""
    earlier: tuple[Earlier, ...] = ()
    questions: str = ""
    """Where the index of evaluation items is."""
    classifier: str = ""
    """Where the quality classifier is."""
    cutoffs: tuple[float, ...] = ()
    """Lowest score by source; 0 where there is no classifier."""

    def profile(self, number: int) -> Profile:
        return self.profiles[self.units[number].source]

    def file(self, number: int, name: str) -> str:
        return storage.join(self.scratch, "units", f"{number:06d}", name)

    def key_file(self, kind: str, number: int) -> str:
        """Keys of a unit: `exact`, `urls`, `ids` or `pieces`."""
        folder = self.index if kind == "exact" else self.scratch
        return storage.join(folder, kind, f"{number:06d}.arrow")

    def range_file(self, kind: str, number: int) -> str:
        return storage.join(self.scratch, f"{kind}-repeats", f"{number:05d}.arrow")

    @property
    def generation(self) -> int:
        return len(self.earlier)

    @property
    def searches(self) -> list[Params]:
        """The settings of near-duplicate searches; sources with the same are compared with each other."""
        return list(dict.fromkeys(each.near for each in self.profiles if each.near is not None))

    def near_folder(self, params: Params) -> str:
        return storage.join(self.index, f"near-{self.searches.index(params)}")

    def of(self, wanted: Callable[[Profile], bool]) -> list[int]:
        """Numbers of the units whose profile is `wanted(profile)`."""
        return [number for number in range(len(self.units)) if wanted(self.profile(number))]

    def exact_order(self) -> list[str]:
        """Key files of documents in their order of preference, those of earlier corpora first."""
        own = [self.key_file("exact", number) for number in self.of(lambda profile: profile.exact != "off")]
        return [url for earlier in self.earlier for url in earlier.exact] + own


def edits(profile: Profile) -> bool:
    """Whether deduplication takes parts out of documents."""
    return profile.bloom is not None or profile.exact in ("paragraph", "line")


class Group(NamedTuple):
    """Documents of one row group of a unit that passed."""

    number: int
    alive: NDArray[np.int64]
    """Their numbers among the alive, int64[n]."""
    text: pa.Array


def groups(work: Work, number: int, columns: tuple[str, ...], only: int | None = None) -> Iterator[pa.Table]:
    """The row groups of a unit's annotated documents, or one of them; these columns."""
    return _groups(work.file(number, "annotated.parquet"), columns, only)


def _groups(url: str, columns: tuple[str, ...], only: int | None = None) -> Iterator[pa.Table]:
    with storage.open_read(url) as handle:
        file = pq.ParquetFile(handle)
        for group in range(file.num_row_groups) if only is None else [only]:
            yield file.read_row_group(group, columns=list(columns))


def alive_texts(work: Work, number: int) -> Iterator[pa.Array]:
    """By row group, the texts that no rule removed."""
    for table in groups(work, number, ("text", "reason")):
        alive = pc.equal(table["reason"], "")
        text = table["text"] if pc.all(alive).as_py() else table["text"].filter(alive)
        yield text.combine_chunks()


def passed(work: Work, number: int) -> Iterator[Group]:
    """By row group, the documents that passed, with their text as deduplication left it."""
    rows = read_arrow(work.file(number, "passed.arrow"))["row"].to_numpy()
    changed = edits(work.profile(number))
    with storage.open_read(work.file(number, "edited.arrow")) if changed else nullcontext() as handle:
        edited = pa.ipc.open_file(handle) if handle is not None else None
        first = 0
        for group, text in enumerate(alive_texts(work, number)):
            begin, stop = np.searchsorted(rows, [first, first + len(text)])
            which = rows[begin:stop]
            if edited is not None:
                kept = edited.get_batch(group)["text"]
            else:
                kept = text if len(which) == len(text) else text.take(pa.array(which - first))
            yield Group(group, which, kept)
            first += len(text)


def write_arrow(url: str, table: pa.Table) -> None:
    with storage.open_atomic(url) as handle, pa.ipc.new_file(handle, table.schema) as writer:
        writer.write_table(table.combine_chunks())


def read_arrow(url: str) -> pa.Table:
    return pa.ipc.open_file(pa.BufferReader(storage.read_bytes(url))).read_all()


def alive_ids(work: Work, number: int) -> pa.Array:
    """Ids of the alive documents of a unit."""
    return _alive_ids(work.file(number, "annotated.parquet"))


@lru_cache(maxsize=64)
def _alive_ids(url: str) -> pa.Array:
    parts = [table["id"].filter(pc.equal(table["reason"], "")) for table in _groups(url, ("id", "reason"))]
    chunks = [chunk for part in parts for chunk in part.chunks]
    return pa.concat_arrays(chunks) if chunks else pa.array([], pa.string())
