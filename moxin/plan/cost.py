"""What pretraining a recipe takes on an offer of GPUs: micro-batch, step time, hours, dollars; and the cheapest way."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from moxin.plan import counts, memory, network, speed
from moxin.plan.cluster import Offer
from moxin.plan.memory import Memory
from moxin.plan.speed import Setup, StepTime
from moxin.recipe import PhaseConfig, Recipe, ScalingConfig

RECOMPUTE = ("none", "selective", "full")


@dataclass(frozen=True)
class PhaseCost:
    """One phase on so many workers."""

    name: str
    tokens: int
    steps: int
    micro_batch: int
    """Tokens; those of a step's last one may be fewer."""
    setup: Setup
    memory: Memory
    step: StepTime
    tokens_per_second: float
    """Of one GPU."""

    @property
    def seconds(self) -> float:
        return self.steps * self.step.total

    @property
    def mfu(self) -> float:
        """In llm-foundry's convention; `speed.mfu` has the other."""
        return speed.mfu(self.setup, self.tokens_per_second, window_counted=False)


@dataclass(frozen=True)
class RunCost:
    """All phases on so many GPUs of an offer with one set of settings, without failures (`moxin.plan.simulate`)."""

    offer: Offer
    n_gpus: int
    scaling: ScalingConfig
    phases: tuple[PhaseCost, ...]

    @property
    def hours(self) -> float:
        return sum(phase.seconds for phase in self.phases) / 3600

    @property
    def gpu_hours(self) -> float:
        """Of whole machines, which is how they are paid for."""
        return self.hours * self.offer.machines(self.n_gpus) * self.offer.machine.n_gpus

    @property
    def dollars(self) -> float:
        """0 where the price is not known."""
        return self.gpu_hours * self.offer.dollars_per_gpu_hour

    @property
    def peak(self) -> Memory:
        return max((phase.memory for phase in self.phases), key=lambda each: each.total)


def phase_cost(
    recipe: Recipe, phase: PhaseConfig, offer: Offer, n_gpus: int, scaling: ScalingConfig
) -> PhaseCost | None:
    """A phase on `n_gpus`, or None where a row does not fit or a worker would get none.

    The micro-batch is the recipe's, or with `auto` the largest that fits; it is evened out over a step. Workers whose share
    of the rows is smaller wait for the others.
    """
    pretrain, context = recipe.pretrain, phase.context
    rows = pretrain.global_batch // context
    per_worker = -(-rows // n_gpus)
    if rows < n_gpus:
        return None
    optimizer = pretrain.optimizer
    fits = memory.largest_micro_batch(
        recipe.model,
        scaling,
        optimizer,
        context,
        n_gpus,
        memory.usable_bytes(offer.machine.gpu),
        most=per_worker * context,
    )
    at_once = fits // context
    if pretrain.micro_batch != "auto":
        wanted = max(1, pretrain.micro_batch // context)
        if at_once < min(wanted, per_worker):
            return None
        at_once = min(wanted, per_worker)
    if not at_once:
        return None
    accumulation = -(-per_worker // at_once)
    largest = -(-per_worker // accumulation) * context
    setup = Setup(
        model=recipe.model,
        gpu=offer.gpu,
        machine=offer.machine,
        n_workers=n_gpus,
        zero_stage=int(scaling.zero_stage),
        recompute=scaling.recompute,
        context=context,
        micro_batch=per_worker * context / accumulation,
        accumulation=accumulation,
        precision=scaling.precision,
        optimizer=optimizer,
        offload_optimizer=scaling.offload_optimizer,
    )
    step = speed.step_time(setup)
    return PhaseCost(
        name=phase.name,
        tokens=phase.tokens,
        steps=phase.tokens // pretrain.global_batch,
        micro_batch=largest,
        setup=setup,
        memory=memory.of(recipe.model, scaling, optimizer, largest, context, n_gpus),
        step=step,
        tokens_per_second=pretrain.global_batch / n_gpus / step.total,
    )


def run_cost(
    recipe: Recipe, offer: Offer, n_gpus: int, scaling: ScalingConfig | None = None
) -> RunCost | None:
    """All phases with the recipe's settings, or those given; None where one of them cannot be trained so."""
    scaling = replace(
        scaling or recipe.scaling, use_gpu=True, accelerator=offer.machine.gpu, n_workers=n_gpus
    )
    phases = []
    for phase in recipe.pretrain.phases:
        found = phase_cost(recipe, phase, offer, n_gpus, scaling)
        if found is None:
            return None
        phases.append(found)
    return RunCost(offer, n_gpus, scaling, tuple(phases))


def options(recipe: Recipe, offers: Iterable[Offer], gpu_counts: Sequence[int]) -> list[RunCost]:
    """Every GPU count, ZeRO stage and recomputation that fits, the cheapest first; of one count the fastest is the cheapest.

    Offers without a price come by their GPU hours, after the others. The micro-batch is free: the recipe's own would shut
    out settings that need a smaller one.
    """
    free = replace(recipe, pretrain=replace(recipe.pretrain, micro_batch="auto"))
    found = []
    for offer in offers:
        for n_gpus in gpu_counts:
            if offer.most_gpus and n_gpus > offer.most_gpus:
                continue
            for stage in memory.stages(recipe.pretrain.optimizer) if n_gpus > 1 else (1,):
                for how in RECOMPUTE:
                    scaling = replace(memory.with_stage(recipe.scaling, stage), recompute=how)  # type: ignore[arg-type]
                    cost = run_cost(free, offer, n_gpus, scaling)
                    if cost is not None:
                        found.append(cost)
    return sorted(found, key=lambda each: (not each.dollars, each.dollars, each.gpu_hours))


def best_by_count(found: Iterable[RunCost]) -> list[RunCost]:
    """Of every offer and GPU count the fastest settings, in the order of the counts."""
    best: dict[tuple[str, int], RunCost] = {}
    for cost in found:
        key = (cost.offer.name, cost.n_gpus)
        if key not in best or cost.hours < best[key].hours:
            best[key] = cost
    return [best[key] for key in sorted(best, key=lambda key: (key[0], key[1]))]


@dataclass(frozen=True)
class Checkpoint:
    """Bytes of what training leaves: `state` to go on from, `weights` as a model folder in float32."""

    state: int
    weights: int


def checkpoint_bytes(recipe: Recipe) -> Checkpoint:
    """State: weights and moments in float32, whatever ZeRO's stage and precision (`moxin.train.shards`)."""
    weights = 4 * counts.parameters(recipe.model)["total"]
    return Checkpoint(weights + memory.optimizer_bytes(recipe.model, recipe.pretrain.optimizer), weights)


def traffic(phase: PhaseCost) -> network.Traffic:
    """What a worker sends in a step of a phase."""
    setup = phase.setup
    width = 2 if setup.precision == "bf16" else 4
    return network.traffic(setup.model, setup.zero_stage, setup.n_workers, setup.accumulation, width)
