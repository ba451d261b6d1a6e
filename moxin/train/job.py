"""What a training run is told: a frozen, picklable description that pretraining, SFT and DPO fill in."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from torch import Tensor, nn

from moxin.recipe import GuardConfig, ModelConfig, ScalingConfig
from moxin.train.objective import count_targets

Micro = dict[str, np.ndarray]
"""A micro-batch: named arrays with a leading batch dimension."""
Objective = Callable[[nn.Module, Mapping[str, Tensor]], tuple[Tensor, Tensor]]
"""`(module, micro) -> (what to differentiate, sums)`. The first is a sum; the step's gradient is of global sum / global
count. `sums` are the loss to report, how many it sums over, and as many such pairs more as the job has `parts`."""


class Batches(Protocol):
    """The data of a run. Everything is a pure function of the step, so that the data's whole state is one integer."""

    @property
    def n_steps(self) -> int: ...

    def step(self, i: int, rank: int, world: int) -> list[Micro]:
        """The micro-batches of one worker in step `i`; every rank has as many of them as the others."""
        ...

    def size(self, i: int) -> int:
        """Units (tokens, pairs) that all workers together take in step `i`; for counting, not for the loss."""
        ...


@dataclass(frozen=True)
class Schedule:
    """Warm-up and decay over `total_steps` of a whole run, of which this job begins at `first_step`."""

    total_steps: int
    first_step: int = 0
    warmup_steps: int = 0
    min_ratio: float = 0.1
    """Learning rate of the last step over the peak."""
    kind: Literal["cosine", "linear", "wsd", "inverse_sqrt"] = "cosine"
    decay_steps: int = 0
    """Of `wsd`: steps at the end, over which the rate falls."""


@dataclass(frozen=True)
class OptimizerSettings:
    kind: Literal["adamw", "lion", "muon"] = "adamw"
    betas: tuple[float, float] = (0.9, 0.95)
    """Of AdamW and Lion."""
    eps: float = 1e-8
    momentum: float = 0.95
    """Of Muon."""
    weight_decay: float = 0.1
    grad_clip: float = 1.0
    """Largest norm of the gradient; 0 does not clip."""


@dataclass(frozen=True)
class Keeping:
    """Which checkpoints are made, and which of them stay, in optimizer steps; 0 makes or keeps none."""

    every: int
    last: int = 2
    """The newest so many are kept."""
    also_every: int = 0
    """Those at multiples of this are kept as well, until the job is done."""
    publish_every: int = 0
    """The weights at multiples of this stay as `steps/STEP/` of the artifact."""


@dataclass(frozen=True)
class FitJob:
    name: str
    model: ModelConfig
    initial: str
    """URL of a `model/` folder to start from; empty starts from `Decoder.reset(seed)`."""
    state: str
    """URL of a `state/` folder of an earlier job whose weights and optimizer state are carried over; empty for none."""
    batches: Callable[[], Batches]
    """Makes the data inside each worker; picklable, such as a `functools.partial` of a module's function."""
    objective: Objective
    peak_lr: float
    schedule: Schedule
    optimizer: OptimizerSettings
    keeping: Keeping
    seed: int
    scaling: ScalingConfig
    unit: str = "tokens"
    context: int = 0
    """Tokens of a row, for what a token costs; 0 where that is not told."""
    micro_batch: int = 0
    """Most tokens at once, where the batches themselves are not told them; only for what is said when memory is out."""
    parts: tuple[str, ...] = ()
    """Names of the further pairs among the objective's sums: what it tells the loss of, such as sources."""
    guards: GuardConfig = field(default_factory=lambda: GuardConfig(spike_score=0.0))
    """By default only a step that is not finite is left out."""
    keep_state: bool = False
    """Leave `state/` behind, from which a next job carries the optimizer over."""
    count: Callable[[Micro], int] = count_targets
    """What the objective will count in a micro-batch. Needed before its backward pass: see `moxin.train.loop`."""


class HopelessError(RuntimeError):
    """What a worker met and the next group would meet again: starting it is no help."""


def first_lines(error: Exception) -> str:
    text = " ".join(line.strip() for line in str(error).splitlines()[:2])
    return f"{type(error).__name__}: {text}"
