"""What is counted of a rule while documents pass by: a histogram of its signal, and examples on both sides of its threshold.

Both merge: those of units, in their order, give what all documents together would have given.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

KEPT = 10
"""Examples of either side."""
LINEAR = ("share", "1", "0 or 1")
"""Units of signals that lie between 0 and 1, mostly."""


@dataclass
class Histogram:
    """Counts of a signal between `edges`, below the first and from the last on, and how many documents the rule removed."""

    op: str
    threshold: float
    edges: NDArray[np.float64]
    counts: NDArray[np.int64]
    removed: int = 0

    @staticmethod
    def of(op: str, threshold: float, unit: str) -> "Histogram":
        """Fifty equal bins of shares; of other units bins that are half an octave wide."""
        edges = np.linspace(0, 1, 51) if unit in LINEAR else 2.0 ** (np.arange(-4, 49) / 2)
        return Histogram(op, threshold, edges, np.zeros(len(edges) + 1, np.int64))

    def add(self, values: NDArray[Any], removed: int) -> None:
        self.counts += np.bincount(np.searchsorted(self.edges, values, "right"), minlength=len(self.counts))
        self.removed += removed

    def merge(self, other: "Histogram") -> None:
        self.counts += other.counts
        self.removed += other.removed

    def to_json(self) -> dict[str, Any]:
        return {
            "op": self.op,
            "threshold": float(self.threshold),
            "edges": [float(edge) for edge in self.edges],
            "counts": self.counts.tolist(),
            "removed": self.removed,
        }

    @staticmethod
    def from_json(value: dict[str, Any]) -> "Histogram":
        return Histogram(
            value["op"],
            value["threshold"],
            np.array(value["edges"]),
            np.array(value["counts"], np.int64),
            value["removed"],
        )


Example = tuple[float, str, str, str]
"""Rank, id, detail, text."""


@dataclass
class Nearest:
    """Of a reason the documents with the lowest ranks: of those removed, and of those that stayed."""

    gone: list[Example] = field(default_factory=list)
    stayed: list[Example] = field(default_factory=list)

    def removed(self, rank: float, id: str, detail: str, text: Callable[[], str]) -> None:
        _add(self.gone, rank, id, detail, text)

    def kept(self, rank: float, id: str, detail: str, text: Callable[[], str]) -> None:
        _add(self.stayed, rank, id, detail, text)

    def merge(self, other: "Nearest") -> None:
        self.gone = heapq.nsmallest(KEPT, [*self.gone, *other.gone])
        self.stayed = heapq.nsmallest(KEPT, [*self.stayed, *other.stayed])

    def to_json(self) -> dict[str, Any]:
        return {"removed": self.gone, "kept": self.stayed}

    @staticmethod
    def from_json(value: dict[str, Any]) -> "Nearest":
        gone, stayed = ([(*row,) for row in value[name]] for name in ("removed", "kept"))
        return Nearest(gone, stayed)


def _add(found: list[Example], rank: float, id: str, detail: str, text: Callable[[], str]) -> None:
    """Keeps the list sorted and short; the text is only taken of what stays in it."""
    if len(found) == KEPT and (rank, id) >= found[-1][:2]:
        return
    found.append((rank, id, detail, text()))
    found.sort()
    del found[KEPT:]
