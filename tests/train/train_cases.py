"""A small job that every test of training shares, and data that can break its worker at a given step."""

import functools
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import ray

from moxin.recipe import ModelConfig, ScalingConfig
from moxin.train.job import FitJob, Keeping, Micro, OptimizerSettings, Schedule
from moxin.train.objective import IGNORE, next_token

N_STEPS = 12
ROWS, CONTEXT = 8, 16
MODEL = ModelConfig(
    n_layers=2, d_model=32, n_heads=4, n_kv_heads=2, d_ff=64, vocab_size=64, max_seq_len=CONTEXT
)


class CountingBatches:
    """Learnable rows, `t[i + 1] = 3 t[i] + 1`, with gaps in the loss so that no two micro-batches count the same."""

    def __init__(self, micro_rows: int = ROWS, n_steps: int = N_STEPS) -> None:
        self.micro_rows, self.n_steps = micro_rows, n_steps

    def step(self, i: int, rank: int, world: int) -> list[Micro]:
        rng = np.random.default_rng(i)
        tokens = np.empty((ROWS, CONTEXT + 1), np.int64)
        tokens[:, 0] = rng.integers(0, 64, ROWS)
        for t in range(CONTEXT):
            tokens[:, t + 1] = (3 * tokens[:, t] + 1) % 64
        targets = np.where(rng.random((ROWS, CONTEXT)) < 0.4, IGNORE, tokens[:, 1:])
        segments = np.repeat(np.arange(2, dtype=np.int32), CONTEXT // 2)[None].repeat(ROWS, 0)
        mine = range(rank * ROWS // world, (rank + 1) * ROWS // world)
        parts = [slice(k, min(k + self.micro_rows, mine.stop)) for k in mine[:: self.micro_rows]]
        return [{"tokens": tokens[p, :-1], "targets": targets[p], "segments": segments[p]} for p in parts]

    def size(self, i: int) -> int:
        return ROWS * CONTEXT


def tell_node(mark: Path) -> None:
    """Leaves the id of the node that this worker runs on beside a mark."""
    if ray.is_initialized():
        mark.with_name(f"{mark.name}-node").write_text(ray.get_runtime_context().get_node_id())


class BreakingBatches(CountingBatches):
    """The same data, but the worker `rank` dies, is stopped or waits to be killed when it asks for step `at`.

    It happens once: `mark` is the file that says it did.
    """

    def __init__(self, mark: str, at: int, rank: int, kind: str, micro_rows: int = ROWS) -> None:
        super().__init__(micro_rows)
        self.mark, self.at, self.rank, self.kind = Path(mark), at, rank, kind

    def step(self, i: int, rank: int, world: int) -> list[Micro]:
        if i == self.at and rank == self.rank and not self.mark.exists():
            tell_node(self.mark)
            self.mark.write_text(str(os.getpid()))
            if self.kind == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.kind == "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            if self.kind == "hopeless":
                self.mark.unlink()
                with open(f"{self.mark}-starts", "a") as starts:
                    starts.write("x")
                raise ValueError("these batches cannot be right")
            if self.kind == "raise":
                self.mark.unlink()
                raise KeyError("the objective of this test is broken")
            time.sleep(3600)
        return super().step(i, rank, world)


class ElasticBatches(CountingBatches):
    """The same data, but from step 4 on only for a group of one worker, and from step 8 on only for one of two.

    What it waits for it says with a file in `folder`.
    """

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = Path(folder)

    def step(self, i: int, rank: int, world: int) -> list[Micro]:
        wanted = 0 if i < 4 else 1 if i < 8 else 2
        while i and wanted and world != wanted:
            (self.folder / f"wants-{wanted}").touch()
            time.sleep(0.1)
        return super().step(i, rank, world)


class SlowBatches(CountingBatches):
    """The same data, a step in half a second from step 5 on, which is told by a file in `folder`."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = Path(folder)

    def step(self, i: int, rank: int, world: int) -> list[Micro]:
        if i >= 5:
            tell_node(self.folder / "slow")
            (self.folder / "slow").touch()
            time.sleep(0.5)
        return super().step(i, rank, world)


def small_job(micro_rows: int = ROWS, **changes: Any) -> FitJob:
    """One worker, float32, ZeRO-1; `changes` are fields of the job, of its scaling or of its optimizer."""
    scaling = ScalingConfig(n_workers=1, zero_stage="1", precision="fp32", max_failures=2)
    inner = {name: changes.pop(name) for name in list(changes) if name in scaling.__dataclass_fields__}
    settings = {"grad_clip": 0.5}
    settings |= {
        name: changes.pop(name) for name in list(changes) if name in OptimizerSettings.__dataclass_fields__
    }
    job = FitJob(
        name="small",
        model=MODEL,
        initial="",
        state="",
        batches=functools.partial(CountingBatches, micro_rows),
        objective=next_token,
        peak_lr=1e-2,
        schedule=Schedule(total_steps=N_STEPS, warmup_steps=3),
        optimizer=OptimizerSettings(**settings),
        keeping=Keeping(4),
        seed=5,
        scaling=replace(scaling, **inner),
    )
    return replace(job, **changes)


def curve(rows: list[dict[str, Any]]) -> list[tuple[int, float, float]]:
    return [(row["step"], row["loss"], row["grad_norm"]) for row in rows]
