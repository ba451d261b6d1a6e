"""What every worker of a training group does: take up the run where it was, train, save, leave the result behind."""

import shutil
import tempfile
import uuid
from collections.abc import Callable
from json import JSONDecodeError
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from moxin import hardware, storage
from moxin.config import digest
from moxin.model import checkpoint as model_checkpoint
from moxin.train import checkpoint, fitting, progress, rollback
from moxin.train.beats import Beat, Heart
from moxin.train.build import build
from moxin.train.engine_deepspeed import DeepSpeedEngine
from moxin.train.guard import RollBackError
from moxin.train.job import FitJob, HopelessError, first_lines
from moxin.train.loop import Row, Rows, Watcher, train
from moxin.train.metrics_ray import RayMetrics
from moxin.train.saving import Saver
from moxin.train.sinks import JsonLines, Sink, Sinks, TensorBoard
from moxin.train.utilization import Utilization

RUN = (".scratch", "ray")
"""Folder of Ray Train's run in that of the stage."""
CHECKPOINTS = (".scratch", "checkpoints")
PROGRESS = (".scratch", "progress.json")
NOTICES = (".scratch", "notices")
"""A file for everything that the driver should tell, by rank 0."""
DONE, STOPPED, ROLLED_BACK, HOPELESS = "done", "stopped", "rolled back", "hopeless"


def work(config: dict[str, Any]) -> str:
    """What every worker of the group does; returns whether the job is done or has to be started again.

    Ray starts a group again whatever a worker raised. What would be raised again is left on the board, and the next group
    ends at once.
    """
    import ray
    import ray.train
    import ray.train.collective

    job, url, board = config["job"], config["url"], config["board"]
    if ray.get(board.given_up.remote()) is not None:
        return HOPELESS
    context = ray.train.get_context()
    rank = context.get_world_rank()
    group = ray.train.collective.broadcast_from_rank_zero(uuid.uuid4().hex)

    def tell(beat: Beat) -> tuple[bool, bool]:
        try:
            return tuple(ray.get(board.beat.remote(group, beat)))  # type: ignore[return-value]
        except ray.exceptions.RayError as error:
            raise ConnectionError(str(error)) from error

    heart = Heart(tell, rank, ray.get_runtime_context().get_node_id())
    if not job.scaling.use_gpu:
        torch.set_num_threads(job.scaling.cpu_threads)
    try:
        return run(job, url, heart, context.get_local_rank(), context.get_local_world_size())
    except (ValueError, HopelessError) as error:
        if not isinstance(
            error, JSONDecodeError | UnicodeDecodeError
        ):  # half a file may be whole the next time
            of_values = isinstance(error, ValueError)
            ray.get(board.give_up.remote(of_values, f"worker {rank}: {first_lines(error)}"))
        raise
    finally:
        heart.close()


def run(job: FitJob, url: str, heart: Heart, local_rank: int, local_world: int) -> str:
    engine = DeepSpeedEngine(build(job, *placing(job, local_rank)), job)
    scratch = storage.join(url, ".scratch")
    auto = fitting.asks(job)
    if auto:
        job = fitting.settled(job, engine, scratch, local_world)
        if engine.rank == 0:
            notify(url, f"{job.name}: {fitting.size_of(job):,} tokens at once on every worker")
    rows = resume(engine, job, url, local_rank, local_world)
    saved = storage.join(url, *CHECKPOINTS)
    saver = Saver(engine, job, saved, part_folder(url, engine.rank))
    report = Sinks(sinks_of(job, url, rows) if engine.rank == 0 else [])

    def stop() -> bool:
        return heart.stopping or is_preempted()

    watcher = Watcher(
        measurer(job, engine.world, rows),
        report,
        saver.save,
        lambda step: publish(engine, job, url, saver, step),
        stop,
        heart.at,
    )
    batches = job.batches()
    try:
        left_out = rollback.left_out(saved)
        train(engine, job, batches, rows, watcher=watcher, left_out=left_out)
    except RollBackError as bad:
        saver.wait()
        distributed.barrier()  # no worker writes any more
        if engine.rank == 0:
            notify(url, f"{job.name}: {rollback.go_back(saved, job, bad)}")
        distributed.barrier()
        return ROLLED_BACK
    except Exception as error:
        if not fitting.is_out_of_memory(error):
            raise
        told = fitting.explained(job, fitting.size_of(job), engine, local_world)
        if not auto:
            notify(url, told)
            raise HopelessError(told) from error
        fitting.note_failure(job, scratch)
        raise RuntimeError(told) from error
    finally:
        saver.close()
        report.close()
    saver.wait()
    if len(rows) < batches.n_steps:
        distributed.barrier()
        return STOPPED
    heart.at("writes the result", len(rows))
    finish(engine, job, url, rows)
    return DONE


