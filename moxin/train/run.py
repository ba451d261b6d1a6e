"""Training on Ray: `fit` runs any `FitJob` with Ray Train and DeepSpeed, `stage` is a phase of pretraining.

A run may end at any moment, of a worker or of the driver, and goes on from its last checkpoint when it is started again.
"""

import functools
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from moxin import console, session, storage
from moxin.artifact import Artifact, Builder, Stage
from moxin.config import to_jsonable
from moxin.doctor.need import Need
from moxin.doctor.run import preflight
from moxin.recipe import Recipe
from moxin.tokens.loader import Curriculum, check
from moxin.train import checkpoint, pretrain, progress, worker
from moxin.train.job import FitJob
from moxin.train.loop import Rows
from moxin.train.objective import next_token

ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how soon an end or a death is seen
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",  # a cluster may have to grow first; a loaded laptop takes 75 s
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths mean the same in the workers
}


def stage(
    recipe: Recipe, index: int, tokens: Artifact, previous: Artifact | None, packs: Artifact | None = None
) -> Stage:
    """Pretraining phase `index` from `previous`, the phase before it, whose optimizer state is carried over."""
    phase, settings = recipe.pretrain.phases[index], recipe.pretrain

    def make(builder: Builder) -> None:
        limits = {source.name: source.max_epochs for source in recipe.sources}
        check(tokens.url, Curriculum.of(recipe), limits)
        batches = functools.partial(
            pretrain.PhaseBatches,
            tokens.url,
            Curriculum.of(recipe, index),
            settings.global_batch,
            micro_batch=settings.micro_batch,
            packs=packs.url if packs else "",
        )
        batches().data.check_limits(limits)
        job = FitJob(
            name=f"pretrain-{phase.name}",
            model=recipe.model,
            initial="",
            state=previous.file("state") if previous else "",
            batches=batches,
            objective=next_token,
            peak_lr=settings.learning_rate,
            schedule=pretrain.schedule(settings, index),
            betas=(settings.beta1, settings.beta2),
            weight_decay=settings.weight_decay,
            grad_clip=settings.grad_clip,
            checkpoint_every=settings.checkpoint_every,
            seed=settings.seed,
            scaling=recipe.scaling,
            keep_state=index + 1 < len(settings.phases),
        )
        fit(job, builder)
        builder.counts |= {"name": phase.name, "context": phase.context, "mixture": batches().mixture()}

    given = {"tokens": tokens, "previous": previous, "packs": packs}
    inputs = {role: artifact for role, artifact in given.items() if artifact}
    return Stage(f"pretrain-{phase.name}", to_jsonable(pretrain.decisive(recipe, index)), inputs, make)


def fit(job: FitJob, builder: Builder) -> None:
    """Trains and leaves `model/`, `metrics.jsonl` and, with `job.keep_state`, `state/`; sets the builder's counts.

    Raises `ValueError` for data, settings or a checkpoint that do not fit the job, and `RuntimeError` with the workers' own
    words where training failed more often than `scaling.max_failures`.
    """
    url = storage.absolute(builder.url)
    batches = job.batches()  # what is wrong with the data is said here, before a worker starts
    if batches.n_steps < 1:
        raise ValueError(f"{job.name}: the data makes no step; give it more data or a smaller global batch")
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if not os.environ.get(
        "RAY_ADDRESS"
    ):  # nobody reclaims the machine that one sits at: a process less to start
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    session.start(max(os.cpu_count() or 1, 4, job.scaling.n_workers + 1))
    preflight(url, Need.of(job.model, job.scaling))
    name = prepare(url, job)
    console.say(
        f"  {job.name}: {batches.n_steps:,} steps of {batches.size(0):,} {job.unit}, {job.scaling.n_workers} workers, "
        f"ZeRO-{job.scaling.zero_stage}, {job.scaling.precision}"
        + (f", going on after step {checkpoint.step_of(name):,}" if name else "")
    )
    with progress.shown(storage.join(url, *worker.PROGRESS), job, batches), interruptible():
        run_trainer(job, url)
    rows = storage.read_jsonl(storage.join(url, checkpoint.METRICS))
    builder.counts |= {"name": job.name, **summary(rows, job.unit)}
    console.say(
        f"  {job.name}: loss {builder.counts['loss_first']:.3f} → {builder.counts['loss_last']:.3f}, "
        f"{builder.counts[f'{job.unit}_per_second']:,.0f} {job.unit}/s"
    )


