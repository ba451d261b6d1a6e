"""What the loop needs from whatever holds the model and its optimizer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from kernels.precision import matmul_dtype
from moxin.train.job import Objective


class Engine(Protocol):
    """A model under training on `world` workers, of which this is number `rank`. All methods are collective."""

    rank: int
    world: int

    def micro_step(
        self, objective: Objective, micro: Mapping[str, np.ndarray], scale: float, last: bool
    ) -> Tensor:
        """Adds the gradient of `scale` x the sum of the loss, summed over the workers.

        Returns what the objective did: this worker's sum and count, float64[2]. `last` marks the step's last micro-batch,
        after which gradients are complete on all workers.
        """
        ...

    def step(self, lr: float) -> float:
        """Clips, updates the weights, clears the gradients. Returns the gradient's norm before clipping."""
        ...

    def sum(self, values: Tensor) -> list[float]:
        """The sums of some numbers over all workers."""
        ...

    def save(self, folder: Path) -> None:
        """Writes this worker's part of weights and optimizer state; the workers' files have different names."""
        ...

    def load(self, folder: Path) -> None:
        """Takes over what `save` of all workers left in one folder."""
        ...

    def weights(self) -> dict[str, Tensor]:
        """The whole model in float32 on the CPU, on rank 0; empty elsewhere."""
        ...


def to_tensors(micro: Mapping[str, np.ndarray], device: torch.device) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array).to(device, non_blocking=True) for name, array in micro.items()}


def multiplies_bf16(device: torch.device) -> bool:
    """Whether autocast to bfloat16 is any use: a CPU that only emulates its products trains at an eighth of the speed."""
    return matmul_dtype(torch.bfloat16, device) == torch.bfloat16


def sum_and_count(total: Tensor, count: Tensor) -> Tensor:
    """What an objective returned, detached, as float64[2]."""
    return torch.stack([total.detach().double(), count.detach().double()])
