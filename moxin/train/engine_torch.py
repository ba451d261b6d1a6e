"""The engine without Ray and DeepSpeed: one process, plain PyTorch. The reference for the other, and for notebooks."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from moxin.train.engine import multiplies_bf16, sum_and_count, to_tensors
from moxin.train.job import FitJob, Objective
from moxin.train.optimizer import adamw

STATE = "state.pt"


class TorchEngine:
    """bf16 is autocast over float32 weights, where the hardware multiplies it."""

    rank = 0
    world = 1

    def __init__(self, module: nn.Module, job: FitJob) -> None:
        self.device = torch.device("cuda" if job.scaling.use_gpu else "cpu")
        self.module = module.to(self.device).train()
        self.grad_clip = job.grad_clip
        self.bf16 = job.scaling.precision == "bf16" and multiplies_bf16(self.device)
        self.optimizer = adamw(self.module, job.betas, job.weight_decay)

    def micro_step(
        self, objective: Objective, micro: Mapping[str, np.ndarray], scale: float, last: bool
    ) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            total, count = objective(self.module, to_tensors(micro, self.device))
        (total * scale).backward()
        return sum_and_count(total, count)

    def step(self, lr: float) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), self.grad_clip or float("inf"))
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(norm)

    def sum(self, values: Tensor) -> list[float]:
        return [float(value) for value in values]

    def save(self, folder: Path) -> None:
        torch.save(
            {"module": self.module.state_dict(), "optimizer": self.optimizer.state_dict()}, folder / STATE
        )

    def load(self, folder: Path) -> None:
        state = torch.load(folder / STATE, map_location=self.device, weights_only=True)
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])

    def weights(self) -> dict[str, Tensor]:
        return {name: t.detach().float().cpu() for name, t in self.module.state_dict().items()}
