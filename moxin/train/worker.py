"""What every worker of a training group does: take up the run where it was, train, save, leave the result behind."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from moxin import storage
from moxin.config import digest
from moxin.model import checkpoint as model_checkpoint
from moxin.train import checkpoint, progress
from moxin.train.build import build
from moxin.train.engine_deepspeed import DeepSpeedEngine
from moxin.train.job import FitJob
from moxin.train.loop import Rows, train
from moxin.train.metrics_ray import RayMetrics
from moxin.train.sinks import JsonLines, Sink, Sinks, TensorBoard

RUN = (".scratch", "ray")
"""Folder of Ray Train's run, with the checkpoints, in that of the stage."""
PROGRESS = (".scratch", "progress.json")


def work(config: dict[str, Any]) -> None:
    """What every worker of the group does."""
    import ray.train

    job, url = config["job"], config["url"]
    if not job.scaling.use_gpu:
        torch.set_num_threads(1)
    engine, rows = resume(job, url)

    def save(rows: Rows) -> None:
        part = part_folder(url, engine.rank)
        checkpoint.save(engine, job, rows, part)
        ray.train.report(
            {"step": len(rows)},
            checkpoint=ray.train.Checkpoint.from_directory(str(part)),
            checkpoint_dir_name=checkpoint.name_of(len(rows)),
            delete_local_checkpoint_after_upload=True,
        )

    batches = job.batches()
    if engine.rank == 0:
        report = Sinks(sinks_of(job, url, rows))
        try:
            train(engine, job, batches, rows, report=report, checkpoint=save)
        finally:
            report.close()
    else:
        train(engine, job, batches, rows, checkpoint=save)
    finish(engine, job, url, rows)


def sinks_of(job: FitJob, url: str, rows: Rows) -> list[Sink]:
    """Where rank 0's rows go, of a run that has made `rows` so far."""
    done = rows[-1][job.unit] if rows else 0
    run = storage.absolute(url).rsplit("/", 2)[-2]
    return [
        progress.Reporter(storage.join(url, *PROGRESS), job.unit),
        JsonLines(storage.join(url, "attempts")),
        TensorBoard(storage.join(url, "tensorboard"), first_step=len(rows) + 1),
        RayMetrics(run, job.name, unit=job.unit, done=done),
    ]


def resume(job: FitJob, url: str) -> tuple[DeepSpeedEngine, Rows]:
    """The engine as the newest checkpoint holds it, or else the state to carry over, with the metrics up to there.

    Ray's `get_checkpoint` may be older: a group that dies takes along what its controller had not heard of yet.
    """
    import ray.train
    import ray.train.collective

    own = storage.join(url, *RUN)
    context = ray.train.get_context()
    newest = checkpoint.newest(own)[0] if context.get_world_rank() == 0 else ""
    newest = ray.train.collective.broadcast_from_rank_zero(newest)
    start = storage.join(own, newest) if newest else storage.absolute(job.state) if job.state else ""
    if not start:
        return DeepSpeedEngine(build(job), job), []
    metadata = storage.read_json(storage.join(start, checkpoint.METADATA))
    converted = checkpoint.needs_conversion(metadata, job, context.get_world_size())
    engine = DeepSpeedEngine(build(job), job, universal=converted)
    with ray.train.Checkpoint(start).as_directory() as folder:
        engine.load(Path(folder))
        rows = storage.read_jsonl(storage.join(folder, checkpoint.METRICS)) if newest else []
    return engine, rows


def finish(engine: DeepSpeedEngine, job: FitJob, url: str, rows: Rows) -> None:
    """Writes what the run leaves behind; it may be repeated after a failure on the way."""
    weights = engine.weights()
    if engine.rank == 0:
        storage.remove(storage.join(url, "state"))  # the files of another number of workers have other names
        model_checkpoint.save(weights, job.model, storage.join(url, "model"))
        storage.write_jsonl(storage.join(url, checkpoint.METRICS), rows)
    if job.keep_state:
        distributed.barrier()
        part = part_folder(url, engine.rank)
        checkpoint.save(engine, job, rows, part)
        storage.upload(part, storage.join(url, "state"))


def part_folder(url: str, rank: int) -> Path:
    """Where a worker puts its part of a checkpoint before Ray copies it; on the same disk where the storage is local."""
    if storage.is_local(url):
        return storage.local_path(url) / ".scratch" / f"part-{rank}"
    return Path(tempfile.gettempdir()) / f"moxin-{digest(url)[:12]}-{rank}"
