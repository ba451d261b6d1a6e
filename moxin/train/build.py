"""The model that a job starts from."""

import torch

from moxin.config import to_jsonable
from moxin.model import checkpoint
from moxin.model.decoder import Decoder
from moxin.model.weights import DTYPES
from moxin.train.job import FitJob


def build(job: FitJob, dtype: str | None = None, device: torch.device | str = "cpu") -> Decoder:
    """The decoder with the weights of `job.initial`, or fresh ones, recomputing and compiled as `job.scaling` says.

    Weights are made one by one, in `dtype` (by default float32, or as stored) and where they belong: eight workers of a node
    with a model of 30B would fill a terabyte of its memory with float32 that nobody needs.

    Raises `ValueError` where `job.initial` is another model.
    """
    module = _initial(job, dtype, device)
    module.recompute = job.scaling.recompute
    if job.scaling.compile:
        for block in module.blocks:
            block.compile()
    return module


def _initial(job: FitJob, dtype: str | None, device: torch.device | str) -> Decoder:
    if not job.initial:
        module = checkpoint.empty(job.model, DTYPES[dtype or "float32"], device)
        module.reset(job.seed)
        return module
    module = checkpoint.load(job.initial, dtype, device)
    if module.config != job.model:
        there, here = to_jsonable(module.config), to_jsonable(job.model)
        wrong = [
            f"model.{name} is {there[name]}, not {here[name]}" for name in here if there[name] != here[name]
        ]
        raise ValueError(f"{job.name}: the model at {job.initial} is not the recipe's: {', '.join(wrong)}")
    return module
