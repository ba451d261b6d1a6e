"""The metrics of `serve.metrics` through Ray, which exports them from every node: `ray_vllm_num_requests_running`, …"""

from collections.abc import Mapping

from ray.util import metrics

from serve.metrics import DEFINITIONS


class RayMetrics:
    """`serve.metrics.Observe`."""

    def __init__(self) -> None:
        self._metrics: dict[str, metrics.Gauge | metrics.Counter | metrics.Histogram] = {}
        for name, of in DEFINITIONS.items():
            tags = ("model_name", "engine", *(("finished_reason",) if name == "request_success" else ()))
            if of.kind == "histogram":
                made: metrics.Gauge | metrics.Counter | metrics.Histogram = metrics.Histogram(
                    f"vllm_{name}", of.told, boundaries=list(of.buckets), tag_keys=tags
                )
            else:
                kind = metrics.Gauge if of.kind == "gauge" else metrics.Counter
                made = kind(f"vllm_{name}", of.told, tag_keys=tags)
            self._metrics[name] = made

    def __call__(self, name: str, value: float, labels: Mapping[str, str]) -> None:
        metric, tags = self._metrics[name], dict(labels)
        if isinstance(metric, metrics.Gauge):
            metric.set(value, tags)
        elif isinstance(metric, metrics.Counter):
            metric.inc(value, tags)
        else:
            metric.observe(value, tags)
