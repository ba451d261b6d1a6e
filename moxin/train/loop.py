"""The training loop of every objective.

The loss of a step is the sum over all workers and micro-batches divided by the count over all of them. The count is summed
before the first backward pass, so that gradients are exact however the batch is cut: no mean of means.

Nothing in a step waits for the device: whether it is to be applied is decided there (`moxin.train.guard` says from what loss
on it is not), and its metrics are read when the next one is on its way.
"""

import math
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import Tensor

from moxin.train.engine import Engine
from moxin.train.guard import LEFT_OUT, Guard
from moxin.train.job import Batches, FitJob, Micro
from moxin.train.prefetch import Prefetched
from moxin.train.schedule import learning_rate

Row = dict[str, Any]
Rows = list[Row]


@dataclass(frozen=True)
class Watcher:
    """What the surroundings of a run want to know of it, and may ask of it. All have to answer at once, on every worker."""

    measure: Callable[[Row], Row] = lambda row: {}
    """Given a row, what else there is to say in it."""
    report: Callable[[Row], None] = lambda row: None
    """Given the metrics of every step."""
    checkpoint: Callable[[Rows], None] = lambda rows: None
    """Called every `keeping.every` steps and where the run is stopped, with the metrics of all steps so far."""
    publish: Callable[[int], None] = lambda step: None
    """Called after every `keeping.publish_every` steps."""
    stop: Callable[[], bool] = lambda: False
    """Whether this worker is told to end; all end after the same step when one is."""
    at: Callable[[str, int], None] = lambda place, step: None
    """Told what is done next, and in which step (from 1)."""


@dataclass
class _Launched:
    """A step that is on its way: its numbers, which are read once it has ended."""

    step: int
    lr: float
    usual: tuple[float, float]
    numbers: Tensor
    """float64: stop, count, skipped, gradient norm, and the objective's sums."""
    data_seconds: float


def train(
    engine: Engine,
    job: FitJob,
    batches: Batches,
    rows: Rows,
    *,
    watcher: Watcher | None = None,
    left_out: Collection[int] = (),
    stop_after: int | None = None,
) -> Rows:
    """Makes the steps that `rows`, the metrics of the steps made so far, does not have yet, and returns all rows: fewer than
    `batches.n_steps` where the run was told to stop. Steps in `left_out` (from 0) are passed over with their batches.

    A row: `step` (from 1), `tokens` (or another `job.unit`; since the job's beginning), `loss` (nats; None where it is not
    finite), `lr`, `grad_norm` (before clipping), `seconds` (of this step), `data_seconds` (of these, how long it waited for
    its data), `checkpoint_seconds` (how long it had to wait for the last checkpoint before it began), `tokens_per_second`,
    `memory_bytes` (this worker's: peak of the GPU's, or resident), `workers`. With `job.parts` also `source_loss`. `spike`,
    `skipped`, `left_out` and `score` where the step was not a usual one. Raises `RollBackError` where the guard says so.
    """
    watcher = watcher or Watcher()
    loop = _Loop(engine, job, batches, rows, watcher)
    end = batches.n_steps if stop_after is None else min(stop_after, batches.n_steps)
    with Prefetched(batches, engine.rank, engine.world, pin=job.scaling.use_gpu) as data:
        for i in range(len(rows), end):
            if i in left_out:
                loop.finish()
                loop.leave_out(i)
            else:
                watcher.at("waits for its data", i + 1)
                launched = loop.launch(i, data.step(i), data.waited)
                loop.finish()
                loop.launched = launched
                if engine.device.type == "cpu":
                    loop.finish()
            every, publish = job.keeping.every, job.keeping.publish_every
            due = every and (i + 1) % every == 0
            if i + 1 < end and (due or loop.stopping):
                loop.checkpoint()
            if publish and (i + 1) % publish == 0 and i + 1 < batches.n_steps:
                loop.publish(i + 1)
            if loop.stopping:
                break
        loop.finish()
    return rows


