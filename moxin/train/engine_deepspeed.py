"""The engine of real runs: DeepSpeed with ZeRO 0 to 3, in a worker of Ray Train or in any process where the five variables
RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are set.

DeepSpeed is imported when an engine is made, never with this module: that takes 5 s and fails on a head node without a GPU.
"""

import argparse
import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn

from moxin.train.engine import multiplies_bf16, sum_and_count, to_tensors
from moxin.train.job import FitJob, Objective
from moxin.train.optimizer import adamw

TAG = "deepspeed"
"""Folder, within a checkpoint, that DeepSpeed writes into."""


class DeepSpeedEngine:
    """bf16 is bf16 weights and gradients over float32 master weights; at stage 0 it is autocast as in `TorchEngine`.

    `universal` reads checkpoints of another number of workers: DeepSpeed refuses those, so they are converted first.
    """

    def __init__(self, module: nn.Module, job: FitJob, universal: bool = False) -> None:
        if not job.scaling.use_gpu:
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        import deepspeed

        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        # With what it could compile DeepSpeed would at once compile a reduction for inference (100 s measured, needs ninja);
        # training reduces through gloo or NCCL.
        deepspeed.ops.__compatible_ops__ = {}
        self.stage = int(job.scaling.zero_stage)
        self.universal = universal and self.stage > 0  # the files of stage 0 do not depend on the workers
        self.betas, self.grad_clip = job.betas, job.grad_clip
        self.basic = adamw(module, job.betas, job.weight_decay)
        self.engine, self.optimizer, _, _ = deepspeed.initialize(
            model=module, optimizer=self.basic, config=self._config(module, job)
        )
        self.decays = [group["weight_decay"] for group in self.optimizer.param_groups]
        self.rank, self.world = distributed.get_rank(), distributed.get_world_size()
        self.device = torch.device(self.engine.device)
        self.engine.train()

    def _config(self, module: nn.Module, job: FitJob) -> dict[str, Any]:
        n_parameters = sum(p.numel() for p in module.parameters())
        # bf16 at stage 0 is another optimizer of DeepSpeed's, whose losses leave the others' by 0.09 within eight steps.
        bf16 = job.scaling.precision == "bf16"
        autocast = bf16 and multiplies_bf16(torch.device("cuda" if job.scaling.use_gpu else "cpu"))
        precision = (
            {"bf16": {"enabled": bf16}}
            if self.stage
            else {"torch_autocast": {"enabled": autocast, "dtype": "bfloat16"}}
        )
        return {
            # The loop cuts batches and says where a step ends; DeepSpeed only has to be told something consistent.
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": job.grad_clip
            if self.stage
            else 0.0,  # the plain optimizer of stage 0: see `step`
            **precision,
            "zero_optimization": {
                "stage": self.stage,
                # Buffers of this many elements are allocated; the default of 5e8 is 2 GB, whatever the model.
                "reduce_bucket_size": min(n_parameters, 500_000_000),
                "allgather_bucket_size": min(n_parameters, 500_000_000),
            },
            "checkpoint": {"load_universal": self.universal},
            "steps_per_print": None,
        }

    def micro_step(
        self, objective: Objective, micro: Mapping[str, np.ndarray], scale: float, last: bool
    ) -> Tensor:
        self.engine.set_gradient_accumulation_boundary(last)
        total, count = objective(self.engine, to_tensors(micro, self.device))
        # DeepSpeed averages over the workers, and the loop wants the sum.
        self.engine.backward(total * (scale * self.world), scale_wrt_gas=False)
        return sum_and_count(total, count)

    def step(self, lr: float) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if not self.stage:
            norm = nn.utils.clip_grad_norm_(self.engine.module.parameters(), self.grad_clip or float("inf"))
            self.engine.step()
            return float(norm)
        self.engine.step()
        return float(self.engine.get_global_grad_norm())

    def sum(self, values: Tensor) -> list[float]:
        totals = values.to(self.device, torch.float64, copy=True)
        distributed.all_reduce(totals)
        return [float(total) for total in totals]

    def save(self, folder: Path) -> None:
        self.engine.save_checkpoint(str(folder), tag=TAG, save_latest=False)

    def load(self, folder: Path) -> None:
        with self._universal_of(folder) if self.universal else contextlib.nullcontext(folder) as readable:
            path, _ = self.engine.load_checkpoint(str(readable), tag=TAG)
        if path is None:
            raise RuntimeError(f"{folder}: DeepSpeed found no checkpoint there")
        # Read from a universal checkpoint, all sub-groups of ZeRO-3 share one step tensor, which each of them would advance.
        for state in self.basic.state.values():
            state["step"] = state["step"].clone()
        # A checkpoint brings the settings of the job that wrote it along; those of this job hold.
        for group, decay in zip(self.optimizer.param_groups, self.decays, strict=True):
            group["betas"], group["weight_decay"] = self.betas, decay
        if self.stage:
            self.optimizer.clip_grad = self.grad_clip

    @contextlib.contextmanager
    def _universal_of(self, folder: Path) -> Iterator[Path]:
        """The checkpoint in DeepSpeed's universal form, made once on every node in a temporary folder."""
        first_on_node = int(os.environ["LOCAL_RANK"]) == 0
        name = [tempfile.mkdtemp(prefix="moxin-universal-") if self.rank == 0 else ""]
        distributed.broadcast_object_list(name, src=0)
        converted = Path(name[0])
        if first_on_node:
            converted.mkdir(exist_ok=True)
            to_universal(folder / TAG, converted / TAG)
        distributed.barrier()
        yield converted
        distributed.barrier()
        if first_on_node:
            shutil.rmtree(converted)

    def weights(self) -> dict[str, Tensor]:
        from deepspeed.utils import safe_get_full_fp32_param

        weights = {}
        for name, parameter in self.engine.module.named_parameters():
            whole = safe_get_full_fp32_param(parameter) if self.stage else parameter
            if self.rank == 0:
                weights[name] = whole.detach().float().cpu().clone()
        return weights


def to_universal(source: Path, target: Path) -> None:
    """Converts a ZeRO checkpoint into one that any number of workers can read (arXiv 2406.18820)."""
    from deepspeed.checkpoint import ds_to_universal

    target.mkdir(parents=True)
    options = argparse.Namespace(
        input_folder=str(source),
        output_folder=str(target),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        ds_to_universal.main(options)
