"""What pretraining reads: the samples of a phase as rows, in the order of `moxin.tokens.order`, from the token store.

Whatever the number of workers, sample i of a phase is a pure function of the curriculum, the phase and i.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from moxin import storage
from moxin.recipe import PhaseConfig, Recipe, Selection
from moxin.tokens.order import Cut, Order, cut
from moxin.tokens.packing import PackedStream, Packs
from moxin.tokens.store import Store, Stream


@dataclass(frozen=True)
class Curriculum:
    """What decides the order of all samples: the phases up to one, and how sources are cut and mixed."""

    phases: tuple[PhaseConfig, ...]
    seed: int
    grain: int
    """Tokens that all phases keep together, at least the longest context: the model's `max_seq_len`."""
    shuffle_tokens: int

    @classmethod
    def of(cls, recipe: Recipe, index: int = -1) -> "Curriculum":
        """Of the phases up to number `index`; of all by default."""
        pretrain = recipe.pretrain
        phases = pretrain.phases[: range(len(pretrain.phases))[index] + 1]
        return cls(phases, pretrain.seed, recipe.model.max_seq_len, pretrain.shuffle_tokens)


@dataclass(frozen=True)
class Batch:
    """Rows for the model. `targets_BT[b, t]` follows `tokens_BT[b, t]`; `IGNORE` at the end of a document, and on padding.
    `segments_BT` numbers the documents of a row from 0; -1 is padding."""

    tokens_BT: np.ndarray
    """int64"""
    targets_BT: np.ndarray
    """int64"""
    segments_BT: np.ndarray
    """int32"""
    sources_B: np.ndarray
    """int64: the number, in `PhaseData.names`, of the key of the mix that a row is from."""

    @property
    def cu_seqlens(self) -> np.ndarray:
        """Where the documents, and runs of padding, begin in the rows laid end to end, and the end: int32[n + 1].

        What attention kernels for packed sequences take; a document does not reach beyond its row.
        """
        change = np.ones(self.segments_BT.shape, bool)
        change[:, 1:] = self.segments_BT[:, 1:] != self.segments_BT[:, :-1]
        return np.append(np.flatnonzero(change), change.size).astype(np.int32)


class PlanRow(NamedTuple):
    """What a phase reads of a source: samples, positions (padding counted), and between which passes over the source."""

    source: str
    samples: int
    tokens: int
    share: float
    first_epoch: float
    last_epoch: float


class Sample(NamedTuple):
    """Where a sample is from: key of the mix, epoch, and per document its shard, its number there and its first token."""

    key: str
    epoch: int
    documents: list[tuple[str, int, int]]


