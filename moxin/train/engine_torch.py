"""The engine without Ray and DeepSpeed: one process, plain PyTorch. The reference for the other, and for notebooks."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from moxin.train import optimizer
from moxin.train.engine import multiplies_bf16, to_tensors
from moxin.train.job import FitJob, Objective
from moxin.train.shards import Flat


class TorchEngine:
    """bf16 is autocast over float32 weights, where the hardware multiplies it."""

    rank = 0
    world = 1

    def __init__(self, module: nn.Module, job: FitJob) -> None:
        self.device = torch.device("cuda" if job.scaling.use_gpu else "cpu")
        self.module = module.to(self.device).train()
        self.grad_clip = job.optimizer.grad_clip
        self.bf16 = job.scaling.precision == "bf16" and multiplies_bf16(self.device)
        self.optimizer = optimizer.build(self.module, job.optimizer)

    def micro_step(
        self, objective: Objective, micro: Mapping[str, np.ndarray], scale: Tensor, last: bool
    ) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            total, sums = objective(self.module, to_tensors(micro, self.device))
        (total * scale.to(total.dtype)).backward()
        return sums.detach().double()

    def step(self, lr: float, bad: Tensor) -> tuple[Tensor, Tensor]:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        norm = nn.utils.get_total_norm([p.grad for p in self.module.parameters() if p.grad is not None])
        skipped = optimizer.tell(self.optimizer, norm, bad, self.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm, skipped

    @torch.no_grad()
    def measure(self, objective: Objective, micro: Mapping[str, np.ndarray]) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            return objective(self.module, to_tensors(micro, self.device))[1].detach().double()

    def sum(self, values: Tensor) -> Tensor:
        return values.to(self.device, torch.float64)

    def flats(self) -> list[Flat]:
        return optimizer.flats_of(self.optimizer, dict(self.module.named_parameters()))

    def reload(self, updates: int) -> None:
        optimizer.set_updates(self.optimizer, updates)

    def weights(self) -> dict[str, Tensor]:
        return {name: t.detach().float().cpu().clone() for name, t in self.module.state_dict().items()}
