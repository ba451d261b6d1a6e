"""Going back after bad steps: which batches are left out from then on, and which checkpoints are no longer trusted."""

from moxin import storage
from moxin.train import checkpoint
from moxin.train.guard import RollBackError
from moxin.train.job import FitJob, HopelessError

RECORD = "rollbacks.json"


def recorded(url: str) -> list[dict[str, int | str]]:
    """The roll-backs of a run whose checkpoints are below `url`: `first` and `last` step (from 1), and what was bad."""
    where = storage.join(url, RECORD)
    return list(storage.read_json(where)) if storage.exists(where) else []


def left_out(url: str) -> frozenset[int]:
    """Steps (from 0) that a run passes over with their batches."""
    spans = [(int(one["first"]), int(one["last"])) for one in recorded(url)]
    return frozenset(step - 1 for first, last in spans for step in range(first, last + 1))


def go_back(url: str, job: FitJob, bad: RollBackError) -> str:
    """Notes the bad steps and removes the checkpoints after the first of them; returns what to tell.

    The note is written first: a run that is killed in between goes on with it. Raises `HopelessError` where the job has gone
    back as often as it may.
    """
    before = recorded(url)
    if len(before) >= job.guards.max_rollbacks:
        raise HopelessError(
            f"{job.name}: {bad.told}, after {len(before)} roll-backs (pretrain.guards.max_rollbacks). Other batches do not "
            "help: lower pretrain.learning_rate, lengthen pretrain.warmup_tokens, or set pretrain.z_loss=1e-4"
        )
    storage.write_json(
        storage.join(url, RECORD), [*before, {"first": bad.first + 1, "last": bad.last + 1, "told": bad.told}]
    )
    names = checkpoint.listed(url)
    for name in names:
        if checkpoint.step_of(name) > bad.first:
            storage.remove(storage.join(url, name))
    good, _ = checkpoint.newest(url)
    to = f"step {checkpoint.step_of(good):,}" if good else "the beginning"
    return f"{bad.told}; back to {to}, steps {bad.first + 1:,} to {bad.last + 1:,} are left out"
