"""How many tokens go through the model at once: the most that fit, and what to say where they do not."""

import functools
import math
from dataclasses import replace

import psutil
import torch
from torch import distributed

from moxin import storage
from moxin.plan import memory
from moxin.train.engine import Engine
from moxin.train.job import FitJob

AUTO = "auto"
FAILED = "micro-batch.json"
"""Notes the size that did not fit, for the group that starts next."""
SHRINK = 0.75
CPU_SHARE = 0.8
"""Of the memory that is free on a machine without a GPU: nothing tells a process that it asks for too much, it is killed."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory was asked for that is not there, of a GPU or of the machine."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def asks(job: FitJob) -> bool:
    """Whether the job leaves the size to us."""
    return isinstance(job.batches, functools.partial) and job.batches.keywords.get("micro_batch") == AUTO


def size_of(job: FitJob) -> int:
    """Tokens at once."""
    told = job.batches.keywords if isinstance(job.batches, functools.partial) else {}
    return int(told.get("micro_batch", job.micro_batch)) or job.context


def settled(job: FitJob, engine: Engine, scratch: str, local_world: int) -> FitJob:
    """The job with the most tokens at once that fit beside the engine, on every worker the same. Collective.

    The planner's count of what a token needs goes into what is free; a size that has failed before is not tried again.
    Raises `ValueError` where not even one row fits.
    """
    assert isinstance(job.batches, functools.partial)
    most = job.context * math.ceil(_with(job, job.context).batches().size(0) / job.context / engine.world)
    fitting = memory.largest_micro_batch(
        job.model,
        job.scaling,
        job.optimizer.kind,
        job.context,
        engine.world,
        free_bytes(engine.device, local_world),
        resident=True,
        most=most,
    )
    note = storage.join(scratch, FAILED)
    if storage.exists(note):
        fitting = min(fitting, int(SHRINK * storage.read_json(note)["failed"]) // job.context * job.context)
    found = torch.tensor([fitting], device=engine.device)
    if engine.world > 1:
        distributed.all_reduce(found, distributed.ReduceOp.MIN)
    if not int(found):
        raise ValueError(explained(job, job.context, engine, local_world))
    return _with(job, int(found))


def _with(job: FitJob, micro_batch: int) -> FitJob:
    batches = job.batches
    assert isinstance(batches, functools.partial)
    keywords = {**batches.keywords, "micro_batch": micro_batch}
    return replace(job, batches=functools.partial(batches.func, *batches.args, **keywords))


def note_failure(job: FitJob, scratch: str) -> None:
    storage.write_json(storage.join(scratch, FAILED), {"failed": size_of(job)})


def free_bytes(device: torch.device, local_world: int) -> int:
    """What a worker may still take: of its GPU, what is free or cached by PyTorch; else its share of the machine's."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + cached
    return int(CPU_SHARE * psutil.virtual_memory().available / local_world)


def explained(job: FitJob, micro_batch: int, engine: Engine, local_world: int) -> str:
    """Where a worker's memory goes, by ZeRO stage, and what else to try, with the options to set."""
    world, kind = engine.world, job.optimizer.kind
    if engine.device.type == "cuda":
        total = int(torch.cuda.get_device_properties(engine.device).total_memory)
    else:
        total = psutil.virtual_memory().total // local_world
    usable = memory.usable_bytes(job.scaling.accelerator) if job.scaling.accelerator else total
    section = "pretrain" if job.name.startswith("pretrain") else job.name
    given = (job.model, job.scaling, kind, micro_batch, job.context, world)
    lines = [
        f"{job.name}: out of memory with {micro_batch:,} tokens at once in rows of {job.context:,}, "
        f"of {_gib(usable)} a worker"
    ]
    for name, need in memory.table(*given):
        kinds = ", ".join(
            f"{part} {_gib(getattr(need, part))}" for part in memory.KINDS if getattr(need, part)
        )
        mark = "  <- now" if name == f"ZeRO-{job.scaling.zero_stage}" else ""
        lines.append(f"  {name}: {_gib(need.total)} ({kinds}){mark}")
    ways = memory.next_settings(*given, usable, section=section)
    if ways:
        lines.append("  what would fit, the fastest first:")
        lines += [f"    {way}" for way in ways]
    else:
        lines.append("  nothing fits up to 64 times the workers: a smaller model, or a shorter context")
    return "\n".join(lines)


def _gib(n_bytes: float) -> str:
    return f"{n_bytes / 2**30:,.1f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:,.0f} MiB"
