#!/usr/bin/env python
"""`python benchmarks/plan_memory.py`: the planner's memory against what training takes on this machine, without a GPU.

Two measurements of small rungs: bytes that autograd saves in a forward pass, counted storage by storage through
`torch.autograd.graph.saved_tensors_hooks`; and how far the resident memory of a process of its own rises above what it
was after the imports (`VmHWM` and `VmRSS` of Linux's /proc) in two steps of two micro-batches with AdamW. About three
minutes, 8 GB.

Prints a table; with `--write` also `benchmarks/results/plan_memory-<date>.json` with hardware, versions and the command.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor

from benchmarks import common
from moxin.console import table
from moxin.model.decoder import Decoder
from moxin.model.presets import PRESETS
from moxin.plan import activations, memory
from moxin.plan.activations import Widths
from moxin.recipe import ModelConfig, ScalingConfig

CASES = (
    # preset, precision, recompute, rows, context
    ("60m", "fp32", "none", 4, 1024),
    ("60m", "fp32", "selective", 4, 1024),
    ("60m", "fp32", "full", 8, 1024),
    ("60m", "bf16", "none", 4, 1024),
    ("60m", "bf16", "full", 8, 1024),
    ("125m", "fp32", "none", 1, 2048),
    ("125m", "bf16", "selective", 2, 2048),
    ("350m", "fp32", "full", 1, 1024),
)


def resident_bytes(field: str) -> int:
    """`VmRSS`, resident now, or `VmHWM`, the most so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024


AS_ON_A_GPU = mock.patch.dict(os.environ, {"MOXIN_MATMUL_DTYPE": "bfloat16"})
"""bfloat16 is multiplied as such, whatever this CPU likes."""


def decoder(model: ModelConfig, recompute: str) -> Decoder:
    """The decoder that recomputes what `scaling.recompute` names."""
    return Decoder(model, 0, recompute)  # type: ignore[arg-type]


def batch(model: ModelConfig, rows: int, context: int) -> dict[str, Tensor]:
    """Random tokens, two documents a row."""
    ids = torch.randint(0, model.vocab_size, (rows, context), generator=torch.Generator().manual_seed(0))
    segments = (torch.arange(context) >= context // 2).int().expand(rows, context)
    return {"tokens_BT": ids, "segments_BT": segments, "targets_BT": ids}


@AS_ON_A_GPU
def saved_bytes(model: ModelConfig, precision: str, recompute: str, rows: int, context: int) -> int:
    """What autograd keeps of a forward pass: every storage once, parameters left out. `bf16` is all of it in bfloat16, as
    with ZeRO 1 to 3, `autocast` what stage 0 does."""
    made = decoder(model, recompute)
    if precision == "bf16":
        made = made.bfloat16()
    own = {parameter.untyped_storage().data_ptr() for parameter in made.parameters()}
    kept: dict[int, Any] = {}  # the storages themselves, so that no address comes twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    unpack: Callable[[Tensor], Tensor] = lambda tensor: tensor  # noqa: E731
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, unpack),
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"),
    ):
        made(**batch(model, rows, context), reduction="sum")
    total = sum(storage.nbytes() for storage in kept.values())
    kept.clear()
    return total


def planned_saved(model: ModelConfig, precision: str, recompute: str, rows: int, context: int) -> int:
    """What the planner says to `saved_bytes`."""
    width = Widths.of("fp32" if precision == "fp32" else "bf16", 0 if precision == "autocast" else 1)
    kept = rows * context * activations.forward(model, recompute, width)
    return kept + activations.weight_copies(model, recompute, width)


def train_here(preset: str, precision: str, recompute: str, rows: int, context: int) -> int:
    """Bytes by which this process grows while it trains; a tiny model is trained before, to have everything compiled."""
    tiny = PRESETS["60m"]
    tiny = type(tiny)(**{**vars(tiny), "n_layers": 1, "d_model": 64, "d_ff": 64, "vocab_size": 512})
    _steps(tiny, precision, recompute, 1, 64)
    before = resident_bytes("VmRSS")
    _steps(PRESETS[preset], precision, recompute, rows, context)
    return resident_bytes("VmHWM") - before


@AS_ON_A_GPU
def _steps(model: ModelConfig, precision: str, recompute: str, rows: int, context: int) -> None:
    made = decoder(model, recompute)
    optimizer = torch.optim.AdamW(made.parameters(), lr=1e-4, fused=True)
    given = batch(model, rows, context)
    for _ in range(2):
        for _ in range(2):
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                total, _ = made(**given, reduction="sum")
            total.backward()
        optimizer.step()
        optimizer.zero_grad()


def train_apart(preset: str, precision: str, recompute: str, rows: int, context: int) -> int:
    """`train_here` in a process of its own."""
    command = [sys.executable, __file__, "--child", preset, precision, recompute, str(rows), str(context)]
    # glibc gives freed memory back at once only above this size; by default the limit grows with what was freed.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return int(done.stdout.splitlines()[-1])


def planned_rise(preset: str, precision: str, recompute: str, rows: int, context: int) -> memory.Memory:
    """What the planner says to `train_apart`: ZeRO-0 on one worker without a GPU."""
    scaling = ScalingConfig(zero_stage="0", precision=precision, recompute=recompute)  # type: ignore[arg-type]
    return memory.of(PRESETS[preset], scaling, "adamw", rows * context, context, 1)


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        preset, precision, recompute, rows, context = sys.argv[2:]
        print(train_here(preset, precision, recompute, int(rows), int(context)))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--write", action="store_true", help="write the results")
    options = parser.parse_args()
    saved, risen = [], []
    for preset in ("60m", "125m"):
        for precision in ("fp32", "bf16", "autocast"):
            for recompute in ("none", "selective", "full"):
                case = (PRESETS[preset], precision, recompute, 1, 512)
                got, want = saved_bytes(*case), planned_saved(*case)
                saved.append((preset, precision, recompute, got / 2**20, want / 2**20, want / got))
    columns = ("rung", "precision", "recompute", "measured MiB", "planned MiB", "ratio")
    table("Saved for the way back, 1 row of 512", columns, saved)
    for preset, precision, recompute, rows, context in CASES:
        got = train_apart(preset, precision, recompute, rows, context)
        want = planned_rise(preset, precision, recompute, rows, context).total
        risen.append(
            (preset, precision, recompute, f"{rows} x {context}", got / 2**20, want / 2**20, want / got)
        )
    table("Resident memory of training", (*columns[:3], "rows", *columns[3:]), risen)
    if options.write:
        common.write("plan_memory", {"saved": saved, "resident": risen})


if __name__ == "__main__":
    main()
