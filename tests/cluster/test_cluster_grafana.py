"""The dashboard: what its generator makes, readable to Grafana's models and PromQL's parser, naming only what there is."""

import json
import re
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import promql_parser
import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as models

from moxin.train import metrics_ray

FOLDER = Path(__file__).resolve().parents[2] / "cluster" / "grafana"
DASHBOARD = json.loads((FOLDER / "training.json").read_text())
QUERIES = [
    pytest.param(target["expr"], id=f"{panel['title']}-{target['refId']}")
    for panel in DASHBOARD["panels"]
    for target in panel["targets"]
]
LABELS = {*metrics_ray.TAGS, "source", "le"}


def selectors(node):
    """Every metric of a parsed query: its name and the labels it is chosen by."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node.name, {matcher.name for matcher in node.matchers.matchers}
    for part in ("expr", "lhs", "rhs", "param", "vector_selector"):
        if (inner := getattr(node, part, None)) is not None and not isinstance(inner, (str, float)):
            yield from selectors(inner)
    for inner in getattr(node, "args", None) or ():
        yield from selectors(inner)


def test_the_file_is_what_its_generator_makes():
    made = subprocess.run(
        [sys.executable, str(FOLDER / "training.py")], capture_output=True, text=True, check=True
    )
    assert made.stdout == (FOLDER / "training.json").read_text()


@pytest.mark.parametrize("query", QUERIES)
def test_every_query_parses_and_names_metrics_and_labels_that_there_are(query):
    parsed = promql_parser.parse(query.replace("$__rate_interval", "5m"))
    found = list(selectors(parsed))
    assert found
    for name, labels in found:
        assert name in metrics_ray.names()
        assert labels <= LABELS


def test_every_metric_is_shown():
    shown = {name for query in QUERIES for name in re.findall(r"ray_moxin_train_\w+", query.values[0])}
    assert (
        metrics_ray.names() - shown == {"ray_moxin_train_step_seconds_count"}  # the last bucket has it
    )


def test_legends_use_labels_of_the_metrics():
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= LABELS


def test_grafanas_own_models_keep_every_key():
    """What its models do not know they drop: a misspelt key would be gone."""
    read = models.Dashboard.from_json(json.loads(json.dumps(DASHBOARD)))
    assert kept(DASHBOARD, json.loads(JSONEncoder(sort_keys=True).encode(read))) == []


def kept(ours, theirs, where="dashboard"):
    if isinstance(ours, dict):
        return [
            problem
            for key, value in ours.items()
            for problem in (
                kept(value, theirs[key], f"{where}.{key}")
                if isinstance(theirs, dict) and key in theirs
                else [f"{where}.{key}"]
            )
        ]
    if isinstance(ours, list):
        pairs = zip(ours, theirs, strict=True)
        return [found for n, (a, b) in enumerate(pairs) for found in kept(a, b, f"{where}[{n}]")]
    return [] if ours == theirs else [f"{where}: {ours!r} became {theirs!r}"]


def test_panels_lie_beside_each_other():
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    for a, b in combinations(places, 2):
        apart = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        assert apart or a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(places)
