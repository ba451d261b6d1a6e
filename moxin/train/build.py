"""The model that a job starts from."""

from moxin.config import to_jsonable
from moxin.model import checkpoint
from moxin.model.decoder import Decoder
from moxin.train.job import FitJob


def build(job: FitJob) -> Decoder:
    """The decoder with the weights of `job.initial`, or fresh ones, recomputing and compiled as `job.scaling` says.

    Raises `ValueError` where `job.initial` is another model.
    """
    module = _initial(job)
    module.recompute = job.scaling.recompute
    if job.scaling.compile:
        for block in module.blocks:
            block.compile()
    return module


def _initial(job: FitJob) -> Decoder:
    if not job.initial:
        return Decoder(job.model, job.seed)
    module = checkpoint.load(job.initial)
    if module.config != job.model:
        there, here = to_jsonable(module.config), to_jsonable(job.model)
        wrong = [
            f"model.{name} is {there[name]}, not {here[name]}" for name in here if there[name] != here[name]
        ]
        raise ValueError(f"{job.name}: the model at {job.initial} is not the recipe's: {', '.join(wrong)}")
    return module
