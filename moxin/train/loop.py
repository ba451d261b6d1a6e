"""The training loop of every objective.

The loss of a step is the sum over all workers and micro-batches divided by the count over all of them. The count is summed
before the first backward pass, so that gradients are exact however the batch is cut: no mean of means.
"""

import math
import time
from collections.abc import Callable
from typing import Any

import torch

from moxin.train.engine import Engine
from moxin.train.job import Batches, FitJob, Micro
from moxin.train.prefetch import Prefetched
from moxin.train.schedule import learning_rate

Row = dict[str, Any]
Rows = list[Row]


def train(
    engine: Engine,
    job: FitJob,
    batches: Batches,
    rows: Rows,
    *,
    report: Callable[[Row], None] = lambda row: None,
    checkpoint: Callable[[Rows], None] = lambda rows: None,
    stop_after: int | None = None,
) -> Rows:
    """Makes the steps that `rows`, the metrics of the steps made so far, does not have yet, and returns all rows.

    A row: `step` (from 1), `tokens` (or another `job.unit`; since the job's beginning), `loss` (nats), `lr`, `grad_norm`
    (before clipping), `seconds` (of this step), `data_seconds` (of these, how
    long it waited for its data), `tokens_per_second`. `checkpoint` is called every `job.checkpoint_every`
    steps; the end of the run needs none. Raises `FloatingPointError` where the loss is not finite.
    """
    units = rows[-1][job.unit] if rows else 0
    with Prefetched(batches, engine.rank, engine.world, pin=job.scaling.use_gpu) as data:
        for i in range(len(rows), batches.n_steps if stop_after is None else stop_after):
            started = time.perf_counter()
            lr = learning_rate(job.schedule, job.peak_lr, i)
            loss, grad_norm = optimizer_step(engine, job, data.step(i), i, lr)
            seconds = time.perf_counter() - started
            size = batches.size(i)
            units += size
            row = {
                "step": i + 1,
                job.unit: units,
                "loss": loss,
                "lr": lr,
                "grad_norm": grad_norm,
                "seconds": round(seconds, 6),
                "data_seconds": round(data.waited, 6),
                f"{job.unit}_per_second": round(size / seconds, 3),
            }
            rows.append(row)
            report(row)
            if job.checkpoint_every and (i + 1) % job.checkpoint_every == 0 and i + 1 < batches.n_steps:
                checkpoint(rows)
    return rows


def optimizer_step(
    engine: Engine, job: FitJob, micros: list[Micro], i: int, lr: float
) -> tuple[float, float]:
    """Step `i` on this rank's micro-batches: the loss before the update, and the gradient's norm before clipping."""
    (count,) = engine.sum(torch.tensor([sum(job.count(micro) for micro in micros)]))
    if not count:
        raise ValueError(f"{job.name}, step {i + 1}: no position of the batch is in the loss")
    done = [
        engine.micro_step(job.objective, micro, 1 / count, last=position == len(micros) - 1)
        for position, micro in enumerate(micros)
    ]
    total, counted = engine.sum(torch.stack(done).sum(0))
    if counted != count:
        raise ValueError(
            f"{job.name}: the objective counted {counted:.0f} where FitJob.count said {count:.0f}; they must agree"
        )
    loss = total / count
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"{job.name}, step {i + 1}: the loss is {loss}; a lower learning rate than {lr:.3g} or a longer warm-up helps"
        )
    return loss, engine.step(lr)
