"""The engine of real runs: DeepSpeed with ZeRO 0 to 3, in a worker of Ray Train or in any process where the five variables
RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are set.

DeepSpeed is imported when an engine is made, never with this module: that takes 5 s and fails on a head node without a GPU.
"""

import logging
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn

from moxin.train import muon, optimizer
from moxin.train.engine import multiplies_bf16, to_tensors
from moxin.train.job import FitJob, Objective
from moxin.train.shards import WEIGHT, Flat, Piece


class DeepSpeedEngine:
    """bf16 is bf16 weights and gradients over float32 master weights; at stage 0 it is autocast as in `TorchEngine`."""

    def __init__(self, module: nn.Module, job: FitJob) -> None:
        if not job.scaling.use_gpu:
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        import deepspeed

        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        # With what it could compile DeepSpeed would at once compile a reduction for inference (100 s measured, needs ninja);
        # training reduces through gloo or NCCL.
        deepspeed.ops.__compatible_ops__ = {}
        self.stage = int(job.scaling.zero_stage)
        self.grad_clip = job.optimizer.grad_clip
        self.basic = optimizer.build(module, job.optimizer)
        self.basic.register_step_pre_hook(self._tell)
        self.engine, self.optimizer, _, _ = deepspeed.initialize(
            model=module, optimizer=self.basic, config=self._config(module, job)
        )
        self.rank, self.world = distributed.get_rank(), distributed.get_world_size()
        if self.world == 1 and not self.stage:  # it would copy all gradients to and fro all the same
            self.engine.enable_backward_allreduce = False
        self.device = torch.device(self.engine.device)
        self.parameters = dict(self.engine.module.named_parameters())
        self._bad = torch.zeros((), dtype=torch.bool, device=self.device)
        self._skipped: Tensor | None = None
        if isinstance(self.basic, optimizer.MuonWithAdamW):
            self._arrange_muon(self.basic)
        self.engine.train()

    def _config(self, module: nn.Module, job: FitJob) -> dict[str, Any]:
        scaling = job.scaling
        n_parameters = sum(p.numel() for p in module.parameters())
        # bf16 at stage 0 is another optimizer of DeepSpeed's, whose losses leave the others' by 0.09 within eight steps.
        bf16 = scaling.precision == "bf16"
        autocast = bf16 and multiplies_bf16(torch.device("cuda" if scaling.use_gpu else "cpu"))
        precision = (
            {"bf16": {"enabled": bf16}}
            if self.stage
            else {"torch_autocast": {"enabled": autocast, "dtype": "bfloat16"}}
        )
        zero: dict[str, Any] = {
            "stage": self.stage,
            # Buffers of this many elements are allocated; the default of 5e8 is 2 GB, whatever the model.
            "reduce_bucket_size": min(n_parameters, 500_000_000),
            "allgather_bucket_size": min(n_parameters, 500_000_000),
        }
        for name, key in (
            ("offload_optimizer", "offload_optimizer"),
            ("offload_parameters", "offload_param"),
        ):
            device = getattr(scaling, name)
            if device != "none":
                zero[key] = {"device": device, "pin_memory": scaling.use_gpu}
                if device == "nvme":
                    zero[key]["nvme_path"] = scaling.offload_path
        return {
            # The loop cuts batches and says where a step ends; DeepSpeed only has to be told something consistent.
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": 0.0,  # done by the optimizers: see `moxin.train.optimizer.tell`
            **precision,
            "zero_optimization": zero,
            "zero_allow_untested_optimizer": True,
            # An offloaded AdamW is torch's fused one: DeepSpeed's compiles C++ when it is first used.
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": None,
        }

    def micro_step(
        self, objective: Objective, micro: Mapping[str, np.ndarray], scale: Tensor, last: bool
    ) -> Tensor:
        self.engine.set_gradient_accumulation_boundary(last)
        total, sums = objective(self.engine, to_tensors(micro, self.device))
        # DeepSpeed averages over the workers, and the loop wants the sum.
        self.engine.backward(total * (scale * self.world).to(total.dtype), scale_wrt_gas=False)
        return sums.detach().double()

    def step(self, lr: float, bad: Tensor) -> tuple[Tensor, Tensor]:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self._bad, self._skipped = bad, None
        if not self.stage:
            self._norm = nn.utils.get_total_norm(
                [p.grad for p in self.parameters.values() if p.grad is not None]
            )
        self.engine.step()
        if self._skipped is None:  # DeepSpeed itself has seen that the gradient is not finite
            return torch.tensor(torch.inf, device=self.device), torch.ones_like(bad)
        return self._norm, self._skipped

    def _tell(self, basic: torch.optim.Optimizer, *_: Any) -> None:
        """Before every call of the basic optimizer's `step`, of which ZeRO makes several in one of its own."""
        if self._skipped is not None:
            return
        if self.stage:
            norm = self.optimizer._global_grad_norm
            self._norm = torch.as_tensor(norm, dtype=torch.float32, device=self.device)
        self._skipped = optimizer.tell(basic, self._norm, self._bad, self.grad_clip)

    @torch.no_grad()
    def measure(self, objective: Objective, micro: Mapping[str, np.ndarray]) -> Tensor:
        self.engine.eval()
        sums = objective(self.engine, to_tensors(micro, self.device))[1].detach().double()
        self.engine.train()
        return sums

    def sum(self, values: Tensor) -> Tensor:
        totals = values.to(self.device, torch.float64, copy=True)
        distributed.all_reduce(totals)
        return totals

    def flats(self) -> list[Flat]:
        if not self.stage:
            flats = optimizer.flats_of(self.basic, self.parameters)
            for number, flat in enumerate(flats):  # all have all: each writes its share
                flat.counted = number % self.world == self.rank
            return flats
        return self._partitions_of_weights() if self.stage == 3 else self._partitions_of_groups()

    def _partitions_of_groups(self) -> list[Flat]:
        """ZeRO 1 and 2: of every group of parameters, laid end to end, one part."""
        names = {id(parameter): name for name, parameter in self.parameters.items()}
        flats = []
        for number, weights in enumerate(self.optimizer.single_partition_of_fp32_groups):
            pieces = []
            for parameter in self.optimizer.bit16_groups[number]:
                if (mapping := parameter._hp_mapping) is not None:
                    here, there = mapping.hp_fragment_address, mapping.lp_fragment_address
                    pieces.append(Piece(names[id(parameter)], there.start, here.start, here.numel))
            flats.append(self._flat(weights, self.optimizer.param_groups[number], pieces))
        return flats

    def _partitions_of_weights(self) -> list[Flat]:
        """ZeRO 3: of every parameter one part, many of them laid end to end."""
        self.optimizer._partition_all_parameters()
        names = {id(parameter): name for name, parameter in self.parameters.items()}
        flats = []
        for number, weights in enumerate(self.optimizer.fp32_partitioned_groups_flat):
            pieces, offset = [], 0
            for parameter in self.optimizer.fp16_groups[number]:
                size = parameter.partition_numel()
                start = self.rank * size
                if (numel := min(size, parameter.ds_numel - start)) > 0:
                    pieces.append(Piece(names[id(parameter)], start, offset, numel))
                offset += size
            group = self.optimizer.param_groups[self.optimizer.sub_group_to_group_id[number]]
            flats.append(self._flat(weights, group, pieces))
        return flats

    def _flat(self, weights: Tensor, group: dict[str, Any], pieces: list[Piece]) -> Flat:
        state = optimizer.state_of(self.basic, group, weights)
        tensors = {key: value for key, value in state.items() if key != "step"}
        return Flat({WEIGHT: weights.detach(), **tensors}, pieces, int(state["step"]))

    def reload(self, updates: int) -> None:
        optimizer.set_updates(self.basic, updates)
        if self.stage in (1, 2):
            self.optimizer.update_lp_params()
        elif self.stage == 3:
            for number, weights in enumerate(self.optimizer.fp32_partitioned_groups_flat):
                self.optimizer.fp16_partitioned_groups_flat[number].data.copy_(weights.data)
                self.optimizer._unflatten_partitioned_parameters(number)
            if kept := self.optimizer.persistent_parameters:
                kept[0].all_gather(kept)

    def _arrange_muon(self, basic: optimizer.MuonWithAdamW) -> None:
        if not self.stage:
            return
        basic.exchange = muon.between(self.rank)
        for number, group in enumerate(basic.param_groups):
            if group["muon"]:
                names = {id(parameter): name for name, parameter in self.parameters.items()}
                basic.matrices, start = [], 0
                for parameter in self.optimizer.bit16_groups[number]:
                    rows, columns = parameter.shape
                    matrix = muon.Matrix((rows, columns), start, basic.splits[names[id(parameter)]])
                    basic.matrices.append(matrix)
                    start = matrix.end

    def weights(self) -> dict[str, Tensor]:
        from deepspeed.utils import safe_get_full_fp32_param

        weights = {}
        for name, parameter in self.parameters.items():
            whole = safe_get_full_fp32_param(parameter) if self.stage else parameter
            if self.rank == 0:
                weights[name] = whole.detach().float().cpu().clone()
        return weights
