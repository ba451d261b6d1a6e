"""Checkpoints of a run: what they hold, which of them are whole and unharmed, and whether they belong to this job.

A checkpoint is a folder to which every worker adds its files: its shard of the state (`moxin.train.shards`) and, when that
is written, `part-RANK.json` with sizes and SHA-256. Rank 0 also adds `checkpoint.json`, the metrics of all steps so far and
a probe: a micro-batch with the loss that the model had on it. The data's state is the number of those steps.
"""

import functools
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moxin import __version__, storage
from moxin.config import digest, to_jsonable
from moxin.train import shards
from moxin.train.engine import Engine
from moxin.train.job import FitJob, HopelessError, Micro
from moxin.train.loop import Rows

METADATA = "checkpoint.json"
METRICS = "metrics.jsonl"
PROBE = "probe.npz"
PREFIX = "checkpoint_"
PART = "part-{}.json"
SUM_ERROR = 1e-9
"""Of the sums of weights and optimizer state, relative to the sums of their magnitudes: the order of sums in float64."""
PROBE_ERROR = 1e-4
"""Of the loss on the probe, relative: kernels may choose other orders of sums on other hardware."""
ARTIFACT = re.compile(r"^.*/([^/]+-[0-9a-f]{12}(/.*)?)$")
SPREAD = ("micro_batch",)
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
        "optimizer": to_jsonable(job.optimizer),
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


def describe(
    engine: Engine, job: FitJob, rows: Rows, probe: Micro
) -> tuple[dict[str, Any], list[shards.Flat]]:
    """The metadata of a checkpoint of the engine as it is now, and its flat tensors. Collective."""
    flats = engine.flats()
    names = state_names(engine, flats)
    sums = engine.sum(shards.checksum(flats, names)).tolist()
    seen = engine.measure(job.objective, probe).tolist()
    about = identity(job)
    metadata = {
        "digest": digest(about),
        "job": about,
        "step": len(rows),
        job.unit: rows[-1][job.unit] if rows else 0,
        "world": engine.world,
        "zero_stage": int(job.scaling.zero_stage),
        "updates": max((flat.updates for flat in flats), default=0),
        "sums": {name: sums[2 * i : 2 * i + 2] for i, name in enumerate(names)},
        "probe_loss": seen[0] / seen[1],
        "moxin": __version__,
    }
    return metadata, flats


def state_names(engine: Engine, flats: Sequence[shards.Flat]) -> list[str]:
    """What the workers' flat tensors are called, the same list on each: one of them may have no piece of a kind."""
    known = (shards.WEIGHT, "exp_avg", "exp_avg_sq", "momentum_buffer")
    mine = {name for flat in flats for name in flat.tensors}
    assert mine <= set(known), mine
    there = engine.sum(torch.tensor([name in mine for name in known], dtype=torch.float64)).tolist()
    return [name for name, n in zip(known, there, strict=True) if n]


def write(
    folder: Path,
    rank: int,
    copies: Sequence[dict[str, torch.Tensor]],
    flats: Sequence[shards.Flat],
    metadata: Mapping[str, Any],
    rows: Rows,
    probe: Micro,
) -> None:
    """Writes this worker's part of a checkpoint into a local folder; nothing of the engine is touched any more."""
    folder.mkdir(parents=True, exist_ok=True)
    # Of an earlier attempt: with it, files that are only half written anew would count as whole.
    (folder / PART.format(rank)).unlink(missing_ok=True)
    kept = [(copy, flat) for copy, flat in zip(copies, flats, strict=True) if flat.counted]
    shards.write([copy for copy, _ in kept], [flat for _, flat in kept], folder, rank)
    own = [f"shard-{rank}.safetensors", f"shard-{rank}.json"]
    if rank == 0:
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **probe)
        storage.write_bytes(str(folder / PROBE), buffer.getvalue())
        storage.write_jsonl(str(folder / METRICS), rows)
        storage.write_json(str(folder / METADATA), metadata)
        own += [PROBE, METRICS, METADATA]
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": storage.sha256(str(folder / name))}
        for name in own
    }
    storage.write_json(str(folder / PART.format(rank)), files)


def save(engine: Engine, job: FitJob, rows: Rows, folder: Path) -> None:
    """Writes this worker's part of a checkpoint, at once. Collective."""
    probe = probe_of(job)
    metadata, flats = describe(engine, job, rows, probe)
    write(folder, engine.rank, shards.Snapshot().take(flats), flats, metadata, rows, probe)


def probe_of(job: FitJob) -> Micro:
    """The micro-batch that a job's checkpoints are probed with: the first of its first step."""
    return job.batches().step(0, 0, 1)[0]


