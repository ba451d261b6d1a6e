"""The order of samples as a pure function of (seed, phase, sample number): nothing is shuffled, nothing is stored.

Two questions are answered for sample i, vectorised over i. Which source? A periodic pattern in which every source stays
within one sample of its exact share at every prefix (Tijdeman's chairman assignment, Discrete Mathematics 32, 1980). Which
window of it? A keyed permutation of its windows, another one for every epoch: a Feistel network on the next power of four,
walked until it falls inside (Black and Rogaway, 2002). So the state of a loader is one integer, whatever the number of
workers.
"""

import hashlib
import math
from collections.abc import Mapping
from fractions import Fraction

import numpy as np

MAX_PERIOD = 10_000
"""Longest pattern of sources. Weights whose common denominator is larger are rounded to multiples of 1/10,000."""
ROUNDS = 6


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


def pattern(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Source of every slot of a period, and how many earlier slots have the same. int64[K] -> 2 x int64[period].

    After any number of slots n, source k has had n · counts[k] / period of them, give or take less than 1.
    """
    period, slack = int(counts.sum()), 2 * max(len(counts), 2) - 2
    seen = np.zeros(len(counts), np.int64)
    sources, ranks = np.empty(period, np.int64), np.empty(period, np.int64)
    for slot in range(period):
        lag = (
            slot + 1
        ) * counts - seen * period  # in whole numbers, so that ties fall alike on every machine
        # Of those at least 1 / slack of a sample behind, the one whose deadline comes first.
        urgency = np.where(lag * slack >= period, (period * (slack - 1) - lag * slack) / counts, np.inf)
        source = int(np.argmin(urgency))
        sources[slot], ranks[slot] = source, seen[source]
        seen[source] += 1
    assert (seen == counts).all(), (seen, counts)
    return sources, ranks


def key(*parts: object) -> int:
    """64 bits that depend on every part and on where one ends and the next begins."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little")


def permute(positions: np.ndarray, size: int, key: int) -> np.ndarray:
    """Where a keyed permutation of `range(size)` sends `positions`. int64[n] -> int64[n]; the same for any n."""
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)
    odd = 0x9E3779B97F4A7C15
    keys = [np.uint64((key + odd * (number + 1)) % 2**64) for number in range(ROUNDS)]
    walked = positions.astype(np.uint64)
    outside = np.arange(len(walked))
    while len(outside):
        left, right = walked[outside] >> half, walked[outside] & mask
        for round_key in keys:
            left, right = right, left ^ (_scramble(right + round_key) & mask)
        walked[outside] = left << half | right
        outside = outside[walked[outside] >= size]
    return walked.astype(np.int64)


def _scramble(bits: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014). uint64[n] -> uint64[n]."""
    bits = (bits ^ bits >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ bits >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return bits ^ bits >> np.uint64(31)


class Order:
    """The order of one phase over sources with `windows[name]` windows each."""

    def __init__(self, seed: int, phase: str, mix: Mapping[str, float], windows: Mapping[str, int]) -> None:
        per_source = slots(mix)
        self.names = list(per_source)
        self._key = (seed, phase)
        self._windows = [windows[name] for name in self.names]
        self._counts = np.array(list(per_source.values()), np.int64)
        self._sources, self._ranks = pattern(self._counts)

    def locate(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Source (an index into `names`), epoch and window of every sample. int64[n] -> 3 x int64[n]."""
        period, slot = np.divmod(samples, len(self._sources))
        source = self._sources[slot]
        nth = period * self._counts[source] + self._ranks[slot]
        epoch, position = np.divmod(nth, np.array(self._windows)[source])
        window = np.empty_like(position)
        for number, turn in {(int(s), int(e)) for s, e in zip(source, epoch, strict=True)}:
            here = (source == number) & (epoch == turn)
            keyed = key(*self._key, self.names[number], turn)
            window[here] = permute(position[here], self._windows[number], keyed)
        return source, epoch, window

    def samples_of(self, n_samples: int) -> dict[str, int]:
        """How many of the first `n_samples` samples each source gives."""
        periods, rest = divmod(n_samples, len(self._sources))
        begun = np.bincount(self._sources[:rest], minlength=len(self.names))
        return {
            name: int(periods * self._counts[number] + begun[number])
            for number, name in enumerate(self.names)
        }
