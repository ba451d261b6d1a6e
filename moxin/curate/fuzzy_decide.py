"""The last step of the near-duplicate search: one pass over what is alike decides which documents stay."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels import minhash
from moxin import storage
from moxin.curate import fuzzy_files as files
from moxin.curate.fuzzy_keys import LEVELS, Search
from moxin.curate.fuzzy_verify import BUDGET, compare, range_files, write_alike

Each = Callable[[Callable[[int], Any], Sequence[int]], Any]
MAX_ROUNDS = 64
"""Passes that may ask for more comparisons; three or four are usual."""


@dataclass(frozen=True)
class Summary:
    """What a search found."""

    documents: int
    removed: int
    alike: int
    """Pairs of candidates that reach the threshold."""
    components: int
    """Connected components of such pairs with two documents or more."""
    largest_documents: int
    largest_pairs: int
    """Pairs in the largest component. A huge one with few pairs is a chain: templated text."""
    rounds: int
    """How often documents had to be compared with what their likes gave way to."""
    settled: bool
    """Whether no comparison was left to ask for."""
    beyond: int
    """Pairs that a large bucket did not compare, counted once per bucket; most are compared in another."""
    unseen: int
    """The same of the buckets of four bands, which come last."""


def serially(work: Callable[[int], Any], places: Sequence[int]) -> None:
    """The simplest `Each`: one after another."""
    for place in places:
        work(place)


def decide(search: Search, each: Each = serially) -> Summary:
    """Writes `verdicts/` for every unit of the newest generation, and `summary.json`.

    Every pass streams `alike/` unit by unit and asks for comparisons with what a document's likes gave way to (`answer`,
    through `each`) until there is none to ask for. Memory: 24 bytes per document of all generations and per pair of a unit.
    """
    url = storage.join(search.folder, "summary.json")
    done = [
        files.finished(search.units[place].url("verdicts"), "verdicts", search.tag) for place in search.new
    ]
    if all(done) and storage.exists(url):
        value = storage.read_json(url)
        if value.pop("tag") == search.tag:
            return Summary(**value)
    kept, earlier = np.arange(search.n), range(search.new.start)
    for place in earlier:
        start, stop = search.starts[place : place + 2]
        if storage.exists(search.units[place].url("verdicts")):
            items = files.Reader(search.units[place].url("verdicts"), "verdicts", None).read()
            if len(items) != stop - start or (items["kept"] > np.arange(start, stop).astype(np.uint64)).any():
                raise ValueError(
                    f"{search.units[place].url('verdicts')}: of other documents; give all units of its generation"
                )
            kept[start:stop] = items["kept"]
    rounds = 0
    while rounds < MAX_ROUNDS and _pass(search, kept, rounds, final=False):
        each(partial(_answer_round, search, rounds), search.new)
        rounds += 1
    settled = not _pass(search, kept, rounds, final=True)
    summary = _summary(search, kept, rounds, settled=settled)
    storage.write_json(url, {**asdict(summary), "tag": search.tag})
    return summary


def _answer_round(search: Search, round_: int, place: int) -> None:
    answer(search, place, round_)


def _folder(kind: str, round_: int) -> str:
    return f"{kind}/{round_:02d}"


def _pass(search: Search, kept: NDArray[np.int64], round_: int, *, final: bool) -> int:
    """Decides about every document with the answers so far; returns how many more comparisons are asked for.

    They are written to `asked/`, or with `final` the verdicts are.
    """
    n_asked = 0
    for place in search.new:
        unit, start = search.units[place], int(search.starts[place])
        pairs, similarity = _alike(search, unit.url("alike", search.folder))
        answers = [
            _alike(search, unit.url(_folder("answered", earlier), search.folder)) for earlier in range(round_)
        ]
        tested = np.concatenate([np.empty((0, 2), np.int64), *(answer[0] for answer in answers)])
        tested_similarity = np.concatenate([np.empty(0), *(answer[1] for answer in answers)])
        order = np.lexsort((tested[:, 0], tested[:, 1]))
        alike = np.empty(unit.documents)
        asked = minhash.settle(kept, pairs, similarity, tested[order], tested_similarity[order], start, alike)
        if not final:
            asked = asked[np.lexsort((asked[:, 0], asked[:, 1]))]
            items = np.empty(len(asked), files.PAIRS)
            items["smaller"], items["larger"] = asked[:, 0], asked[:, 1]
            url = unit.url(_folder("asked", round_), search.folder)
            files.write(url, "pairs", search.tag, items, np.array([0, len(items)]))
        n_asked += len(asked)
        if final:
            verdict = np.empty(unit.documents, files.VERDICTS)
            verdict["kept"], verdict["similarity"] = kept[start : start + unit.documents], alike
            files.write(unit.url("verdicts"), "verdicts", search.tag, verdict, np.array([0, len(verdict)]))
    return n_asked


def answer(search: Search, place: int, round_: int, budget: int = BUDGET) -> None:
    """The comparisons that a pass asked for: `answered/`, with -1 where a pair is below the threshold."""
    unit = search.units[place]
    url = unit.url(_folder("answered", round_), search.folder)
    if files.finished(url, "alike", search.tag):
        return
    items = files.Reader(unit.url(_folder("asked", round_), search.folder), "pairs", search.tag).read()
    pairs = np.stack([items["smaller"], items["larger"]], axis=1).astype(np.int64)
    write_alike(url, search.tag, pairs, compare(search, place, pairs, budget))


def _alike(search: Search, url: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    items = files.Reader(url, "alike", search.tag).read()
    return np.stack([items["smaller"], items["larger"]], axis=1).astype(np.int64), items["similarity"].copy()


def _summary(search: Search, kept: NDArray[np.int64], rounds: int, *, settled: bool) -> Summary:
    removed = int((kept[search.first_new :] != np.arange(search.first_new, search.n)).sum())
    parent, n_pairs = np.arange(search.n), 0
    urls = [search.units[place].url("alike", search.folder) for place in search.new]
    for url in urls:
        pairs, _ = _alike(search, url)
        n_pairs += len(pairs)
        minhash.unite(parent, pairs)
    minhash.flatten(parent)
    sizes = np.bincount(parent, minlength=1)
    largest = int(sizes.argmax())
    in_largest = sum(int((parent[_alike(search, url)[0][:, 1]] == largest).sum()) for url in urls)
    return Summary(
        documents=search.n - search.first_new,
        removed=removed,
        alike=n_pairs,
        components=int((sizes > 1).sum()),
        largest_documents=int(sizes[largest]),
        largest_pairs=in_largest,
        rounds=rounds,
        settled=settled,
        beyond=sum(reader.header.n_documents for reader in range_files(search, "pairs", (1,))),
        unseen=sum(reader.header.n_documents for reader in range_files(search, "pairs", (LEVELS,))),
    )
