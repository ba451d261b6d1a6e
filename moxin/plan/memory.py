"""Memory of a training worker by kind, what fits, and what to set where something does not: pure functions, no torch calls.

    need = of(model, scaling, "adamw", micro_batch=8192, context=4096, n_workers=64)     # bytes by kind
    largest_micro_batch(model, scaling, "adamw", 4096, 64, free_bytes)                   # tokens
    next_settings(model, scaling, "adamw", 8192, 4096, 64, free_bytes)                   # three "--set ..." lines

Weights, gradients and optimizer state after ZeRO (arXiv 1910.02054, section 3.1 and figure 1); activations and loss as in
`moxin.plan.activations`. What is reported is the moment of a step that needs most, so that the kinds add up to the peak.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

from moxin import hardware
from moxin.plan import activations, counts, network, speed
from moxin.plan.activations import Widths
from moxin.recipe import ModelConfig, ScalingConfig

CONTEXT_BYTES = 3 * 2**29
"""Of a GPU that no tensor gets: CUDA's context, the workspaces of cuBLAS and NCCL."""
UNBROKEN = 0.94
"""Share of the rest that is of use: the caching allocator leaves gaps."""
LIVE_PARAMETERS = 1_000_000_000
"""Parameters that ZeRO 3 keeps gathered at most (`stage3_max_live_parameters` of DeepSpeed)."""
KINDS = ("weights", "gradients", "optimizer", "buffers", "activations", "logits")


@dataclass(frozen=True)
class Memory:
    """Bytes on one worker's device at the moment of a step that needs most."""

    weights: int
    gradients: int
    optimizer: int
    buffers: int
    """What ZeRO reduces and gathers in, copies of weights, float32 gradients of the update."""
    activations: int
    logits: int
    """The output projection's loss: a chunk of logits, and gradients that are made on the way forward."""

    @property
    def total(self) -> int:
        return sum(getattr(self, kind.name) for kind in fields(self))

    @property
    def state(self) -> int:
        """What does not depend on the micro-batch."""
        return self.weights + self.gradients + self.optimizer + self.buffers


def of(
    model: ModelConfig, scaling: ScalingConfig, optimizer: str, micro_batch: int, context: int, n_workers: int
) -> Memory:
    """The memory of one of `n_workers` workers, in bytes, with `micro_batch` tokens in rows of `context`.

    `scaling` gives ZeRO's stage, precision, recomputation, offloading, and whether the device is a GPU. Gradients count in
    full: they lie there between micro-batches. Optimizers: `adamw`, `lion`, `muon`.
    """
    found = moments(model, scaling, optimizer, micro_batch, context, n_workers)
    return max(found.values(), key=lambda moment: moment.total)


