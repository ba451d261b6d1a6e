"""Training on Ray: `fit` runs any `FitJob` with Ray Train and DeepSpeed, `stage` is a phase of pretraining.

A run may end at any moment, of a worker or of the driver, and goes on from its last checkpoint when it is started again.
"""

import functools
import os
import signal
import threading
from collections import Counter
from typing import Any, cast

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from moxin import console, hardware, session, storage
from moxin.artifact import Artifact, Builder, Stage
from moxin.config import to_jsonable
from moxin.doctor.need import Need
from moxin.doctor.run import preflight
from moxin.recipe import Recipe
from moxin.tokens.loader import Curriculum, check
from moxin.train import beats, checkpoint, pretrain, progress, rollback, worker
from moxin.train.ending import Ending
from moxin.train.guard import LEFT_OUT, SKIPPED, SPIKE
from moxin.train.job import FitJob, Keeping, first_lines
from moxin.train.loop import Rows
from moxin.train.objective import next_token

ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how soon an end or a death is seen
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",  # a spot machine has 30 s to 2 min left
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",  # a cluster may have to grow first; a loaded laptop takes 75 s
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths mean the same in the workers
}
ELASTIC_START_S = 60.0
"""How long an elastic group waits for the workers that it counted on. Right after a node has died Ray still counts it; when
the wait is over it counts again."""
RESIZE_S = 60.0
"""Seconds between two looks whether an elastic group could have more workers."""
WATCH_S = 1.0
STACKS_S = 5.0
"""How long workers that hang have to send their stacks."""


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
            initial_global_batch=settings.initial_global_batch,
            batch_warmup_tokens=settings.batch_warmup_tokens,
        )
        data = batches().data
        data.check_limits(limits)
        carried = previous is not None and phase.optimizer_state == "carry"
        job = FitJob(
            name=f"pretrain-{phase.name}",
            model=recipe.model,
            initial="" if carried else previous.file("model") if previous else settings.initial,
            state=previous.file("state") if previous and carried else "",
            batches=batches,
            objective=functools.partial(next_token, z_loss=settings.z_loss, n_sources=len(data.names)),
            peak_lr=phase.learning_rate or settings.learning_rate,
            schedule=pretrain.schedule(settings, index),
            optimizer=pretrain.optimizer(settings),
            keeping=Keeping(
                settings.checkpoint_every, settings.keep_last, settings.keep_every, settings.publish_every
            ),
            seed=settings.seed,
            scaling=recipe.scaling,
            parts=data.names,
            context=phase.context,
            guards=settings.guards,
            keep_state=index + 1 < len(settings.phases)
            and settings.phases[index + 1].optimizer_state == "carry",
        )
        fit(job, builder)
        builder.counts |= {"name": phase.name, "context": phase.context, "mixture": batches().mixture()}

    given = {"tokens": tokens, "previous": previous, "packs": packs}
    inputs = {role: artifact for role, artifact in given.items() if artifact}
    return Stage(f"pretrain-{phase.name}", to_jsonable(pretrain.decisive(recipe, index)), inputs, make)


def fit(job: FitJob, builder: Builder) -> None:
    """Trains and leaves `model/`, `metrics.jsonl`, `steps/` and, with `job.keep_state`, `state/`; sets the builder's counts.

    Raises `ValueError` for data, settings or a checkpoint that do not fit the job, and `RuntimeError` with the workers' own
    words where training failed more often than `scaling.max_failures`, or would fail again however often it is started.
    """
    url = storage.absolute(builder.url)
    batches = job.batches()  # what is wrong with the data is said here, before a worker starts
    if batches.n_steps < 1:
        raise ValueError(f"{job.name}: the data makes no step; give it more data or a smaller global batch")
    elastic = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(ELASTIC_START_S)} if is_elastic(job) else {}
    for name, value in {**ENVIRONMENT, **elastic}.items():
        os.environ.setdefault(name, value)
    if not os.environ.get(
        "RAY_ADDRESS"
    ):  # nobody reclaims the machine that one sits at: a process less to start
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    session.start(max(os.cpu_count() or 1, 4, job.scaling.n_workers * job.scaling.cpu_threads + 1))
    preflight(url, Need.of(job.model, job.scaling, optimizer=job.optimizer.kind, keep_last=job.keeping.last))
    name = prepare(url, job)
    console.say(
        f"  {job.name}: {batches.n_steps:,} steps of {batches.size(batches.n_steps - 1):,} {job.unit}, "
        f"{_workers(job)} workers, ZeRO-{job.scaling.zero_stage}, {job.scaling.precision}"
        + (f", going on after step {checkpoint.step_of(name):,}" if name else "")
    )
    with progress.shown(storage.join(url, *worker.PROGRESS), job, batches):
        while (ended := run_trainer(job, url)) != worker.DONE:
            if ended == worker.STOPPED:
                console.warn(
                    f"{job.name}: a machine is taken away; going on with the others from a checkpoint"
                )
    rows = storage.read_jsonl(storage.join(url, checkpoint.METRICS))
    builder.counts |= {"name": job.name, **summary(rows, job.unit)}
    if went_back := rollback.recorded(storage.join(url, *worker.CHECKPOINTS)):
        builder.counts["rollbacks"] = went_back
    console.say(
        f"  {job.name}: loss {builder.counts['loss_first']:.3f} → {builder.counts['loss_last']:.3f}, "
        f"{builder.counts[f'{job.unit}_per_second']:,.0f} {job.unit}/s"
    )