class PhaseData:
    """The samples of the last phase of a curriculum; `batch(i, n)` is a pure function of (curriculum, i).

    `packs` is the URL of the phase's packs where it packs best-fit. Raises `ValueError` for a source of the mix that has no
    tokens or less than one window, and for a phase without a sample.
    """

    def __init__(
        self, tokens_url: str, curriculum: Curriculum, packs: str = "", *, verify: bool = True
    ) -> None:
        self.store = store = Store.open(tokens_url, verify=verify)
        packed = Packs(packs) if packs else None
        phase = curriculum.phases[-1]
        self._remote = not storage.is_local(tokens_url)
        self.phase, self.context, self.n_samples = phase, phase.context, phase.tokens // phase.context
        streams = {key: store.stream(Selection.parse(key)) for key in _keys(phase)}
        self._order, self._cuts, self._begin = _order(store, curriculum, packed)
        self._streams: list[Stream | PackedStream] = [
            PackedStream(streams[key], packed, key) if packed else streams[key] for key in self._order.names
        ]
        # A packed source is read by rows, any other by positions.
        self._scale = 1 if packed else curriculum.grain

    @property
    def names(self) -> tuple[str, ...]:
        """Keys of the mix, as rows are told apart."""
        return tuple(self._order.names)

    def batch(self, first: int, n: int) -> Batch:
        """Samples `first` to `first + n`."""
        starts, sources, _ = self._locate(first, n)
        tokens = np.empty((n, self.context), np.int64)
        targets = np.empty((n, self.context), np.int64)
        segments = np.empty((n, self.context), np.int32)
        places = list(zip(sources.tolist(), starts.tolist(), strict=True))
        for source, start in places:  # all at once, so that a disk has a queue to work on
            self._streams[source].will_need(start, self.context)
        for row, (source, start) in enumerate(places):
            self._streams[source].read(start, tokens[row], targets[row], segments[row])
        return Batch(tokens, targets, segments, sources.astype(np.int64))

    def sample(self, i: int) -> Sample:
        """Where sample `i` is from."""
        (start,), (source,), (part,) = self._locate(i, 1)
        documents = self._streams[source].documents_at(int(start), self.context)
        return Sample(self._order.names[source], self._order.parts[part].epoch, documents)

    def look_ahead(self, first: int, n: int) -> None:
        """Begins to fetch what samples `first` to `first + n` need, so far as the phase has them, of a remote store."""
        n = min(first + n, self.n_samples) - first
        if n <= 0 or not self._remote:
            return
        starts, sources, _ = self._locate(first, n)
        for source, stream in enumerate(self._streams):
            stream.prefetch(starts[sources == source], self.context)

    def plan(self, n_samples: int | None = None) -> list[PlanRow]:
        """What the phase, or its first `n_samples`, reads of every source."""
        total = self.n_samples if n_samples is None else n_samples
        rows = []
        for key, n in self._order.samples_of(total).items():
            cut = self._cuts[key]
            before = cut.windows_before(self._begin.get(key, 0))
            epochs = (before / cut.windows, (before + n) / cut.windows)
            rows.append(PlanRow(key, n, n * self.context, n / total, *epochs))
        return rows

    def check_limits(self, max_epochs: Mapping[str, float]) -> None:
        """Raises `ValueError` where the phase needs more of a source than so many epochs, by source; 0 sets no limit."""
        _check_limits(self.phase, max_epochs, self._order, self._cuts, self._begin)

    def _locate(self, first: int, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if first < 0 or first + n > self.n_samples:
            raise IndexError(f"samples {first} to {first + n} of a phase with {self.n_samples}")
        sources, parts, grains, windows = self._order.locate(np.arange(first, first + n))
        return grains * self._scale + windows * self.context, sources, parts


def check(tokens_url: str, curriculum: Curriculum, max_epochs: Mapping[str, float]) -> None:
    """Raises `ValueError` where a phase could not be read (see `PhaseData`), or needs more of a source than so many epochs.

    A phase that packs best-fit is left to `PhaseData.check_limits`: how many rows it has is not known before.
    """
    store = Store.open(tokens_url)
    for number, phase in enumerate(curriculum.phases):
        if phase.packing == "split":
            upto = replace(curriculum, phases=curriculum.phases[: number + 1])
            _check_limits(phase, max_epochs, *_order(store, upto, None))


def _check_limits(
    phase: PhaseConfig,
    max_epochs: Mapping[str, float],
    order: Order,
    cuts: Mapping[str, Cut],
    begin: Mapping[str, int],
) -> None:
    for key, n in order.samples_of(phase.tokens // phase.context).items():
        if limit := max_epochs.get(Selection.parse(key).source):
            _check_limit(phase, key, limit, cuts[key], begin[key], n)


def _keys(phase: PhaseConfig) -> list[str]:
    return [key for key, weight in phase.mix.items() if weight]


def _order(
    store: Store, curriculum: Curriculum, packed: Packs | None
) -> tuple[Order, dict[str, Cut], dict[str, int]]:
    """The order of the last phase, how it cuts its sources, and the grain from which it reads each."""
    read: dict[tuple[str, int], int] = {}
    for number, phase in enumerate(curriculum.phases):
        cuts = {key: _cut(store, curriculum, phase, key, packed) for key in _keys(phase)}
        known = {key: cut for key, cut in cuts.items() if cut is not None}
        if len(known) < len(cuts):
            assert number + 1 < len(curriculum.phases), "a phase that packs best-fit needs its packs"
            continue  # it has read rows that later phases do not know
        # Rows of packed documents are counted on their own: they are no part of the positions that other phases read.
        unit = phase.context if phase.packing == "best_fit" else 0
        n_samples = phase.tokens // phase.context
        if not n_samples:
            raise ValueError(
                f"pretrain.phases.{phase.name}: tokens = {phase.tokens} is less than one sample of context = {phase.context}"
            )
        begin = {key: 0 if phase.repeat else read.get((key, unit), 0) for key in known}
        order = Order(curriculum.seed, phase.name, phase.mix, known, n_samples, begin)
        for key, end in order.ends.items():
            read[key, unit] = max(end, read.get((key, unit), 0))
    return order, known, begin


def _cut(
    store: Store, curriculum: Curriculum, phase: PhaseConfig, key: str, packed: Packs | None
) -> Cut | None:
    """How a phase cuts a source; None for packed rows that are not known."""
    where = f"pretrain.phases.{phase.name}"
    if phase.context > curriculum.grain:
        raise ValueError(f"{where}.context = {phase.context} exceeds model.max_seq_len = {curriculum.grain}")
    if phase.packing == "best_fit":
        if packed is None or packed.context != phase.context or key not in packed.described["streams"]:
            return None
        rows = sum(shard["rows"] for shard in packed.described["streams"][key])
        found = Cut(rows, 1, mixed=max(1, min(rows, curriculum.shuffle_tokens // phase.context)))
        tokens = rows * phase.context
    else:
        tokens = store.stream(Selection.parse(key)).tokens
        found = cut(tokens, curriculum.grain, phase.context, curriculum.shuffle_tokens)
    if not found.windows:
        raise ValueError(
            f"{where}: source {key!r} has {tokens:,} tokens, less than one window of context = {phase.context:,}; give it "
            "more documents, a shorter context, or take it out of the mix"
        )
    return found


def _check_limit(phase: PhaseConfig, key: str, limit: float, cut: Cut, begin: int, n_windows: int) -> None:
    """Raises `ValueError` where a phase needs more of a source than its limit allows."""
    allowed = max(0, int(limit * cut.windows) - cut.windows_before(begin))
    if n_windows > allowed:
        takes, left, epoch = (n * phase.context for n in (n_windows, allowed, cut.windows))
        raise ValueError(
            f"pretrain.phases.{phase.name}: source {key!r} is {takes - left:,} tokens short of its share: the phase takes "
            f"{takes:,}, and sources.{Selection.parse(key).source}.max_epochs = {limit:g} leaves {left:,} after the phases "
            f"before, with {epoch:,} an epoch; lower its weight or the phase's tokens, raise the limit, or give it more "
            "documents"
        )
