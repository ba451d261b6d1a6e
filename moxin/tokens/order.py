"""The order of samples as a pure function of (seed, phase, sample number): nothing is shuffled, nothing is stored.

Which source? A periodic pattern in which every source stays within one sample of its exact share at every prefix (Tijdeman's
chairman assignment, Discrete Mathematics 32, 1980); so any window of a phase is within two samples of exact. (Within one in
every window at all offsets is possible for two sources, but for three or more only with very special weights: those are the
balanced words of Fraenkel's conjecture.)

Which window of it? A source is cut into *grains*, of a length that all phases of a run share, whatever their context. An
epoch is a keyed permutation of the grains, and a phase takes up where the phase before it stopped: so what was read is not
read again before all of the source was, although the context has changed. The windows that a phase takes from an epoch,
`context` tokens each and several in a grain, are permuted once more. Grains and windows are mixed within blocks of
`mixed` grains, so that a machine needs only a part of a large source at a time. The state of a loader is one integer.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from kernels import tokens as kernels

MAX_PERIOD = 10_000
"""Longest pattern of sources. Weights whose common denominator is larger are rounded to multiples of 1/10,000."""


def slots(mix: Mapping[str, float]) -> dict[str, int]:
    """How many samples of every period each source gets; sources of weight 0 are left out.

    Exact for weights with a common denominator of at most `MAX_PERIOD` (0.7, 0.2, 0.1 give 7, 2, 1), else by largest
    remainder. Raises `ValueError` for a weight that is too small to get one.
    """
    weights = {name: Fraction(str(weight)) for name, weight in mix.items() if weight}
    shares = {name: weight / sum(weights.values()) for name, weight in weights.items()}
    period = math.lcm(*(share.denominator for share in shares.values()))
    if period <= MAX_PERIOD:
        return {name: int(share * period) for name, share in shares.items()}
    counts = {name: math.floor(share * MAX_PERIOD) for name, share in shares.items()}
    by_remainder = sorted(shares, key=lambda name: counts[name] - shares[name] * MAX_PERIOD)
    for name in by_remainder[: MAX_PERIOD - sum(counts.values())]:
        counts[name] += 1
    if lost := [name for name, count in counts.items() if not count]:
        raise ValueError(
            f"mix: {lost[0]!r} has weight {mix[lost[0]]}, less than one sample in {MAX_PERIOD:,}; raise it or set it to 0"
        )
    return counts


@njit(cache=True)
def pattern(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Source of every slot of a period, and how many earlier slots have the same. int64[K] -> 2 x int64[period].

    After any number of slots n, source k has had n · counts[k] / period of them, give or take less than 1.
    """
    n_sources, period = counts.size, counts.sum()
    slack = 2 * max(n_sources, 2) - 2
    seen = np.zeros(n_sources, np.int64)
    sources, ranks = np.empty(period, np.int64), np.empty(period, np.int64)
    for slot in range(period):
        # Of those at least 1 / slack of a sample behind, the one whose deadline comes first; in whole numbers, so that ties
        # fall alike on every machine. a / b < c / d is compared as a * d < c * b: below 2^63 for periods up to 10,000.
        source, best, best_count = -1, np.int64(0), np.int64(1)
        for k in range(n_sources):
            lag = (slot + 1) * counts[k] - seen[k] * period
            if lag * slack < period:
                continue
            deadline = period * (slack - 1) - lag * slack
            if source < 0 or deadline * best_count < best * counts[k]:
                source, best, best_count = k, deadline, counts[k]
        sources[slot], ranks[slot] = source, seen[source]
        seen[source] += 1
    return sources, ranks