def is_elastic(job: FitJob) -> bool:
    return 0 < job.scaling.min_workers < job.scaling.n_workers


def _workers(job: FitJob) -> str:
    scaling = job.scaling
    return f"{scaling.min_workers} to {scaling.n_workers}" if is_elastic(job) else str(scaling.n_workers)


def summary(rows: Rows, unit: str) -> dict[str, Any]:
    """Counts of a finished run. The first and the last loss are means over 5 % of the steps, but at least five."""
    losses = [row["loss"] for row in rows if row["loss"] is not None]
    n = min(len(losses), max(5, len(losses) // 20))
    events = Counter(name for row in rows for name in (SPIKE, SKIPPED, LEFT_OUT) if row.get(name))
    return {
        "steps": len(rows),
        unit: rows[-1][unit],
        "loss_first": sum(losses[:n]) / n,
        "loss_last": sum(losses[-n:]) / n,
        f"{unit}_per_second": round(rows[-1][unit] / sum(row["seconds"] for row in rows), 1),
        **({"events": dict(events)} if events else {}),
    }


def prepare(url: str, job: FitJob) -> str:
    """Removes what is not whole of the checkpoints that are newer than the newest whole one, whose name it returns ("" for
    none), and what the attempts before have left for others to read.

    Raises `ValueError` where that checkpoint, or else the state to carry over, does not fit the job. Ray's own record of the
    run is removed too: it is not written atomically, and a killed driver or a full disk can leave one that Ray cannot read.
    """
    folder = storage.join(url, *worker.CHECKPOINTS)
    name, others = checkpoint.newest(folder)
    if name:
        checkpoint.check(storage.join(folder, name), job)
    elif job.state:
        checkpoint.check(job.state, job, carried=True)
    for other in others:
        if other > name:
            console.warn(f"{job.name}: {other} is not complete; going on from {name or 'the beginning'}")
            storage.remove(storage.join(folder, other))
    storage.remove(storage.join(url, *worker.RUN))
    storage.remove(storage.join(url, *worker.NOTICES))
    return name


def run_trainer(job: FitJob, url: str) -> str:
    """One training group, and those that Ray starts in its place; how it ended is what `worker.work` returned.

    The first SIGINT or SIGTERM asks the workers to save and end, and then raises `KeyboardInterrupt`; a second one, or the
    end of `scaling.grace_s`, does not wait for them.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

    scaling = job.scaling
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board_class: Any = ray.remote(beats.Board)
    board = board_class.options(num_cpus=0, scheduling_strategy=here).remote()
    ending = Ending(scaling.grace_s, lambda: board.stop.remote())

    class Trainer(TorchTrainer):
        def _create_default_callbacks(self) -> list[Any]:
            """Without the actor that tidies up after a lost controller where Ray is this process's own and ends with it.

            It asks the cluster that the last `ray start` of the machine left behind, which need not be this one; then it
            takes the controller for dead, or the end of every run waits 12 s for it.
            """
            callbacks: list[Any] = super()._create_default_callbacks()  # type: ignore[misc]
            if os.environ.get("RAY_ADDRESS"):
                return callbacks
            return [
                callback for callback in callbacks if not isinstance(callback, PlacementGroupCleanerCallback)
            ]

        def _register_sigint_handler(self, controller: Any) -> None:
            """In place of Ray's, which ends the group at once and exits with code 0, as if training were done."""

            def abort() -> None:
                try:
                    ray.get(controller.abort.remote())
                except ray.exceptions.RayActorError:
                    raise KeyboardInterrupt from None

            ending.abort = abort

    accelerator = hardware.gpu(scaling.accelerator).ray_name if scaling.accelerator else ""
    group: dict[str, Any] = {
        **({"accelerator_type": accelerator} if accelerator and scaling.use_gpu else {}),
        "num_workers": (scaling.min_workers, scaling.n_workers) if is_elastic(job) else scaling.n_workers,
        "use_gpu": scaling.use_gpu,
        "elastic_resize_monitor_interval_s": RESIZE_S,
    }
    if not scaling.use_gpu:
        group["resources_per_worker"] = {"CPU": scaling.cpu_threads}
    trainer = Trainer(
        cast(Any, worker.work),
        train_loop_config={"job": job, "url": url, "board": board},
        scaling_config=ScalingConfig(**group),
        run_config=RunConfig(
            name=worker.RUN[-1],
            storage_path=storage.join(url, ".scratch"),
            failure_config=FailureConfig(max_failures=scaling.max_failures),
        ),
    )
    try:
        with ending, Monitor(job, url, board):
            # Typed as the one of Ray Train's first version, which has no such field.
            result: Any = trainer.fit()
            ended = str(result.return_value)
            hopeless = ray.get(board.given_up.remote()) if ended == worker.HOPELESS else None
    except TrainingFailedError as error:
        if ending.asked:
            raise KeyboardInterrupt from None
        cause, told = cause_of(error)
        raise _failure(job, isinstance(cause, ValueError), told) from cause
    finally:
        ray.kill(board)
    if hopeless is not None:
        raise _failure(job, *hopeless)
    if ending.asked and ended != worker.DONE:
        raise KeyboardInterrupt
    return ended


def _failure(job: FitJob, of_values: bool, told: str) -> Exception:
    message = f"{job.name}: {told}. Logs: {session.log_folder()}/train"
    return ValueError(message) if of_values else RuntimeError(message)


def kill_process(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


class Monitor:
    """`with` this, a thread looks at the board: it tells what workers have to tell, and ends those that hang."""

    def __init__(self, job: FitJob, url: str, board: Any) -> None:
        self.job, self.notices, self.board = job, storage.join(url, *worker.NOTICES), board
        self.told: set[str] = set()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._run, name=f"monitor of {job.name}", daemon=True)

    def __enter__(self) -> "Monitor":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()
        self._tell()

    def _run(self) -> None:
        looked = 0.0
        while not self.ended.wait(WATCH_S):
            looked += WATCH_S
            try:
                if looked >= progress.interval(self.notices):
                    looked = 0.0
                    self._tell()
                seen = ray.get(self.board.seen.remote())
                if beats.stalled(seen, self.job.scaling.hang_timeout_s):
                    self._end_hanging()
            except (
                OSError
            ) as error:  # who hangs is looked for all the same, and the notices are read again later
                console.warn(f"{self.job.name}: cannot read what its workers tell: {error}")
            except ray.exceptions.RayError:
                return  # the session is ending

    def _tell(self) -> None:
        for name in storage.files_under(self.notices):
            if name not in self.told:
                self.told.add(name)
                console.warn(storage.read_text(storage.join(self.notices, name)))

    def _end_hanging(self) -> None:
        ray.get(self.board.want_stacks.remote(True))
        self.ended.wait(STACKS_S)
        seen = ray.get(self.board.seen.remote())
        if not beats.stalled(seen, self.job.scaling.hang_timeout_s):
            return
        for age, beat in beats.culprits(seen):
            console.warn(
                f"{self.job.name}: {beats.describe(age, beat)}\n  it is ended, and the group starts again"
            )
            where = NodeAffinitySchedulingStrategy(beat.node, soft=False)
            kill = ray.remote(kill_process).options(num_cpus=0, scheduling_strategy=where)
            ray.wait([kill.remote(beat.pid)], timeout=30)
        ray.get(self.board.end_group.remote())


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