def placing(job: FitJob, local_rank: int) -> tuple[str | None, torch.device]:
    """The type and the place in which DeepSpeed wants a worker's weights."""
    device = torch.device("cuda", local_rank) if job.scaling.use_gpu else torch.device("cpu")
    in_bf16 = job.scaling.precision == "bf16" and job.scaling.zero_stage != "0"
    return ("bfloat16" if in_bf16 else None), device


def measurer(job: FitJob, world: int, rows: Rows) -> Callable[[Row], Row]:
    """What a row says of utilization and money, of a run that has made `rows` so far; nothing where peak and price of the
    accelerator are not known."""
    scaling = job.scaling
    known = scaling.accelerator
    peak = hardware.peak_flops(known, scaling.precision) if known else 0.0
    utilization = Utilization(job.model, world, peak, scaling.recompute)
    price = scaling.dollars_per_hour or (hardware.list_price(known) if known else 0.0)
    spent = rows[-1].get("dollars", 0.0) if rows else 0.0

    def measure(row: Row) -> Row:
        nonlocal spent
        more: Row = {}
        if job.unit == "tokens" and job.context:
            tokens = row["tokens_per_second"] * row["seconds"]
            more |= utilization(round(tokens), row["seconds"], job.context)
        if price:
            spent += price * world * (row["seconds"] + row["checkpoint_seconds"]) / 3600
            more["dollars"] = round(spent, 4)
        return more

    return measure


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


def is_preempted() -> bool:
    """Whether a node of the group is about to be taken away.

    `ray.train.get_preemption_info` tells the same, but meets the other workers for it: 10 ms in every step. Here the loop
    tells them, along with what it sums anyway.
    """
    from ray.train.v2._internal.execution.context import get_train_context

    return get_train_context().preemption_context.preemption_info is not None


def notify(url: str, message: str) -> None:
    storage.write_text(storage.join(url, *NOTICES, f"{uuid.uuid4().hex}.txt"), message)


def resume(engine: DeepSpeedEngine, job: FitJob, url: str, local_rank: int, local_world: int) -> Rows:
    """Loads the newest checkpoint that is whole and unharmed, or else the state to carry over; returns the metrics so far.

    Where one is harmed, the one before is taken.
    """
    saved = storage.join(url, *CHECKPOINTS)
    while name := _agreed(checkpoint.newest(saved)[0] if engine.rank == 0 else ""):
        folder = fetch(storage.join(saved, name), local_rank)
        harmed = checkpoint.harmed(folder, local_rank, local_world)
        (n_harmed,) = engine.sum(torch.tensor([len(harmed)])).tolist()
        if not n_harmed:
            metadata = checkpoint.check(str(folder), job)
            checkpoint.load(engine, job, folder, metadata)
            rows = storage.read_jsonl(str(folder / checkpoint.METRICS))
            _forget(folder, saved, local_rank)
            return rows
        if harmed:
            files = ", ".join(harmed)
            notify(
                url,
                f"{job.name}: {name} is harmed ({files} is not what was written); going back to the one before",
            )
        distributed.barrier()
        _forget(folder, saved, local_rank)
        if engine.rank == 0:
            storage.remove(storage.join(saved, name))
    if job.state:
        folder = fetch(storage.absolute(job.state), local_rank)
        checkpoint.load(engine, job, folder, checkpoint.check(str(folder), job, carried=True))
        _forget(folder, job.state, local_rank)
    return []


def _agreed(name: str) -> str:
    import ray.train.collective

    return str(ray.train.collective.broadcast_from_rank_zero(name))


def fetch(url: str, local_rank: int) -> Path:
    """A local folder with what is at `url`, the same for all workers of a node; a remote one is downloaded once."""
    if storage.is_local(url):
        return storage.local_path(url)
    folder = Path(tempfile.gettempdir()) / f"moxin-{digest(url)[:12]}"
    if local_rank == 0:
        storage.download(url, folder)
    distributed.barrier()
    return folder


def _forget(folder: Path, url: str, local_rank: int) -> None:
    """Deletes a download, when nobody reads it any more."""
    distributed.barrier()
    if local_rank == 0 and not storage.is_local(url):
        shutil.rmtree(folder)


def publish(engine: DeepSpeedEngine, job: FitJob, url: str, saver: Saver, step: int) -> None:
    """Leaves the weights as they are now as a model folder of the artifact; writing is the saver's thread's."""
    weights = engine.weights()
    if engine.rank == 0:
        target = storage.join(url, "steps", f"{step:07d}")
        saver.later(lambda: model_checkpoint.save(weights, job.model, target))


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
        shutil.rmtree(part, ignore_errors=True)
        checkpoint.save(engine, job, rows, part)
        storage.upload(part, storage.join(url, "state"))


def part_folder(url: str, rank: int) -> Path:
    """Where a worker puts files before they are copied; on the same disk where the storage is local."""
    if storage.is_local(url):
        return storage.local_path(url) / ".scratch" / f"part-{rank}"
    return Path(tempfile.gettempdir()) / f"moxin-{digest(url)[:12]}-{rank}"