def moments(
    model: ModelConfig, scaling: ScalingConfig, optimizer: str, micro_batch: int, context: int, n_workers: int
) -> dict[str, Memory]:
    """The moments of a step that may need most: the loss is made, the table of the output projection gets its gradient, the
    last layer's feed-forward half goes back, the weights are updated. Arguments as of `of`."""
    stage = int(scaling.zero_stage)
    width = Widths.of(scaling.precision, stage)
    fixed = states(model, scaling, optimizer, n_workers)
    kept = micro_batch * activations.forward(model, scaling.recompute, width)
    loss = activations.loss(model, micro_batch, width, scaling.use_gpu)
    back = micro_batch * activations.backward(model, scaling.recompute, width)
    buffers = _buffers(model, scaling, n_workers)
    copies = activations.weight_copies(model, scaling.recompute, width)
    cached = activations.weight_copies(
        model, "none", width
    )  # autocast lets go of its copies after the forward pass
    n = counts.parameters(model)["total"]
    shared = -(-n // n_workers) if stage else n
    # The update of bf16 weights: the float32 gradients of the masters, when all activations are gone.
    update = 4 * shared if width == Widths(2, 2) and scaling.offload_optimizer == "none" else 0
    return {
        "loss": Memory(*fixed, buffers + cached, kept, loss.forward),
        "table": Memory(*fixed, buffers + copies, kept, loss.backward),
        "backward": Memory(*fixed, buffers + copies, kept + back, loss.held),
        "update": Memory(*fixed, buffers + update, 0, 0),
    }


def states(
    model: ModelConfig, scaling: ScalingConfig, optimizer: str, n_workers: int
) -> tuple[int, int, int]:
    """Bytes of weights, gradients and optimizer state on a worker's device.

    bf16 with ZeRO 1 to 3: weights and gradients of 2 bytes, and float32 masters with the optimizer's state. At stage 0 and
    in fp32 weights and gradients are float32 and there are no masters. Moments are float32: two of AdamW, one of Lion,
    one of Muon for the layers' matrices and AdamW's two for the rest.
    """
    stage = int(scaling.zero_stage)
    width = 2 if scaling.precision == "bf16" and stage else 4
    n = counts.parameters(model)["total"]
    share = n_workers if stage else 1
    weights = n * width // (n_workers if stage == 3 else 1)
    gradients = n * width // (n_workers if stage >= 2 else 1)
    state = (optimizer_bytes(model, optimizer) + (4 * n if width == 2 else 0)) // share
    if scaling.offload_optimizer != "none":
        gradients, state = 0, 0  # reduced gradients go to the host at once
    if scaling.offload_parameters != "none":
        weights = 0
    return weights, gradients, state


def optimizer_bytes(model: ModelConfig, optimizer: str) -> int:
    """Bytes of the moments of all parameters."""
    n = counts.parameters(model)["total"]
    if optimizer not in speed.OPTIMIZER_BYTES:
        raise ValueError(f"pretrain.optimizer = {optimizer!r}: one of {', '.join(speed.OPTIMIZER_BYTES)}")
    if optimizer == "muon":
        matrices = model.n_layers * counts.block_parameters(model)
        return 4 * matrices + 8 * (n - matrices)
    return speed.OPTIMIZER_BYTES[optimizer] * n


def _buffers(model: ModelConfig, scaling: ScalingConfig, n_workers: int) -> int:
    stage, n = int(scaling.zero_stage), counts.parameters(model)["total"]
    if not stage or n_workers == 1:
        return 0
    width = 2 if scaling.precision == "bf16" else 4
    bucket = min(n, network.BUCKET) * width
    if stage < 3:
        return bucket
    largest = max(counts.block_parameters(model), model.vocab_size * model.d_model)
    return bucket + min(n, max(LIVE_PARAMETERS, 2 * largest)) * width


def usable_bytes(accelerator: str) -> int:
    """Bytes of a GPU that tensors can have. Raises `ValueError` for one that is not known."""
    return round((hardware.gpu(accelerator).memory_bytes - CONTEXT_BYTES) * UNBROKEN)


def largest_micro_batch(
    model: ModelConfig,
    scaling: ScalingConfig,
    optimizer: str,
    context: int,
    n_workers: int,
    free_bytes: int,
    *,
    resident: bool = False,
    most: int = 2**22,
) -> int:
    """The most tokens that fit into `free_bytes` at once, a multiple of `context` and at most `most`; 0 if no row fits.

    With `resident`, weights, gradients and optimizer state are there already and `free_bytes` is what is left beside them.
    """
    if resident:
        free_bytes += sum(states(model, scaling, optimizer, n_workers))

    def fits(rows: int) -> bool:
        return of(model, scaling, optimizer, rows * context, context, n_workers).total <= free_bytes

    low, high = 0, max(1, most // context) + 1  # `low` rows fit, `high` are too many
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low * context


def table(
    model: ModelConfig, scaling: ScalingConfig, optimizer: str, micro_batch: int, context: int, n_workers: int
) -> list[tuple[str, Memory]]:
    """The memory at every ZeRO stage that the optimizer allows, by the stage's name."""
    found = []
    for stage in stages(optimizer):
        changed = with_stage(scaling, stage)
        found.append((f"ZeRO-{stage}", of(model, changed, optimizer, micro_batch, context, n_workers)))
    return found


def stages(optimizer: str) -> tuple[int, ...]:
    """ZeRO's stages; 3 cuts the matrices that Muon needs whole."""
    return (0, 1, 2) if optimizer == "muon" else (0, 1, 2, 3)


def with_stage(scaling: ScalingConfig, stage: int) -> ScalingConfig:
    """The settings at another stage, without the offloading that it cannot have."""
    changed = replace(scaling, zero_stage=str(stage))  # type: ignore[arg-type]
    if stage < 3:
        changed = replace(changed, offload_parameters="none")
        if changed.offload_optimizer == "nvme" or not stage:
            changed = replace(changed, offload_optimizer="none")
        changed = replace(changed, offload_path="")
    return changed


def next_settings(
    model: ModelConfig,
    scaling: ScalingConfig,
    optimizer: str,
    micro_batch: int,
    context: int,
    n_workers: int,
    free_bytes: int,
    *,
    section: str = "pretrain",
) -> list[str]:
    """At most three ways out of too little memory, each a line of `--set` options that fits, the fastest training first.

    A smaller micro-batch, more recomputation, a higher ZeRO stage, the optimizer on the host, and, where none of these is
    enough, more workers. Ordered by the time of a token on `scaling.accelerator` (or an A100); what another line does with
    fewer changes is left out. Empty where nothing fits up to 64 times the workers.
    """
    accelerator = scaling.accelerator or "A100-80GB"
    gpu, machine = hardware.gpu(accelerator), hardware.machine_with(accelerator)
    for workers in (n_workers * 2**doubling for doubling in range(7)):
        found: dict[frozenset[str], float] = {}
        for changed, changes in _variants(scaling, optimizer):
            fitting = largest_micro_batch(
                model, changed, optimizer, context, workers, free_bytes, most=micro_batch
            )
            if not fitting:
                continue
            changes = dict(changes)
            if fitting < micro_batch:
                changes[f"{section}.micro_batch"] = str(fitting)
            if workers > n_workers:
                changes["scaling.n_workers"] = str(workers)
            setup = speed.Setup(
                model=model,
                gpu=gpu,
                machine=machine,
                n_workers=workers,
                zero_stage=int(changed.zero_stage),
                recompute=changed.recompute,
                context=context,
                micro_batch=fitting,
                accumulation=max(1, 4 * micro_batch // fitting),
                precision=scaling.precision,
                optimizer=optimizer,
                offload_optimizer=changed.offload_optimizer,
            )
            per_token = speed.step_time(setup).total / setup.tokens
            found[frozenset(f"--set {key}={value}" for key, value in changes.items())] = per_token
        if found:
            return _best(found)
    return []


def _variants(scaling: ScalingConfig, optimizer: str) -> Iterator[tuple[ScalingConfig, dict[str, str]]]:
    """Settings that need less memory than `scaling`, and it itself, with what was changed."""
    order = ("none", "selective", "full")
    recompute = order[order.index(scaling.recompute) :]
    higher = [stage for stage in stages(optimizer) if stage >= int(scaling.zero_stage)]
    hosts = ["none", "cpu"] if optimizer == "adamw" and scaling.offload_optimizer == "none" else ["none"]
    for how, stage, host in itertools.product(recompute, higher, hosts):
        changes = {}
        if how != scaling.recompute:
            changes["scaling.recompute"] = how
        if stage != int(scaling.zero_stage):
            changes["scaling.zero_stage"] = str(stage)
        if host == "cpu":
            if not stage:
                continue
            changes["scaling.offload_optimizer"] = host
        changed = replace(scaling, recompute=how, zero_stage=str(stage))  # type: ignore[arg-type]
        if host == "cpu":
            changed = replace(changed, offload_optimizer="cpu")
        yield changed, changes


def _best(found: dict[frozenset[str], float]) -> list[str]:
    """The three fastest; of two that share their changes, the one with more of them only if it is faster."""
    kept: list[frozenset[str]] = []
    for changes in sorted(found, key=lambda each: (round(found[each] * 1e9, 3), len(each), sorted(each))):
        if not any(earlier < changes for earlier in kept):
            kept.append(changes)
    return [" ".join(sorted(changes)) for changes in kept[:3]]