def load(engine: Engine, job: FitJob, folder: Path, metadata: Mapping[str, Any]) -> None:
    """Takes over the state in a local folder, whatever the number of workers that left it, and makes sure that it is the
    state that they had. Collective. Raises `ValueError` where the state is another model's, `HopelessError` where sums or
    probe say that something else was loaded than was saved."""
    flats = engine.flats()
    with shards.Reader(folder, metadata["world"]) as reader:
        for flat in flats:
            for name, tensor in flat.tensors.items():
                reader.fill(name, tensor, flat.pieces)
    engine.reload(metadata["updates"])
    flats = engine.flats()
    names = state_names(engine, flats)
    sums = engine.sum(shards.checksum(flats, names)).tolist()
    for i, name in enumerate(names):
        there, magnitude = metadata["sums"].get(name, (0.0, 0.0))
        if abs(sums[2 * i] - there) > SUM_ERROR * max(magnitude, 1e-30):
            raise HopelessError(
                f"{job.name}: {name} sums to {sums[2 * i]!r} after loading {folder}, and was {there!r} when it was saved; "
                "this is not the state of the run, nothing is trained on it"
            )
    with np.load(folder / PROBE, allow_pickle=False) as arrays:
        probe = {name: arrays[name] for name in arrays.files}
    if metadata["job"]["objective"] != identity(job)["objective"]:
        return  # carried over to another objective, whose loss is another one
    seen = engine.measure(job.objective, probe).tolist()
    loss, there = seen[0] / seen[1], metadata["probe_loss"]
    if not abs(loss - there) <= PROBE_ERROR * abs(there):
        raise HopelessError(
            f"{job.name}: the loss on the probe is {loss:.6f} after loading {folder}, and was {there:.6f} when it was "
            "saved; this is not the model of the run, nothing is trained on it"
        )


def listed(url: str) -> list[str]:
    """All checkpoints below `url`, whole or not, from the newest on."""
    names = {name.split("/")[0] for name in storage.files_under(url)}
    return sorted((name for name in names if name.startswith(PREFIX)), reverse=True)


def is_whole(url: str) -> bool:
    """Whether every file of every worker is there in its full size."""
    found = storage.sizes_under(url)
    try:
        files = files_of(url, found)
    except json.JSONDecodeError:
        return False
    return bool(files) and all(found.get(name) == told["bytes"] for name, told in files.items())


def files_of(url: str, found: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """Every file of a checkpoint with size and hash, as its workers said; empty where one of them has not."""
    if METADATA not in found:
        return {}
    world = storage.read_json(storage.join(url, METADATA))["world"]
    parts = [PART.format(rank) for rank in range(world)]
    if not set(parts) <= set(found):
        return {}
    files: dict[str, dict[str, Any]] = {}
    for part in parts:
        files |= storage.read_json(storage.join(url, part))
    return files


def newest(url: str) -> tuple[str, list[str]]:
    """The newest whole checkpoint below `url` ("" for none), and the others."""
    names = listed(url)
    chosen = next((name for name in names if is_whole(storage.join(url, name))), "")
    return chosen, [name for name in names if name != chosen]


def harmed(folder: Path, share: int = 0, of: int = 1) -> list[str]:
    """Files of a checkpoint in a local folder whose content is not what was written; every `of`-th is looked at."""
    files = sorted(files_of(str(folder), storage.sizes_under(str(folder))).items())
    looked_at = files[share::of]
    fits = storage.in_threads(
        lambda file: storage.sha256(str(folder / file[0])) == file[1]["sha256"], looked_at
    )
    return [name for (name, _), fit in zip(looked_at, fits, strict=True) if not fit]


def to_remove(names: Sequence[str], whole: str, last: int, also_every: int) -> list[str]:
    """Which of the checkpoints may go once `whole` is complete: those before it but the newest `last` (itself counted) and
    those at multiples of `also_every`; none that is newer, which may be in the making."""
    older = sorted((name for name in names if name < whole), reverse=True)
    return [name for name in older[last - 1 :] if not (also_every and step_of(name) % also_every == 0)]


def check(url: str, job: FitJob, carried: bool = False) -> dict[str, Any]:
    """The metadata of the checkpoint at `url`. Raises `ValueError` where it is another job's, naming the differences.

    With `carried` it is the `state/` of an earlier job, which only has to hold the same model under the same optimizer.
    """
    metadata: dict[str, Any] = storage.read_json(storage.join(url, METADATA))
    there, here = metadata["job"], identity(job)
    if carried:
        there, here = (
            {"model": one["model"], "precision": one["precision"], "optimizer.kind": one["optimizer"]["kind"]}
            for one in (there, here)
        )
    if differences := _differences(there, here):
        raise ValueError(
            f"{url} is a checkpoint of another run: {'; '.join(differences)}. Use the settings that it was made with, or "
            "another folder with --run"
        )
    return metadata


def _differences(there: Any, here: Any, name: str = "") -> list[str]:
    if isinstance(there, dict) and isinstance(here, dict):
        keys = [*there, *(key for key in here if key not in there)]
        return [
            found
            for key in keys
            for found in _differences(there.get(key), here.get(key), f"{name}.{key}" if name else key)
        ]
    return [] if there == here else [f"{name} was {there!r}, now it is {here!r}"]
