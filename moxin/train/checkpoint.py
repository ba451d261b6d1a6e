"""Checkpoints of a run: what they hold, which of them are whole, and whether they belong to this job.

A checkpoint is a folder to which every worker adds its files: the engine's and `part-RANK.json` with their sizes; rank 0
also `checkpoint.json` and the metrics of all steps so far. The data's state is the number of those steps.
"""

import errno
import functools
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moxin import __version__, storage
from moxin.config import digest, to_jsonable
from moxin.train.engine import Engine
from moxin.train.job import FitJob
from moxin.train.loop import Rows

METADATA = "checkpoint.json"
METRICS = "metrics.jsonl"
PREFIX = "checkpoint_"
FULL_BYTES = 2**22
"""A disk with less room than this is full."""
ARTIFACT = re.compile(r"^.*/([^/]+-[0-9a-f]{12}(/.*)?)$")
SPREAD = ("micro_batch", "checkpoint_every")
"""Settings of batches that may be changed on the way: they decide no more than the order of sums."""


def name_of(step: int) -> str:
    """The folder of the checkpoint after `step` optimizer steps; names sort as steps do."""
    return f"{PREFIX}{step:010d}"


def step_of(name: str) -> int:
    return int(name.removeprefix(PREFIX))


def identity(job: FitJob) -> dict[str, Any]:
    """What decides the weights: everything in the job but how it is spread over workers and how often it is saved."""
    return {
        "name": job.name,
        "model": to_jsonable(job.model),
        "initial": _place(job.initial),
        "state": _place(job.state),
        "batches": _function(job.batches),
        "objective": _function(job.objective),
        "peak_lr": job.peak_lr,
        "schedule": to_jsonable(job.schedule),
        "betas": list(job.betas),
        "weight_decay": job.weight_decay,
        "grad_clip": job.grad_clip,
        "seed": job.seed,
        "precision": job.scaling.precision,
    }


def _place(value: Any) -> Any:
    """URLs without the folders above an artifact: a run may be moved, and an artifact carries its key in its name."""
    if isinstance(value, dict):
        return {key: _place(item) for key, item in value.items() if key not in SPREAD}
    if isinstance(value, list):
        return [_place(item) for item in value]
    return ARTIFACT.sub(r"\1", value) if isinstance(value, str) else value


def _function(function: Callable[..., Any]) -> dict[str, Any]:
    if isinstance(function, functools.partial):
        arguments = {"args": list(function.args), **function.keywords}
        return {**_function(function.func), **_place(to_jsonable(arguments))}
    return {"function": f"{function.__module__}.{function.__qualname__}"}


def save(engine: Engine, job: FitJob, rows: Rows, folder: Path) -> None:
    """Writes this worker's part of a checkpoint into a folder of its own, which is emptied before."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        engine.save(folder)
    except RuntimeError as error:
        if shutil.disk_usage(folder).free > FULL_BYTES:
            raise
        # PyTorch's writer says no more than that writing failed.
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error
    if engine.rank == 0:
        about = identity(job)
        metadata = {
            "digest": digest(about),
            "job": about,
            "step": len(rows),
            job.unit: rows[-1][job.unit] if rows else 0,
            "world": engine.world,
            "zero_stage": int(job.scaling.zero_stage),
            "moxin": __version__,
        }
        storage.write_jsonl(str(folder / METRICS), rows)
        storage.write_json(str(folder / METADATA), metadata)
    sizes = {str(p.relative_to(folder)): p.stat().st_size for p in folder.rglob("*") if p.is_file()}
    storage.write_json(str(folder / f"part-{engine.rank}.json"), sizes)


def is_whole(url: str) -> bool:
    """Whether every file of every worker is there in its full size."""
    fs, path = storage.filesystem(url)
    found = {
        name.removeprefix(path.rstrip("/") + "/"): info["size"]
        for name, info in fs.find(path, detail=True).items()
    }
    if METADATA not in found:
        return False
    try:
        world = storage.read_json(storage.join(url, METADATA))["world"]
        parts = [f"part-{rank}.json" for rank in range(world)]
        if not set(parts) <= set(found):
            return False
        listed = [storage.read_json(storage.join(url, part)) for part in parts]
    except json.JSONDecodeError:
        return False
    return all(found.get(name) == size for sizes in listed for name, size in sizes.items())


def newest(url: str) -> tuple[str, list[str]]:
    """The newest whole checkpoint below `url` ("" for none), and the others."""
    names = {name.split("/")[0] for name in storage.files_under(url)}
    checkpoints = sorted((name for name in names if name.startswith(PREFIX)), reverse=True)
    chosen = next((name for name in checkpoints if is_whole(storage.join(url, name))), "")
    return chosen, [name for name in checkpoints if name != chosen]


def check(url: str, job: FitJob, carried: bool = False) -> dict[str, Any]:
    """The metadata of the checkpoint at `url`. Raises `ValueError` where it is another job's, naming the differences.

    With `carried` it is the `state/` of an earlier job, which only has to hold the same model.
    """
    metadata = storage.read_json(storage.join(url, METADATA))
    there, here = metadata["job"], identity(job)
    if carried:
        there, here = ({name: one[name] for name in ("model", "precision")} for one in (there, here))
    if differences := _differences(there, here):
        raise ValueError(
            f"{url} is a checkpoint of another run: {'; '.join(differences)}. Use the settings that it was made with, or "
            "another folder with --run"
        )
    stages = {metadata["zero_stage"], int(job.scaling.zero_stage)}
    if len(stages) > 1 and stages != {1, 2}:
        raise ValueError(
            f"{url} was saved with scaling.zero_stage = {metadata['zero_stage']} and cannot be read with "
            f"{job.scaling.zero_stage}; set scaling.zero_stage={metadata['zero_stage']}"
        )
    return metadata


def needs_conversion(metadata: dict[str, Any], job: FitJob, world: int) -> bool:
    """Whether DeepSpeed could read the checkpoint only in its universal form."""
    return bool(metadata["world"] != world or metadata["zero_stage"] != int(job.scaling.zero_stage))


def _differences(there: Any, here: Any, name: str = "") -> list[str]:
    if isinstance(there, dict) and isinstance(here, dict):
        keys = [*there, *(key for key in here if key not in there)]
        return [
            found
            for key in keys
            for found in _differences(there.get(key), here.get(key), f"{name}.{key}" if name else key)
        ]
    return [] if there == here else [f"{name} was {there!r}, now it is {here!r}"]
