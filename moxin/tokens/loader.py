"""What pretraining reads: windows of a phase's sources in the order of `moxin.tokens.order`.

The documents of a source stand one after another. They are cut every `context` tokens and a sample is `context + 1` of
them, so that every token but the first of a document is predicted exactly once an epoch (a last rest of less than `context`
never is).
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from moxin.config import nearest
from moxin.recipe import PhaseConfig
from moxin.tokens.order import Order
from moxin.tokens.store import Store

IGNORE = -100
"""Target of a position that is not in the loss."""


@dataclass(frozen=True)
class Batch:
    """Rows for the model. `targets_BT[b, t]` follows `tokens_BT[b, t]`; `IGNORE` where another document begins there, and on
    padding. `segments_BT` numbers the documents of a row from 0; -1 is padding."""

    tokens_BT: np.ndarray
    """int64"""
    targets_BT: np.ndarray
    """int64"""
    segments_BT: np.ndarray
    """int32"""


class PlanRow(NamedTuple):
    """How much of a source a phase reads: its share of the samples, tokens, and passes over the source."""

    source: str
    weight: float
    tokens: int
    epochs: float


class PhaseData:
    """The samples of one phase; `sample(i)` and `batch(i, n)` are pure functions of (seed, phase.name, i).

    Raises `ValueError` for a source of the mix that has no tokens or less than one window, and for a phase without a sample.
    """

    def __init__(self, tokens_url: str, phase: PhaseConfig, seed: int) -> None:
        store = Store.open(tokens_url)
        where = f"pretrain.phases.{phase.name}"
        self.context, self.n_samples = phase.context, phase.tokens // phase.context
        if not self.n_samples:
            raise ValueError(
                f"{where}: tokens = {phase.tokens} is less than one sample of context = {phase.context}"
            )
        windows = {}
        for name in (name for name, weight in phase.mix.items() if weight):
            if name not in store.sources:
                hint = nearest(name, store.sources)
                raise ValueError(f"{where}.mix names {name!r}, of which the token store has nothing; {hint}")
            windows[name] = (store.sources[name].tokens - 1) // phase.context
            if not windows[name]:
                raise ValueError(
                    f"{where}: source {name!r} has {store.sources[name].tokens:,} tokens, less than one window "
                    f"of context + 1 = {phase.context + 1:,}; give it more documents, a shorter context, or take "
                    "it out of the mix"
                )
        self._windows = windows
        self._order = Order(seed, phase.name, phase.mix, windows)
        self._sources = [store.sources[name] for name in self._order.names]

    def sample(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens int64[context + 1] and the number of each one's document int32[context + 1], from 0."""
        tokens, segments = self._read(i, 1)
        return tokens[0], segments[0]

    def batch(self, first: int, n: int) -> Batch:
        """Samples `first` to `first + n`."""
        tokens, segments = self._read(first, n)
        same_document = segments[:, 1:] == segments[:, :-1]
        return Batch(tokens[:, :-1], np.where(same_document, tokens[:, 1:], IGNORE), segments[:, :-1])

    def plan(self) -> list[PlanRow]:
        """What the whole phase reads of every source."""
        return [
            PlanRow(name, n / self.n_samples, n * self.context, n / self._windows[name])
            for name, n in self._order.samples_of(self.n_samples).items()
        ]

    def _read(self, first: int, n: int) -> tuple[np.ndarray, np.ndarray]:
        if first < 0 or first + n > self.n_samples:
            raise IndexError(f"samples {first} to {first + n} of a phase with {self.n_samples}")
        tokens = np.empty((n, self.context + 1), np.int64)
        segments = np.empty((n, self.context + 1), np.int32)
        sources, _, windows = self._order.locate(np.arange(first, first + n))
        for row, (source, window) in enumerate(zip(sources.tolist(), windows.tolist(), strict=True)):
            start = window * self.context
            tokens[row], segments[row] = self._sources[source].read(start, start + self.context + 1)
        return tokens, segments
