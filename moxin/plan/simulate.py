"""How a run scales to thousands of GPUs when some of them fail: step time, checkpoints, lost work, and the curve of it all.

A failure ends the step it comes in; the group restarts, loads the last checkpoint and makes the steps since it once more.
The best interval between checkpoints and the expected time of the run are Daly's (Future Generation Computer Systems 22,
2006, equations 20 and 37; the first order is Young's, CACM 17, 1974), and `simulate` plays the run with random failures,
which the formula is held against by a test.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from moxin.plan import cost
from moxin.plan.cluster import Offer
from moxin.plan.cost import RunCost
from moxin.recipe import Recipe

RUNS = 400
"""Simulated runs for each point of a curve."""


@dataclass(frozen=True)
class Reliability:
    """How often GPUs fail, and what a checkpoint and a restart take."""

    gpu_hours: float = 50_000.0
    """Mean GPU hours between failures that end a step. Llama 3: 419 unexpected interruptions in 54 days of 16,384 H100
    (arXiv 2407.21783, section 3.3.4), 50,700."""
    restart_seconds: float = 600.0
    """From a failure to the next step: noticed, workers started, NCCL connected, checkpoint read. An assumption."""
    machine_store_bytes_per_second: float = 1e9
    """What one machine writes to the store of checkpoints; machines write at the same time. An assumption."""
    store_bytes_per_second: float = 50e9
    """What the store takes from all machines together. An assumption."""

    def between_failures(self, n_gpus: int) -> float:
        """Mean seconds between failures of any of `n_gpus`."""
        return self.gpu_hours * 3600 / n_gpus

    def checkpoint_seconds(self, n_bytes: int, machines: int) -> float:
        """Training waits for so long while a checkpoint is written."""
        return n_bytes / min(machines * self.machine_store_bytes_per_second, self.store_bytes_per_second)


def best_interval(write: float, between: float) -> float:
    """Seconds of work between checkpoints that cost least; one takes `write` seconds, failures come every `between`.

    Daly's equation 37; where a checkpoint takes longer than twice the time between failures, that time itself.
    """
    if write >= 2 * between:
        return between
    ratio = write / (2 * between)
    return math.sqrt(2 * write * between) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - write


def expected_seconds(work: float, interval: float, write: float, restart: float, between: float) -> float:
    """Expected seconds of a run with `work` seconds of steps (Daly's equation 20; failures are exponential).

    Infinite where failures come so fast that the run does not advance.
    """
    if (interval + write) / between > 700:
        return math.inf
    segments = between * math.exp(restart / between) * math.expm1((interval + write) / between)
    return segments * work / interval


def simulate(
    work: float,
    interval: float,
    write: float,
    restart: float,
    between: float,
    *,
    runs: int = 1000,
    seed: int = 0,
) -> np.ndarray:
    """Seconds that each of `runs` runs took, float64[runs]: `work` seconds of steps, a checkpoint after every `interval` of
    them, failures at random, `between` seconds apart on average, also while restarting or writing."""
    random = np.random.default_rng(seed)
    took, left = np.zeros(runs), np.full(runs, float(work))
    starting = np.zeros(runs)  # seconds of restart at the beginning of a stretch: none of the first
    going = np.arange(runs)
    while len(going):
        until = random.exponential(between, len(going))
        able = np.maximum(until - starting[going], 0.0)
        needed = left[going] + np.maximum(np.ceil(left[going] / interval) - 1, 0) * write
        done = able >= needed
        took[going] += np.where(done, starting[going] + needed, until)
        left[going] -= np.minimum(np.floor(able / (interval + write)) * interval, left[going])
        starting[going] = restart
        going = going[~done]
    return took


@dataclass(frozen=True)
class Point:
    """The run on so many GPUs, failures included."""

    cost: RunCost
    batch_factor: int
    """How many times the recipe's batch is needed to give each GPU a row; above 1 it is another training run."""
    between_failures: float
    checkpoint_seconds: float
    interval: float
    expected: float
    """Seconds of the run; `low` and `high` are the 5th and 95th percentile of simulated runs."""
    low: float
    high: float

    @property
    def n_gpus(self) -> int:
        return self.cost.n_gpus

    @property
    def goodput(self) -> float:
        """Share of the time that goes into steps whose result is kept."""
        return self.cost.hours * 3600 / self.expected

    @property
    def steps_between_checkpoints(self) -> int:
        return max(1, round(self.interval / self.cost.phases[0].step.total))

    @property
    def dollars(self) -> float:
        return self.cost.dollars / self.goodput if self.goodput else math.inf

    @property
    def computing(self) -> float:
        """Share of a step that is no waiting for the network, all phases."""
        total = sum(phase.seconds for phase in self.cost.phases)
        return 1 - sum(phase.steps * phase.step.network for phase in self.cost.phases) / total


def curve(
    recipe: Recipe,
    offer: Offer,
    gpu_counts: Sequence[int],
    reliability: Reliability,
    *,
    runs: int = RUNS,
    seed: int = 0,
) -> list[Point]:
    """The fastest settings at every count, with failures. Counts that fit no settings are left out."""
    written = cost.checkpoint_bytes(recipe).state
    points = []
    for n_gpus in gpu_counts:
        factor = batch_factor(recipe, n_gpus)
        grown = replace(
            recipe, pretrain=replace(recipe.pretrain, global_batch=recipe.pretrain.global_batch * factor)
        )
        found = cost.options(grown, [replace(offer, most_gpus=0)], [n_gpus])
        if not found:
            continue
        fastest = min(found, key=lambda each: each.hours)
        between = reliability.between_failures(n_gpus)
        write = reliability.checkpoint_seconds(written, offer.machines(n_gpus))
        # A checkpoint comes after a whole step, whatever the formula says.
        interval = max(best_interval(write, between), fastest.phases[0].step.total)
        work = fastest.hours * 3600
        restart = reliability.restart_seconds
        expected = expected_seconds(work, interval, write, restart, between)
        low = high = math.inf
        if expected < 20 * work:
            took = simulate(work, interval, write, restart, between, runs=runs, seed=seed)
            low, high = (float(value) for value in np.quantile(took, (0.05, 0.95)))
        points.append(Point(fastest, factor, between, write, interval, expected, low, high))
    return points


def batch_factor(recipe: Recipe, n_gpus: int) -> int:
    """How many times the batch of every phase must grow, in powers of two, before each of `n_gpus` has a row."""
    fewest = min(recipe.pretrain.global_batch // phase.context for phase in recipe.pretrain.phases)
    factor = 1
    while fewest * factor < n_gpus:
        factor *= 2
    return factor
