"""`results.json`: the numbers of a run, read from its artifacts. What a run did not reach is left out."""

import os
import platform
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from moxin import plan, storage
from moxin.artifact import Artifact
from moxin.config import to_jsonable
from moxin.recipe import Recipe

PACKAGES = (
    "ray",
    "torch",
    "deepspeed",
    "transformers",
    "tokenizers",
    "lm-eval",
    "pyarrow",
    "datasketch",
    "numpy",
)


def collect(
    run: Mapping[str, Artifact],
    answers: Sequence[Mapping[str, Any]],
    wall_seconds: float,
    peak_rss_bytes: int,
    recipe: Recipe,
) -> dict[str, Any]:
    """The results of a run as JSON types.

    `run` holds the artifacts by stage name, `answers` what the served model said (`question`, `answer`, …). `wall_seconds`
    and `peak_rss_bytes` are those of the process that asks; artifacts that were there before carry their own seconds.
    """
    now = time.time()
    results: dict[str, Any] = {
        "recipe": to_jsonable(recipe),
        "parameters": plan.parameters(recipe.model),
    }
    if "curate" in run:
        funnel = storage.read_json(run["curate"].file("funnel.json"))
        results["curation"] = {**run["curate"].counts, "funnel": funnel}
    if "tokenize" in run:
        results["tokens"] = dict(run["tokenize"].counts)
    phases = [phase.name for phase in recipe.pretrain.phases]
    if trained := [run[f"pretrain-{name}"] for name in phases if f"pretrain-{name}" in run]:
        results["pretrain"] = {"phases": [dict(artifact.counts) for artifact in trained]}
    results |= {name: dict(run[name].counts) for name in ("sft", "dpo") if name in run}
    if evaluation := _evaluation(run, phases):
        results["evaluation"] = evaluation
    if "release" in run:
        results["export"] = storage.read_json(run["release"].file("verification.json"))
    if answers:
        results["serve"] = {"answers": [dict(answer) for answer in answers]}
    return results | {
        "wall_seconds": round(wall_seconds, 3),
        "peak_rss_bytes": peak_rss_bytes,
        "stages": [_stage(artifact, now - wall_seconds) for artifact in run.values()],
        "versions": versions(),
        "hardware": hardware(),
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now)),
    }


def _evaluation(run: Mapping[str, Artifact], phases: Sequence[str]) -> dict[str, Any]:
    """The scores per phase, and those of the finished `pretrained` model, `sft` and `dpo` under their names."""
    scores = {
        name.removeprefix("evaluate-"): storage.read_json(artifact.file("results.json"))
        for name, artifact in run.items()
        if name.startswith("evaluate-")
    }
    if not scores:
        return {}
    evaluation: dict[str, Any] = {
        "phases": [{"name": name, **scores[name]} for name in phases if name in scores]
    }
    if phases[-1] in scores:
        evaluation["pretrained"] = scores[phases[-1]]
    return evaluation | {name: scores[name] for name in ("sft", "dpo") if name in scores}


def _stage(artifact: Artifact, started: float) -> dict[str, Any]:
    manifest = artifact.manifest
    finished = datetime.fromisoformat(manifest["finished"]).timestamp()
    return {
        "name": artifact.name,
        "key": artifact.key,
        "seconds": manifest["seconds"],
        "finished": manifest["finished"],
        # `finished` is cut to whole seconds, so a second is given.
        "reused": finished + 1 < started,
        "files": len(manifest["files"]),
        "bytes": sum(file["bytes"] for file in manifest["files"].values()),
    }


def versions() -> dict[str, str]:
    """Of Python and the packages that decide results; a package that is not installed is left out."""
    found = {"python": platform.python_version()}
    for name in ("moxin", *PACKAGES):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """Of the machine that writes the report: on a cluster that is the head, not the workers."""
    return {
        "machine": platform.machine(),
        "system": platform.platform(terse=True),
        "cpu": _cpu_name(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
    }


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
