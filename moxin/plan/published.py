"""Published training runs, and what the planner says to them: the model of time and cost is held against these by a test.

Throughput tables are checked row by row in `benchmarks/plan_speed.py`; this is about whole runs, wall-clock time and bills.
"""

from dataclasses import dataclass, replace

from moxin import hardware
from moxin.plan.cluster import Offer
from moxin.plan.cost import RunCost, run_cost
from moxin.recipe import Recipe


@dataclass(frozen=True)
class Published:
    """A run: on what it was trained, and what was said of it. 0 where nothing was."""

    recipe: str
    machine: str
    n_gpus: int
    dollars_per_gpu_hour: float
    days: float
    dollars: float
    zero_stage: str
    recompute: str
    source: str
    assumed: str
    """What had to be assumed, in words."""


RUNS = (
    Published(
        recipe="mpt_7b",
        machine="mosaicml-a100-40gb",
        n_gpus=440,
        dollars_per_gpu_hour=2.0,
        days=9.5,
        dollars=200_000,
        zero_stage="3",
        recompute="full",
        source="huggingface.co/mosaicml/mpt-7b, databricks.com/blog/mpt-7b",
        assumed="$2 a GPU hour: the two published numbers divided; recomputation as in llm-foundry's rows on this card. "
        "The published days hold restarts and checkpoints, the plan's only steps",
    ),
    Published(
        recipe="moxin_7b",
        machine="p5.48xlarge",
        n_gpus=128,
        dollars_per_gpu_hour=2.5,
        days=0,
        dollars=160_000,
        zero_stage="1",
        recompute="selective",
        source="arXiv 2412.06845, abstract of version 5",
        assumed="H100 and $2.50 a GPU hour: hardware and price were not published, so the check is one of plausibility",
    ),
)


def planned(run: Published, recipe: Recipe) -> RunCost:
    """What the planner says to a run. Raises `ValueError` where the recipe does not fit the run's GPUs."""
    machine = hardware.MACHINES[run.machine]
    offer = Offer(run.machine, machine, run.dollars_per_gpu_hour)
    scaling = replace(recipe.scaling, zero_stage=run.zero_stage, recompute=run.recompute)  # type: ignore[arg-type]
    cost = run_cost(recipe, offer, run.n_gpus, scaling)
    if cost is None:
        raise ValueError(f"{run.recipe} does not fit {run.n_gpus} GPUs of {run.machine}")
    return cost
