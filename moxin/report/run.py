"""Writes the report of a run. It is no stage: it costs a second and always shows the run as it is now."""

from collections.abc import Mapping, Sequence
from typing import Any

from moxin import storage
from moxin.artifact import Artifact
from moxin.recipe import Recipe
from moxin.report.html import page
from moxin.report.results import collect


def write(
    run_url: str,
    recipe: Recipe,
    artifacts: Mapping[str, Artifact],
    answers: Sequence[Mapping[str, Any]],
    wall_seconds: float,
    peak_rss_bytes: int,
) -> str:
    """Writes `results.json` and `report.html` into the run folder and returns the URL of the page.

    `artifacts` may end anywhere on the road: what is not there is left out of both.
    """
    results = collect(artifacts, answers, wall_seconds, peak_rss_bytes, recipe)
    metrics = {
        name: storage.read_jsonl(artifact.file("metrics.jsonl"))
        for name, artifact in artifacts.items()
        if name.startswith("pretrain-") or name in ("sft", "dpo")
    }
    samples = {
        name.removeprefix("evaluate-"): storage.read_jsonl(artifact.file("samples.jsonl"))
        for name, artifact in artifacts.items()
        if name.startswith("evaluate-")
    }
    hashes = {name: artifact.manifest["files"] for name, artifact in artifacts.items()}
    storage.write_json(storage.join(run_url, "results.json"), results)
    url = storage.join(run_url, "report.html")
    storage.write_text(url, page(results, metrics, samples, hashes))
    return url
