"""Near-duplicates among billions of documents: MinHash-LSH through files, then true Jaccard similarity, then one decision.

    per unit    write_keys      text ─▶ keys/       band keys, sorted: 16 bytes per document and band
    per range   candidates      a slice of every keys/ ─▶ pairs/, members/, large/      documents that share a bucket
    per unit    refine          large/ ─▶ keys-2/, keys-3/      keys of several bands together, see below
    per range   candidates      the same with these
    per unit    write_sets      text ─▶ sets/       shingle sets of the members of pairs
    per unit    verify          pairs/, sets/ ─▶ alike/     true Jaccard similarity
    once        decide          alike/ ─▶ verdicts/; and per unit `answer`, where documents need one more comparison

Plain functions over files, for tasks in any order and number: every file is written whole, under a name and with bytes that
follow from the list of units alone, and is not made again. Documents are numbered by generation, source, unit and row; of
two that are alike the smaller number stays. What a range task reads of a unit is one slice of one file; nothing is shuffled.

**What is removed** has a true Jaccard similarity of at least the threshold with a document that is kept.

**What is compared.** In a bucket (documents with equal keys) those with equal signatures stand for one; each of the others
is compared with the first and the `window` before it. Up to `window` + 1 different signatures these are all pairs. What is
in larger buckets comes into buckets of any two of these bands as well, and if those are large, into buckets of four. So
templated text costs linear time, and of its pairs that are nearly equal, and share most bands, hardly any is missed; how
many were not compared is counted (`Summary.unseen`). `decide` compares a document also with what its likes gave way to.

All of this depends on smaller numbers only. Hence a later generation changes no verdict of an earlier one, and deciding it
by itself gives what deciding both together would have given.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from moxin.curate import fuzzy_files as files
from moxin.curate import fuzzy_shingles
from moxin.curate.fuzzy_candidates import candidates, refine
from moxin.curate.fuzzy_decide import Each, Summary, decide, serially
from moxin.curate.fuzzy_keys import LEVELS, Search, Texts, Unit, write_keys
from moxin.curate.fuzzy_shingles import Params
from moxin.curate.fuzzy_verify import verify, write_sets


def run(
    search: Search,
    texts: Callable[[Unit], Texts],
    each: Each = serially,
    *,
    lasting: bool = False,
) -> Summary:
    """All steps after `write_keys`. `texts` reads a unit's documents again, `each` runs a step's tasks in any order.

    With `lasting` the sets of all documents are written, not only those of candidates: `folder` is then what a later corpus
    can be compared with. Earlier generations must have been written so.
    """
    ranges, places = range(search.n_ranges), range(len(search.units))
    each(lambda range_: candidates(search, range_), ranges)
    for level in range(2, LEVELS + 1):
        # Where no bucket is large, these only write empty files: that takes less than to start tasks.
        here = each if _n_large(search, level - 1) else serially
        here(partial(_refine, search, level), places)
        here(partial(_candidates, search, level), ranges)
    each(lambda place: write_sets(search, place, texts, lasting=lasting), search.new)
    each(lambda place: verify(search, place), search.new)
    return decide(search, each)


def _n_large(search: Search, level: int) -> int:
    """Entries in large buckets of a level."""
    urls = [search.range_url("large", level, range_) for range_ in range(search.n_ranges)]
    return sum(files.Reader(url, "large", search.ranges_tag).header.n_items for url in urls)


def _refine(search: Search, level: int, place: int) -> None:
    refine(search, place, level)


def _candidates(search: Search, level: int, range_: int) -> None:
    candidates(search, range_, level)


@dataclass(frozen=True)
class Found:
    """`find`'s answer about n documents, numbered in the order in which they were given."""

    kept: NDArray[np.int64]
    """int64[n]: the document that stands for each; itself where it stays."""
    similarity: NDArray[np.float64]
    """float64[n]: true Jaccard similarity with that document."""
    summary: Summary


def find(tables: Sequence[Sequence[str]], params: Params, n_ranges: int = 4, batch: int = 4096) -> Found:
    """The search over lists of texts, a unit each, through a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="moxin-fuzzy-") as folder:
        columns = [fuzzy_shingles.batches(texts, batch) for texts in tables]
        units = [write_keys(folder, 0, 0, k, column, params) for k, column in enumerate(columns)]
        search = Search(folder, tuple(units), params, n_ranges)
        summary = run(search, lambda unit: columns[unit.number])
        return Found(*verdicts(search), summary)


def verdicts(search: Search) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """What stands for every document of the newest generation, and the similarity."""
    urls = [search.units[place].url("verdicts") for place in search.new]
    items = files.concatenated([files.Reader(url, "verdicts", None).read() for url in urls], files.VERDICTS)
    return items["kept"].astype(np.int64), items["similarity"].copy()
