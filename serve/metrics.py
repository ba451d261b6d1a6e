"""What a service says of itself, by the names of vLLM's metrics (docs.vllm.ai, "Production Metrics"), so that its dashboards
work here: `vllm:` at /metrics, and `vllm_` through Ray, which makes it `ray_vllm_`.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import Metric as CollectedMetric
from prometheus_client.registry import Collector

from moxin.infer.request import Stats

PREFIX = "vllm:"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160,
           640)  # fmt: skip
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)

Kind = Literal["gauge", "counter", "histogram"]


@dataclass(frozen=True)
class Definition:
    kind: Kind
    told: str
    buckets: tuple[float, ...] = ()


DEFINITIONS: dict[str, Definition] = {
    "num_requests_running": Definition("gauge", "Answers in work."),
    "num_requests_waiting": Definition("gauge", "Answers that wait to be worked on."),
    "kv_cache_usage_perc": Definition("gauge", "Pages of the KV cache that are held, 0 to 1."),
    "num_free_pages": Definition("gauge", "Pages of the KV cache that can be taken."),
    "prefix_cache_queries": Definition("counter", "Prompt tokens looked for among remembered pages."),
    "prefix_cache_hits": Definition("counter", "Prompt tokens found there."),
    "num_preemptions": Definition("counter", "Answers that had to give back their pages for a while."),
    "prompt_tokens": Definition("counter", "Prompt tokens read."),
    "generation_tokens": Definition("counter", "Tokens made."),
    "requests_cancelled": Definition("counter", "Requests that were dropped: their clients had left."),
    "admission_rejections": Definition("counter", "Requests refused with 429."),
    "spec_decode_num_draft_tokens": Definition("counter", "Tokens guessed ahead."),
    "spec_decode_num_accepted_tokens": Definition("counter", "Guesses that were right."),
    "request_success": Definition("counter", "Answers that ended, by the reason."),
    "time_to_first_token_seconds": Definition("histogram", "From arrival to the first token.", SECONDS),
    "inter_token_latency_seconds": Definition("histogram", "Between two tokens of an answer.", SECONDS),
    "e2e_request_latency_seconds": Definition("histogram", "From arrival to the last token.", SECONDS),
    "request_prompt_tokens": Definition("histogram", "Tokens of a prompt.", TOKENS),
    "request_generation_tokens": Definition("histogram", "Tokens of an answer.", TOKENS),
}
GAUGES = tuple(name for name, of in DEFINITIONS.items() if of.kind == "gauge" and name != "num_free_pages")
COUNTED_BY_ENGINE = ("prefix_cache_queries", "prefix_cache_hits", "num_preemptions", "prompt_tokens", "generation_tokens",
                     "requests_cancelled", "spec_decode_num_draft_tokens", "spec_decode_num_accepted_tokens")  # fmt: skip


@dataclass(frozen=True)
class Family:
    """One metric with its samples, as it travels from a replica to where /metrics is asked."""

    name: str
    kind: Kind
    told: str
    samples: tuple[tuple[str, tuple[tuple[str, str], ...], float], ...]


Observe = Callable[[str, float, Mapping[str, str]], None]
"""Is told of every change: a metric's name, what a gauge is, a counter grows by or a histogram sees, and further labels."""


class Metrics:
    """The metrics of one engine. `observe` takes them elsewhere too."""

    def __init__(self, model: str, engine: str = "0", observe: Observe | None = None) -> None:
        self.labels = {"model_name": model, "engine": engine}
        self.observe = observe
        self._registry = CollectorRegistry(auto_describe=False)
        self._known: dict[str, int] = {}
        """What the engine's counters were when they were last read."""
        self._metrics: dict[str, Counter | Gauge | Histogram] = {}
        for name, of in DEFINITIONS.items():
            labels = [*self.labels, *(["finished_reason"] if name == "request_success" else [])]
            if of.kind == "histogram":
                self._metrics[name] = Histogram(
                    PREFIX + name, of.told, labels, registry=self._registry, buckets=of.buckets
                )
            else:
                made = Gauge if of.kind == "gauge" else Counter
                self._metrics[name] = made(PREFIX + name, of.told, labels, registry=self._registry)
            if len(labels) == len(self.labels):
                self._metrics[name].labels(**self.labels)  # there from the beginning, as 0

    def gauge(self, stats: Stats) -> None:
        """Takes over what the engine counts itself."""
        for name in GAUGES:
            self._tell(name, getattr(stats, name))
        self._tell("num_free_pages", sum(stats.num_free_pages))
        for name in COUNTED_BY_ENGINE:
            now = getattr(stats, name)
            if grown := now - self._known.get(name, 0):
                self._tell(name, grown)
                self._known[name] = now

    def refused(self) -> None:
        self._tell("admission_rejections", 1)

    def begin(self, arrived: float, prompts: Sequence[int], n_answers: int) -> "Timing":
        """The clock of a job that arrived at a time of `time.monotonic`, with the lengths of its prompts."""
        for n_tokens in prompts:
            self._tell("request_prompt_tokens", n_tokens)
        return Timing(self._tell, arrived, n_answers)

    def families(self) -> list[Family]:
        return [
            Family(
                metric.name,
                DEFINITIONS[metric.name.removeprefix(PREFIX)].kind,
                metric.documentation,
                tuple(
                    (sample.name, tuple(sample.labels.items()), sample.value)
                    for sample in metric.samples
                    if not sample.name.endswith("_created")
                ),
            )
            for metric in self._registry.collect()
        ]

    def _tell(self, name: str, value: float, **labels: str) -> None:
        metric = self._metrics[name].labels(**self.labels, **labels)
        if isinstance(metric, Gauge):
            metric.set(value)
        elif isinstance(metric, Counter):
            metric.inc(value)
        else:
            metric.observe(value)
        if self.observe is not None:
            self.observe(name, value, self.labels | labels)


@dataclass
class Timing:
    """The clock of one job."""

    tell: Callable[..., None]
    arrived: float
    n_answers: int
    last: dict[int, float] = field(default_factory=dict)
    n_tokens: dict[int, int] = field(default_factory=dict)

    def came(self, index: int, n_tokens: int, finished: str | None) -> None:
        """Tokens of an answer have come, together: the time since the last ones is shared by them."""
        now = time.monotonic()
        n_new = n_tokens
        if n_new and index not in self.last:
            self.tell("time_to_first_token_seconds", now - self.arrived)
            n_new -= 1
        for _ in range(n_new):
            self.tell("inter_token_latency_seconds", (now - self.last.get(index, now)) / n_new)
        if n_tokens:
            self.last[index] = now
            self.n_tokens[index] = self.n_tokens.get(index, 0) + n_tokens
        if finished:
            self.tell("request_generation_tokens", self.n_tokens.get(index, 0))
            self.tell("e2e_request_latency_seconds", now - self.arrived)
            self.tell("request_success", 1, finished_reason=finished)


class _Collected(Collector):
    def __init__(self, metrics: Iterable[CollectedMetric]) -> None:
        self.metrics = list(metrics)

    def collect(self) -> Iterable[CollectedMetric]:
        return self.metrics


def exposition(families: Iterable[Family]) -> bytes:
    """Prometheus' text format; the samples of all engines of a metric stand together, as it demands."""
    merged: dict[str, CollectedMetric] = {}
    for family in families:
        metric = merged.setdefault(family.name, CollectedMetric(family.name, family.told, family.kind))
        for name, labels, value in family.samples:
            metric.add_sample(name, dict(labels), value)
    registry = CollectorRegistry()
    registry.register(_Collected(merged.values()))
    return generate_latest(registry)
