"""The near-duplicate search over the units that passed, by the settings that sources share."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from moxin import console
from moxin.curate import fuzzy, fuzzy_keys
from moxin.curate import fuzzy_files as files
from moxin.curate.fuzzy_shingles import Params
from moxin.curate.work import Work, passed

ENTRY_BYTES = 64
"""What a range task needs per entry, `fuzzy_candidates.candidates`."""


def search_of(work: Work, params: Params, documents: Sequence[int]) -> fuzzy.Search:
    """The search of all sources with these settings, of so many documents by unit, against the corpora before this one."""
    folder = work.near_folder(params)
    units = [
        fuzzy.Unit(work.generation, work.units[number].source, number, documents[number], folder)
        for number in work.of(lambda profile: profile.near == params)
    ]
    for generation, earlier in enumerate(work.earlier):
        before = [url for tag, url in earlier.near if tag == params.tag()]
        if not before:
            console.warn(
                f"{earlier.url}: no near-duplicates were sought there with {params}; it is not compared with"
            )
        for url in before:
            units += [unit for unit in fuzzy_keys.units_in(url) if unit.generation == generation]
    entries = params.bands * sum(unit.documents for unit in units)
    n_ranges = min(max(-(-entries * ENTRY_BYTES // work.config.memory_bytes), 1), fuzzy_keys.SLOTS)
    return fuzzy.Search(folder, tuple(units), params, n_ranges)


def texts(work: Work, unit: fuzzy.Unit) -> fuzzy.Texts:
    """A unit's documents, in the order in which their keys were written."""
    return (group.text for group in passed(work, unit.number))


def verdicts(search: fuzzy.Search, number: int) -> tuple[NDArray[np.int64], NDArray[np.float64], int]:
    """What stands for each document of a unit, the similarity, and the number of its first document."""
    place = next(k for k in search.new if search.units[k].number == number)
    items = files.Reader(search.units[place].url("verdicts"), "verdicts", None).read()
    return items["kept"].astype(np.int64), items["similarity"], int(search.starts[place])
