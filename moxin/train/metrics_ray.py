"""The rows of a training run as metrics of Ray, which every node exports for Prometheus under the prefix `ray_`.

Names are stable; `cluster/grafana` shows them. Counters are exported with the suffix `_total`.
"""

from collections.abc import Mapping

from ray.util.metrics import Counter, Gauge, Histogram

from moxin.train.loop import Row

PREFIX = "moxin_train_"
TAGS = ("run", "phase", "rank")
GAUGES = {
    "step": "optimizer steps of the phase so far",
    "loss": "nats per target of the newest step",
    "lr": "learning rate",
    "grad_norm": "norm of the gradient before clipping",
    "seconds": "of the newest step",
    "data_seconds": "of the newest step that went by waiting for data",
    "checkpoint_seconds": "of the newest step that went by waiting for a checkpoint",
    "mfu": "model FLOPs utilization, from 0 to 1, causal and window counted (moxin.train.utilization)",
    "hfu": "the same with what recomputation makes again",
    "mfu_full": "model FLOPs utilization as llm-foundry counts it: every query sees all keys",
    "memory_bytes": "most memory that a worker held: of its GPU, or of its process",
    "dollars": "spent on this phase so far",
    "eta_seconds": "until the phase is done",
}
"""Keys of a row that are a metric of the same name; those that a row lacks are left as they are."""
RATES = {
    "tokens": "tokens per second of all workers together",
    "pairs": "preference pairs per second of all workers together",
}
SOURCE_LOSS = "source_loss"
COUNTERS = {
    "tokens": "tokens trained on since the process began",
    "pairs": "preference pairs trained on since the process began",
    "steps": "optimizer steps since the process began",
    "skipped": "steps that were not applied",
    "spike": "steps whose loss was a spike",
}
STEP_SECONDS = "step_seconds"
BOUNDARIES = [0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 180, 600]
"""Of the histogram of step times, in seconds. Ray passes on how many were in each, so its `_sum` is of their middles."""


def names() -> set[str]:
    """Every name as Prometheus sees it."""
    gauges = {*GAUGES, *(f"{unit}_per_second" for unit in RATES), SOURCE_LOSS}
    histogram = {f"{STEP_SECONDS}_{part}" for part in ("bucket", "count")}
    return {f"ray_{PREFIX}{name}" for name in (*gauges, *(f"{name}_total" for name in COUNTERS), *histogram)}


class RayMetrics:
    """A sink for a worker's rows. `done` is the run's count of `unit` before the first of them, when it is resumed.

    Ranks other than 0 may give rows with some of the keys: `step`, `seconds`, `data_seconds`, `memory_bytes`.
    """

    def __init__(self, run: str, phase: str, rank: int = 0, unit: str = "tokens", done: int = 0) -> None:
        assert unit in RATES, unit
        tags = {"run": run, "phase": phase, "rank": str(rank)}
        self.unit, self.done, self.tags = unit, done, tags
        self.gauges = {key: _gauge(key, text, tags) for key, text in GAUGES.items()}
        self.rate = _gauge(f"{unit}_per_second", RATES[unit], tags)
        self.source_loss = Gauge(PREFIX + SOURCE_LOSS, "nats per target, by source", (*TAGS, "source"))
        self.counters = {
            key: Counter(PREFIX + key, text, TAGS).set_default_tags(tags)
            for key, text in COUNTERS.items()
            if key not in RATES or key == unit
        }
        self.seconds = Histogram(
            PREFIX + STEP_SECONDS, "seconds of an optimizer step", BOUNDARIES, TAGS
        ).set_default_tags(tags)

    def __call__(self, row: Row) -> None:
        for key, gauge in self.gauges.items():
            if row.get(key) is not None:
                gauge.set(row[key])
        if (rate := row.get(f"{self.unit}_per_second")) is not None:
            self.rate.set(rate)
        for source, loss in (row.get("source_loss") or {}).items():
            self.source_loss.set(loss, {**self.tags, "source": source})
        if "seconds" in row:
            self.seconds.observe(row["seconds"])
        self._count("steps", 1)
        if self.unit in row:
            self._count(self.unit, row[self.unit] - self.done)
            self.done = row[self.unit]
        for key in ("skipped", "spike"):
            self._count(key, int(bool(row.get(key))))

    def _count(self, key: str, amount: float) -> None:
        if amount > 0:  # Ray refuses 0; after a roll-back the run's count is smaller than it was
            self.counters[key].inc(amount)

    def close(self) -> None:
        """Ray exports what was set last until the process ends."""


def _gauge(name: str, description: str, tags: Mapping[str, str]) -> Gauge:
    return Gauge(PREFIX + name, description, TAGS).set_default_tags(dict(tags))
