"""The metrics of a run as Prometheus would scrape them from a node of Ray."""

import time

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from moxin.train import metrics_ray
from moxin.train.metrics_ray import RayMetrics

PATIENCE_S = 60.0


def scraped(address, wanted):
    """Values by name and tags, when all `wanted` names are there: Ray gathers every few seconds."""
    until = time.monotonic() + PATIENCE_S
    while True:
        text = httpx.get(address, trust_env=False, timeout=10).text
        samples = [
            sample
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name.startswith("ray_moxin_train_") and sample.labels.get("run") == "night"
        ]
        if wanted <= {sample.name for sample in samples}:
            return samples
        assert time.monotonic() < until, sorted(wanted - {sample.name for sample in samples})
        time.sleep(0.5)


@pytest.mark.slow
def test_prometheus_finds_every_metric_with_its_tags(ray_session):
    import ray

    sink = RayMetrics("night", "phase2", rank=3, done=1000)
    row = dict.fromkeys(metrics_ray.GAUGES, 0.5) | {
        "tokens_per_second": 2e6,
        "seconds": 3.0,
        "skipped": False,
    }
    for step in range(1, 5):
        sources = {"web": 2.5, "code": 1.25}
        sink({**row, "step": step, "tokens": 1000 + 64 * step, "spike": step == 2, "source_loss": sources})
    sink({"step": 5})  # as another rank may say less
    pairs = RayMetrics("night", "dpo", unit="pairs")
    pairs({"step": 1, "pairs": 16, "pairs_per_second": 4.0, "seconds": 4.0, "skipped": True})
    [node] = [node for node in ray.nodes() if node["Alive"]]
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    samples = scraped(address, metrics_ray.names())

    def value(name, **labels):
        labels = {"phase": "phase2", "rank": "3", **labels}
        [found] = [
            sample.value
            for sample in samples
            if sample.name == f"ray_moxin_train_{name}" and labels.items() <= sample.labels.items()
        ]
        return found

    assert value("loss") == 0.5
    assert value("step") == 5
    assert value("tokens_per_second") == 2e6
    assert value("tokens_total") == 4 * 64
    assert value("steps_total") == 5
    assert value("spike_total") == 1
    assert value("source_loss", source="web") == 2.5
    assert value("step_seconds_count") == 4
    assert value("step_seconds_bucket", le="5.0") == 4
    assert value("step_seconds_bucket", le="2.5") == 0
    assert value("pairs_per_second", phase="dpo", rank="0") == 4.0
    assert value("skipped_total", phase="dpo", rank="0") == 1