class _Loop:
    def __init__(self, engine: Engine, job: FitJob, batches: Batches, rows: Rows, watcher: Watcher) -> None:
        self.engine, self.job, self.batches, self.rows, self.watcher = engine, job, batches, rows, watcher
        self.guard = Guard(job.guards)
        self.units = rows[-1][job.unit] if rows else 0
        self.launched: _Launched | None = None
        self.stopping = False
        self.waited = 0.0
        self.since = time.perf_counter()
        self.process = psutil.Process()

    def launch(self, i: int, micros: list[Micro], data_seconds: float) -> _Launched:
        """Step `i` on this rank's micro-batches."""
        engine, job = self.engine, self.job
        lr = learning_rate(job.schedule, job.peak_lr, i)
        self.watcher.at("meets the other workers", i + 1)
        mine = [float(self.watcher.stop()), float(sum(job.count(micro) for micro in micros))]
        head = engine.sum(torch.tensor(mine, dtype=torch.float64))
        scale = 1 / head[1].clamp(min=1)
        self.watcher.at("computes", i + 1)
        last = len(micros) - 1
        done = [engine.micro_step(job.objective, micro, scale, k == last) for k, micro in enumerate(micros)]
        sums = engine.sum(torch.stack(done).sum(0))
        usual = self.guard.usual(self.rows, i)
        loss = sums[0] / sums[1]
        bad = ~torch.isfinite(loss) | (loss >= self.guard.limit(usual))
        self.watcher.at("updates the weights", i + 1)
        norm, skipped = engine.step(lr, bad)
        numbers = torch.cat([head, torch.stack([skipped.to(head), norm.to(head)]), sums])
        return _Launched(i, lr, usual, numbers, data_seconds)

    def finish(self) -> None:
        """Reads the numbers of the step that was launched, if there is one, and adds its row."""
        if self.launched is None:
            return
        at, self.launched = self.launched, None
        stop, count, skipped, norm, total, counted, *parts = at.numbers.tolist()
        self.stopping |= stop > 0
        job, i = self.job, at.step
        if not count:
            raise ValueError(f"{job.name}, step {i + 1}: no position of the batch is in the loss")
        if counted != count:
            raise ValueError(
                f"{job.name}: the objective counted {counted:.0f} where FitJob.count said {count:.0f}; they must agree"
            )
        now = time.perf_counter()
        seconds, self.since = now - self.since, now
        size = self.batches.size(i)
        self.units += size
        loss = total / count
        row: Row = {
            "step": i + 1,
            job.unit: self.units,
            "loss": loss if math.isfinite(loss) else None,
            "lr": at.lr,
            "grad_norm": norm if math.isfinite(norm) and norm >= 0 else None,
            "seconds": round(seconds, 6),
            "data_seconds": round(at.data_seconds, 6),
            "checkpoint_seconds": round(self.waited, 6),
            f"{job.unit}_per_second": round(size / seconds, 3),
            "memory_bytes": self._memory(),
            "workers": self.engine.world,
        }
        self.waited = 0.0
        if job.parts:
            pairs = zip(job.parts, parts[::2], parts[1::2], strict=True)
            row["source_loss"] = {name: part / n for name, part, n in pairs if n and math.isfinite(part)}
        score = self.guard.score(at.usual, loss)
        row |= self.guard.told(score, bool(skipped))
        row |= self.watcher.measure(row)
        self.rows.append(row)
        self.watcher.report(row)
        self.guard.check(self.rows)

    def leave_out(self, i: int) -> None:
        self.units += self.batches.size(i)
        row = {"step": i + 1, self.job.unit: self.units, "loss": None, "grad_norm": None, LEFT_OUT: True}
        self.rows.append({**row, "lr": learning_rate(self.job.schedule, self.job.peak_lr, i), "seconds": 0.0})

    def checkpoint(self) -> None:
        self.finish()
        self.watcher.at("saves a checkpoint", len(self.rows))
        self.watcher.checkpoint(self.rows)
        self._rest()

    def publish(self, step: int) -> None:
        self.finish()
        self.watcher.at("publishes the weights", step)
        self.watcher.publish(step)
        self._rest()

    def _rest(self) -> None:
        """What has passed since the last step is no part of the next one."""
        now = time.perf_counter()
        self.waited += now - self.since
        self.since = now

    def _memory(self) -> int:
        if self.engine.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.engine.device))
        return int(self.process.memory_info().rss)
