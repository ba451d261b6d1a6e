"""What the loop needs from whatever holds the model and its optimizer."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from kernels.precision import matmul_dtype
from moxin.train.job import Objective
from moxin.train.shards import Flat


class Engine(Protocol):
    """A model under training on `world` workers, of which this is number `rank`. All methods but `flats` are collective.

    What they return lies on the device; nothing waits for it but who reads it.
    """

    rank: int
    world: int
    device: torch.device

    def micro_step(
        self, objective: Objective, micro: Mapping[str, np.ndarray], scale: Tensor, last: bool
    ) -> Tensor:
        """Adds the gradient of `scale` x the objective's first value, summed over the workers.

        Returns the objective's sums of this worker, float64. `last` marks the step's last micro-batch, after which gradients
        are complete on all workers.
        """
        ...

    def step(self, lr: float, bad: Tensor) -> tuple[Tensor, Tensor]:
        """Clips, updates the weights, clears the gradients; changes nothing where `bad`, bool[], or the gradient is not
        finite. Returns the gradient's norm before clipping, and whether nothing was changed."""
        ...

    def measure(self, objective: Objective, micro: Mapping[str, np.ndarray]) -> Tensor:
        """The objective's sums of a micro-batch, without a gradient; of this worker alone."""
        ...

    def sum(self, values: Tensor) -> Tensor:
        """The sums of some numbers over all workers, float64."""
        ...

    def flats(self) -> list[Flat]:
        """This worker's part of weights and optimizer state, as it is in use: to copy it, or to fill it and `reload`."""
        ...

    def reload(self, updates: int) -> None:
        """Takes over what was filled into `flats`; the optimizer has made that many updates."""
        ...

    def weights(self) -> dict[str, Tensor]:
        """A copy of the whole model in float32 on the CPU, on rank 0; empty elsewhere."""
        ...


def to_tensors(micro: Mapping[str, np.ndarray], device: torch.device) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array).to(device, non_blocking=True) for name, array in micro.items()}


def multiplies_bf16(device: torch.device) -> bool:
    """Whether autocast to bfloat16 is any use: a CPU that only emulates its products trains at an eighth of the speed."""
    return matmul_dtype(torch.bfloat16, device) == torch.bfloat16
