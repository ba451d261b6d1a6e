"""What a training run is told: a frozen, picklable description that pretraining, SFT and DPO fill in."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor, nn

from moxin.recipe import ModelConfig, ScalingConfig
from moxin.train.objective import count_targets

Micro = dict[str, np.ndarray]
"""A micro-batch: named arrays with a leading batch dimension."""
Objective = Callable[[nn.Module, Mapping[str, Tensor]], tuple[Tensor, Tensor]]
"""`(module, micro) -> (sum of the loss, how many it sums over)`; the step's loss is global sum / global count."""


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
    """Warm-up and cosine over `total_steps` of a whole run, of which this job begins at `first_step`."""

    total_steps: int
    first_step: int = 0
    warmup_steps: int = 0
    min_ratio: float = 0.1
    """Learning rate of the last step over the peak."""


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
    betas: tuple[float, float]
    weight_decay: float
    grad_clip: float
    """Largest norm of the gradient; 0 does not clip."""
    checkpoint_every: int
    """Optimizer steps between checkpoints; 0 makes none."""
    seed: int
    scaling: ScalingConfig
    unit: str = "tokens"
    keep_state: bool = False
    """Leave `state/` behind, from which a next job carries the optimizer over."""
    count: Callable[[Micro], int] = count_targets
    """What the objective will count in a micro-batch. Needed before its backward pass: see `moxin.train.loop`."""