def key(*parts: object) -> int:
    """64 bits that depend on every part and on where one ends and the next begins."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little")


@dataclass(frozen=True)
class Cut:
    """How a phase cuts a source: whole grains, windows in each, and windows in the rest that fills no grain."""

    full: int
    per_grain: int
    rest: int = 0
    has_rest: bool = False
    """Whether there is a rest at all, which may be too short for a window of this phase."""
    mixed: int = 1
    """Grains that are mixed with one another."""

    @property
    def places(self) -> int:
        """Grains of an epoch, the rest counted as one."""
        return self.full + self.has_rest

    @property
    def windows(self) -> int:
        return self.full * self.per_grain + self.rest

    def windows_from(self, place: int) -> int:
        """Windows of an epoch at `place` of its order and after it."""
        return max(0, self.full - place) * self.per_grain + (self.rest if place <= self.full else 0)

    def windows_before(self, grain: int) -> int:
        """Windows before a grain that is counted through all epochs."""
        epoch, place = divmod(grain, self.places)
        return (epoch + 1) * self.windows - self.windows_from(place)


def cut(tokens: int, grain: int, context: int, mixed_tokens: int) -> Cut:
    """The cut of a source of so many tokens. With a context that does not divide the grain, the end of each is not read."""
    full, rest = divmod(tokens, grain)
    mixed = max(1, min(full, mixed_tokens // grain))
    return Cut(full, grain // context, rest // context, bool(rest), mixed)


class Part(NamedTuple):
    """What a phase reads of a source in one epoch: the place in the epoch's order where it begins, and windows."""

    epoch: int
    place: int
    windows: int


def parts(cut: Cut, start: int, n_windows: int) -> tuple[list[Part], int]:
    """The parts that hold `n_windows` windows from the grain `start` on, and the grain after the last one.

    Grains are counted through all epochs: `start` = epoch · places + place. The last part may hold a few windows more than
    are needed, so that it ends with a grain. A source without a window is an `AssertionError`.
    """
    assert cut.windows, cut
    found, at = [], start
    while n_windows > 0:
        epoch, place = divmod(at, cut.places)
        here = cut.windows_from(place)
        if here > n_windows:
            grains = min(-(-n_windows // cut.per_grain), cut.places - place)
            here -= cut.windows_from(place + grains)
            at += grains
        else:
            at += cut.places - place
        if here:
            found.append(Part(epoch, place, here))
        n_windows -= here
    return found, at


class Order:
    """The order of one phase of `n_samples` over sources, each cut as `cuts[name]` says and read from grain `starts[name]`.

    `names` are the sources of the mix, `ends` the grains from which a next phase goes on.
    """

    def __init__(
        self,
        seed: int,
        phase: str,
        mix: Mapping[str, float],
        cuts: Mapping[str, Cut],
        n_samples: int,
        starts: Mapping[str, int],
    ) -> None:
        per_source = slots(mix)
        self.names = list(per_source)
        self._per_period = np.array(list(per_source.values()), np.int64)
        self._slots = pattern(self._per_period)
        self.ends: dict[str, int] = {}
        self.parts: list[Part] = []
        part_start, first, keys, epoch_keys = [0], [], [], []
        for name, needed in self.samples_of(n_samples).items():
            found, self.ends[name] = parts(cuts[name], starts.get(name, 0), needed)
            done = 0
            for part in found or [Part(0, 0, 1)]:  # a phase may end before the first sample of a source
                first.append(done)
                done += part.windows
                keys.append(key(seed, "windows", phase, name, part.epoch))
                epoch_keys.append(key(seed, "grains", name, part.epoch))
                self.parts.append(part)
            part_start.append(len(self.parts))
        these = [cuts[name] for name in self.names]
        self._tables: tuple[Any, ...] = (
            np.array([cut.full for cut in these], np.int64),
            np.array([cut.per_grain for cut in these], np.int64),
            np.array([cut.mixed for cut in these], np.int64),
            np.array(part_start, np.int64),
            np.array(first, np.int64),
            np.array([part.place for part in self.parts], np.int64),
            np.array([part.windows for part in self.parts], np.int64),
            np.array(keys, np.uint64),
            np.array(epoch_keys, np.uint64),
        )

    def locate(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Source (an index into `names`), part (of `parts`), grain and window in the grain. int64[n] -> 4 x int64[n]."""
        return kernels.locate(samples, *self._slots, self._per_period, *self._tables)

    def samples_of(self, n_samples: int) -> dict[str, int]:
        """How many of the first `n_samples` samples each source gives."""
        periods, rest = divmod(n_samples, len(self._slots[0]))
        begun = np.bincount(self._slots[0][:rest], minlength=len(self.names))
        return {
            name: int(periods * self._per_period[number] + begun[number])
            for number, name in enumerate(self.names)
        }
