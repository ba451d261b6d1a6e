"""Groups of workers without Ray, in processes that stay: starting DeepSpeed takes seconds, a new group among running ones
none."""

import copy
import multiprocessing
import os
import socket
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from moxin.train.job import FitJob

PATIENCE_S = 240


class Ranks:
    def __init__(self) -> None:
        self.context = multiprocessing.get_context("spawn")
        self.running: list[tuple[Any, Connection]] = []

    def fit(
        self, world: int, job: FitJob, folder: Path | None = None, stop_after: int | None = None
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """`fit_local` with DeepSpeed on `world` workers: the metrics and the weights."""
        while len(self.running) < world:
            ours, theirs = self.context.Pipe()
            process = self.context.Process(target=_serve, args=(len(self.running), theirs), daemon=True)
            process.start()
            self.running.append((process, ours))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        pipes = [pipe for _, pipe in self.running[:world]]
        for pipe in pipes:
            pipe.send((world, port, job, folder, stop_after))
        answers = []
        for pipe in pipes:
            assert pipe.poll(PATIENCE_S), "a worker does not answer"
            answers.append(pipe.recv())
        if job.scaling.zero_stage == "3":
            self.close()  # it keeps something in the process that the next group stumbles over
        for rank, (failed, _) in enumerate(answers):
            if failed:
                raise RuntimeError(f"rank {rank}: {failed}")
        return answers[0][1]

    def close(self) -> None:
        for process, _ in self.running:
            process.kill()
            process.join()
        self.running = []


def _serve(rank: int, pipe: Connection) -> None:
    import torch

    torch.set_num_threads(1)
    while (asked := pipe.recv()) is not None:
        world, port, job, folder, stop_after = asked
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in place.items()})
        os.environ["MASTER_ADDR"] = "127.0.0.1"
        try:
            pipe.send(("", _fit(job, folder, stop_after)))
        except Exception:
            pipe.send((traceback.format_exc(), None))


def _fit(job: FitJob, folder: Path | None, stop_after: int | None) -> tuple[Any, Any]:
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed
    from deepspeed.utils import groups

    from moxin.train.engine_deepspeed import DeepSpeedEngine
    from moxin.train.local import fit_local

    fresh = {name: copy.copy(value) for name, value in vars(groups).items() if _is_state(value)}
    try:
        engine, rows = fit_local(job, folder, DeepSpeedEngine, stop_after)
        return rows, {name: weight.numpy() for name, weight in engine.weights().items()}
    finally:
        if deepspeed.comm.is_initialized():
            deepspeed.comm.destroy_process_group()
        vars(groups).update(
            fresh
        )  # DeepSpeed remembers the groups of a process, which it expects to have once


def _is_state(value: Any) -> bool:
    return value is None or isinstance(value, (dict, list, int, str))
