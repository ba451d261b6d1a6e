"""Makes the Grafana dashboard of training runs: `python cluster/grafana/training.py > cluster/grafana/training.json`.

Grafana imports the JSON (Dashboards > New > Import) and asks for the Prometheus that scrapes Ray's nodes.
"""

import json
from typing import Any

TAGS = 'run=~"$run", phase=~"$phase"'
FIRST = 'run=~"$run", phase=~"$phase", rank="0"'
"""Rank 0 tells what is of the whole run; every rank may tell of its own memory and waits."""
COLUMNS, HEIGHT = 24, 8
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


def metric(name: str, tags: str = FIRST) -> str:
    return f"ray_moxin_train_{name}{{{tags}}}"


def panel(
    title: str,
    unit: str,
    *queries: tuple[str, str],
    kind: str = "timeseries",
    width: int = 8,
    height: int = HEIGHT,
    log: bool = False,
    note: str = "",
) -> dict[str, Any]:
    """One panel; a query is an expression and its legend. `unit` is Grafana's name of it."""
    scale = {"type": "log", "log": 10} if log else {"type": "linear"}
    custom = (
        {"custom": {"lineWidth": 1, "fillOpacity": 0, "scaleDistribution": scale}}
        if kind == "timeseries"
        else {}
    )
    return {
        "type": kind,
        "title": title,
        "description": note,
        "datasource": DATASOURCE,
        "gridPos": {"x": 0, "y": 0, "w": width, "h": height},
        "fieldConfig": {"defaults": {"unit": unit, **custom}, "overrides": []},
        "targets": [
            {
                "datasource": DATASOURCE,
                "refId": "ABCDEFGH"[number],
                "expr": expression,
                "legendFormat": legend,
            }
            for number, (expression, legend) in enumerate(queries)
        ],
    }


def share(part: str) -> str:
    """Of the time of the last minutes, from gauges of the newest step: their averages over the window."""
    window = "[$__rate_interval]"
    return f"avg_over_time({metric(part, TAGS)}{window}) / avg_over_time({metric('seconds', TAGS)}{window})"


def quantile(q: float) -> str:
    buckets = metric("step_seconds_bucket")
    return f"histogram_quantile({q}, sum by (le, run, phase) (rate({buckets}[$__rate_interval])))"


RUN = "{{run}} {{phase}}"
PANELS = [
    panel("Step", "none", (metric("step"), RUN), kind="stat", width=4, height=4),
    panel("Loss", "none", (metric("loss"), RUN), kind="stat", width=4, height=4),
    panel("Tokens/s", "short", (metric("tokens_per_second"), RUN), kind="stat", width=4, height=4),
    panel("MFU", "percentunit", (metric("mfu"), RUN), kind="stat", width=4, height=4),
    panel("Spent", "currencyUSD", (metric("dollars"), RUN), kind="stat", width=4, height=4),
    panel("Time left", "s", (metric("eta_seconds"), RUN), kind="stat", width=4, height=4),
    panel("Loss", "none", (metric("loss"), RUN), width=12, note="Nats per target, of single steps."),
    panel("Loss by source", "none", (metric("source_loss"), "{{source}} {{phase}}"), width=12),
    panel("Norm of the gradient", "none", (metric("grad_norm"), RUN), log=True, note="Before clipping."),
    panel("Learning rate", "sci", (metric("lr"), RUN)),
    panel(
        "Spikes and skipped steps",
        "none",
        (f"increase({metric('spike_total')}[$__rate_interval])", "spikes {{phase}}"),
        (f"increase({metric('skipped_total')}[$__rate_interval])", "skipped {{phase}}"),
    ),
    panel(
        "Throughput",
        "short",
        (metric("tokens_per_second"), "tokens/s {{phase}}"),
        (metric("pairs_per_second"), "pairs/s {{phase}}"),
    ),
    panel(
        "Utilization",
        "percentunit",
        (metric("mfu"), "MFU {{phase}}"),
        (metric("hfu"), "HFU {{phase}}"),
        (metric("mfu_full"), "MFU, all keys counted {{phase}}"),
        note="moxin/train/utilization.py states the conventions. HFU counts what recomputation makes again.",
    ),
    panel("Seconds of a step", "s", (quantile(0.5), "median {{phase}}"), (quantile(0.99), "99 % {{phase}}")),
    panel(
        "Share of waiting",
        "percentunit",
        (share("data_seconds"), "data, rank {{rank}}"),
        (share("checkpoint_seconds"), "checkpoint, rank {{rank}}"),
    ),
    panel(
        "Memory",
        "bytes",
        (metric("memory_bytes", TAGS), "rank {{rank}}"),
        note="The most that a worker held.",
    ),
    panel(
        "Since the process began",
        "short",
        (metric("tokens_total"), "tokens {{phase}}"),
        (metric("pairs_total"), "pairs {{phase}}"),
        (metric("steps_total"), "steps {{phase}}"),
    ),
]


def placed(panels: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The panels from left to right and from top to bottom, numbered."""
    x = y = tallest = 0
    for number, one in enumerate(panels, 1):
        place = one["gridPos"]
        if x + place["w"] > COLUMNS:
            x, y, tallest = 0, y + tallest, 0
        place |= {"x": x, "y": y}
        x, tallest = x + place["w"], max(tallest, place["h"])
        one["id"] = number
    return panels


def variable(name: str) -> dict[str, Any]:
    query = f"label_values(ray_moxin_train_step, {name})"
    return {
        "type": "query",
        "name": name,
        "label": name,
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": "StandardVariableQuery"},
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "sort": 2,
        "current": {"text": "All", "value": "$__all"},
    }


def dashboard() -> dict[str, Any]:
    source = {"type": "datasource", "name": "datasource", "label": "Prometheus", "query": "prometheus"}
    return {
        "title": "moxin: training",
        "uid": "moxin-training",
        "tags": ["moxin", "ray"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": [source, variable("run"), variable("phase")]},
        "annotations": {"list": []},
        "panels": placed(PANELS),
    }


if __name__ == "__main__":
    print(json.dumps(dashboard(), indent=2))