def summary(rows: Rows, unit: str) -> dict[str, Any]:
    """Counts of a finished run. The first and the last loss are means over 5 % of the steps, but at least five."""
    n = min(len(rows), max(5, len(rows) // 20))
    return {
        "steps": len(rows),
        unit: rows[-1][unit],
        "loss_first": sum(row["loss"] for row in rows[:n]) / n,
        "loss_last": sum(row["loss"] for row in rows[-n:]) / n,
        f"{unit}_per_second": round(rows[-1][unit] / sum(row["seconds"] for row in rows), 1),
    }


def prepare(url: str, job: FitJob) -> str:
    """Removes all checkpoints but the newest whole one, whose name it returns ("" for none).

    Raises `ValueError` where that, or else the state to carry over, does not fit the job. Ray's own list of checkpoints is
    removed too: it is not written atomically, and a killed driver or a full disk can leave one that Ray cannot read. What is
    there in full size decides.
    """
    folder = storage.join(url, *worker.RUN)
    name, others = checkpoint.newest(folder)
    if name:
        checkpoint.check(storage.join(folder, name), job)
    elif job.state:
        checkpoint.check(job.state, job, carried=True)
    for other in others:
        if other > name:
            console.warn(f"{job.name}: {other} is not complete; going on from {name or 'the beginning'}")
        storage.remove(storage.join(folder, other))
    storage.remove(storage.join(folder, "checkpoint_manager_snapshot.json"))
    return name


def run_trainer(job: FitJob, url: str) -> None:
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

    class Trainer(TorchTrainer):
        """Without the actor that tidies up after a lost controller where Ray is this process's own and ends with it.

        That actor asks the cluster that the last `ray start` of the machine left behind, which need not be this one; then it
        takes the controller for dead, or the end of every run waits 12 s for it.
        """

        def _create_default_callbacks(self) -> list[Any]:
            callbacks: list[Any] = super()._create_default_callbacks()  # type: ignore[misc]
            if os.environ.get("RAY_ADDRESS"):
                return callbacks
            return [
                callback for callback in callbacks if not isinstance(callback, PlacementGroupCleanerCallback)
            ]

    trainer = Trainer(
        worker.work,
        train_loop_config={"job": job, "url": url},
        scaling_config=ScalingConfig(num_workers=job.scaling.n_workers, use_gpu=job.scaling.use_gpu),
        run_config=RunConfig(
            name=worker.RUN[-1],
            storage_path=storage.join(url, ".scratch"),
            failure_config=FailureConfig(max_failures=job.scaling.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        cause, told = cause_of(error)
        message = f"{job.name}: {told}. Logs: {session.log_folder()}/train"
        raise (ValueError if isinstance(cause, ValueError) else RuntimeError)(message) from cause


def cause_of(error: Exception) -> tuple[Exception, str]:
    """The exception behind a failed run, as far as one can tell, and what the workers said.

    Workers that only lost their connection to another come last; tracebacks are left to the log files.
    """
    from ray.train import ControllerError, WorkerGroupError

    if isinstance(error, ControllerError):
        return error.controller_failure, first_lines(error.controller_failure)
    if not isinstance(error, WorkerGroupError) or not error.worker_failures:
        return error, first_lines(error)
    causes = error.worker_failures
    lost = {rank: "gloo" in str(cause) or "NCCL" in str(cause) for rank, cause in causes.items()}
    ranks = sorted(causes, key=lambda rank: (lost[rank], rank))
    return causes[ranks[0]], "; ".join(f"worker {rank}: {first_lines(causes[rank])}" for rank in ranks[:2])


def first_lines(error: Exception) -> str:
    text = " ".join(line.strip() for line in str(error).splitlines()[:2])
    return f"{type(error).__name__}: {text}"


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C and SIGTERM end the training group, and then this process hears of it as of any interrupt.

    Ray Train answers SIGINT by ending the group and exiting with code 0, as if training were done.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGTERM, lambda number, frame: signal.raise_signal(signal.SIGINT))
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
