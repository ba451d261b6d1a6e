"""What follows from a recipe, as tables: what `--dry-run` and `moxin plan` print."""

import json
from collections.abc import Sequence
from dataclasses import replace

from moxin import console
from moxin.config import to_jsonable
from moxin.plan import advice, cost, counts, memory, speed
from moxin.plan.cluster import Offer
from moxin.plan.cost import PhaseCost, RunCost
from moxin.plan.counts import Compute, parameters
from moxin.recipe import ModelConfig, Recipe

Row = tuple[str, str, str]


def model_rows(model: ModelConfig) -> list[Row]:
    """What follows from a model's shape: quantity, value, formula."""
    count = parameters(model)
    kv_bytes = counts.kv_bytes_per_token(model)
    feed_forward = "SwiGLU" if model.activation == "swiglu" else "GELU"
    window = model.widest_window
    rows = [
        (
            "parameters outside embeddings",
            f"{count['body']:,}",
            f"layers × (attention + {feed_forward}) + norms",
        ),
        (
            "parameters",
            f"{count['total']:,}",
            "the above + vocabulary × width" + (" × 2" if not model.tie_embeddings else ""),
        ),
        ("head size", f"{model.head_dim}", "d_model / n_heads"),
        ("KV cache per token", f"{kv_bytes:,} B", "2 × layers × kv heads × head size × 2 bytes (bf16)"),
    ]
    if window is not None and window < model.max_seq_len:
        kept = f"{kv_bytes * window / 2**20:,.1f} of {kv_bytes * model.max_seq_len / 2**20:,.1f} MiB"
        rows.append(
            (f"KV cache at {model.max_seq_len:,} tokens", kept, f"the last {window:,} tokens are kept")
        )
    return rows


def rows(recipe: Recipe) -> list[Row]:
    """Each derived quantity that does not depend on hardware: name, value, formula."""
    pretrain = recipe.pretrain
    count = parameters(recipe.model)
    tokens = sum(phase.tokens for phase in pretrain.phases)
    compute = Compute.of(recipe)
    derived = [
        *model_rows(recipe.model),
        ("pretraining tokens", f"{tokens:,}", "sum over phases"),
        ("tokens per parameter", f"{tokens / count['total']:.2f}", "Chinchilla: about 20"),
    ]
    first = 0
    for phase in pretrain.phases:
        steps = phase.tokens // pretrain.global_batch
        formula = f"{phase.tokens:,} tokens / {pretrain.global_batch:,} per step, rows of {phase.context:,}"
        derived.append((f"{phase.name}: steps", f"{steps:,} (to {first + steps:,})", formula))
        first += steps
    written = cost.checkpoint_bytes(recipe)
    derived += [
        (
            "warm-up steps",
            f"{pretrain.warmup_tokens // pretrain.global_batch:,}",
            "warmup_tokens / global_batch",
        ),
        (
            "training compute",
            f"{compute.full:.3g} FLOPs",
            "(6N + 12 L d s) × tokens: llm-foundry's convention",
        ),
        (
            "training compute, as done",
            f"{compute.window_counted:.3g} FLOPs",
            "products only: causal, window counted, no embedding",
        ),
        (
            "a checkpoint",
            size(written.state),
            f"weights + {pretrain.optimizer} state; every {pretrain.checkpoint_every:,} steps",
        ),
        ("a model folder", size(written.weights), "4 bytes × parameters (float32)"),
    ]
    return derived


def show(recipe: Recipe, run_url: str) -> None:
    """Prints the resolved recipe as JSON and what follows from it."""
    console.say(json.dumps(to_jsonable(recipe), indent=2, ensure_ascii=False))
    console.say(f"\nrun folder: {run_url}")
    console.table("What follows", ("quantity", "value", "formula"), rows(recipe))
    show_memory(recipe)
    from moxin.plan import cluster

    scaling = recipe.scaling
    if scaling.accelerator and scaling.use_gpu:
        offer = cluster.of_accelerator(scaling.accelerator, scaling.dollars_per_hour)
        found = cost.run_cost(recipe, offer, scaling.n_workers)
        if found is None:
            console.say(f"\nThe recipe as it is does not fit {scaling.n_workers} × {scaling.accelerator}.")
        else:
            show_run(found)
    else:
        console.say("\nHours and dollars: moxin plan --accelerator NAME, or --cluster FILE.", "dim")
    for warning in advice.warnings(recipe):
        console.warn(warning)


def show_memory(recipe: Recipe, offer: Offer | None = None) -> None:
    """A worker's memory at every ZeRO stage, at its peak, in the phase with the longest rows."""
    scaling, pretrain = recipe.scaling, recipe.pretrain
    phase = max(pretrain.phases, key=lambda each: each.context)
    accelerator = offer.machine.gpu if offer else scaling.accelerator if scaling.use_gpu else ""
    micro = phase.context if pretrain.micro_batch == "auto" else max(pretrain.micro_batch, phase.context)
    given = (pretrain.optimizer, micro, phase.context, scaling.n_workers)
    scaling = replace(scaling, use_gpu=scaling.use_gpu or bool(offer))
    found = memory.table(recipe.model, scaling, *given)
    columns = ["ZeRO", *memory.KINDS, "peak"] + (["most tokens"] if accelerator else [])
    lines = []
    for name, need in found:
        kinds = (getattr(need, kind) for kind in memory.KINDS)
        line = [
            name.removeprefix("ZeRO-"),
            *(size(kind) if kind else "-" for kind in kinds),
            size(need.total),
        ]
        if accelerator:
            largest = memory.largest_micro_batch(
                recipe.model,
                memory.with_stage(scaling, int(line[0])),
                pretrain.optimizer,
                phase.context,
                scaling.n_workers,
                memory.usable_bytes(accelerator),
                most=max(1, pretrain.global_batch // scaling.n_workers // phase.context) * phase.context,
            )
            line.append(f"{largest:,}" if largest else "none fit")
        lines.append(line)
    console.table(f"Memory of one of {scaling.n_workers} workers at its peak", columns, lines, right=columns)
    at_loss = memory.moments(recipe.model, scaling, *given)["loss"]
    console.say(
        f"\n  {pretrain.optimizer}, {scaling.precision}, recompute {scaling.recompute}, {micro:,} tokens at once in rows of "
        f"{phase.context:,}\n  the loss has its own moment: {size(at_loss.logits)} for logits and gradients, "
        f"{size(at_loss.total)} in all at ZeRO-{scaling.zero_stage}"
        + (f"\n  {accelerator}: {size(memory.usable_bytes(accelerator))} of use" if accelerator else ""),
        "dim",
    )


def show_run(found: RunCost) -> None:
    """Time and cost of a run, phase by phase, with what a step is spent on."""
    offer, scaling = found.offer, found.scaling
    lines = [_phase_line(phase) for phase in found.phases]
    columns = (
        "phase",
        "micro-batch",
        "s/step",
        "tok/s/GPU",
        "MFU",
        "counted",
        "HFU",
        "network/step",
        "hours",
    )
    console.table(
        f"{found.n_gpus:,} × {offer.machine.gpu} ({offer.machine.name}), ZeRO-{scaling.zero_stage}, recompute "
        f"{scaling.recompute}",
        columns,
        lines,
        right=columns[1:],
    )
    total = found.hours
    shares = {
        part: sum(phase.steps * getattr(phase.step, part) for phase in found.phases) / 3600 / total
        for part in ("matmul", "attention", "elementwise", "update", "network")
    }
    spent = ", ".join(f"{name} {share:.0%}" for name, share in shares.items() if share >= 0.005)
    console.say(f"\n  time is spent on: {spent}")
    price = offer.dollars_per_gpu_hour
    words = f"${found.dollars:,.0f} at ${price:,.2f} a GPU hour" if price else "no price known: --price"
    console.say(
        f"  {total:,.1f} hours ({total / 24:,.1f} days), {found.gpu_hours:,.0f} GPU hours, {words}", "bold"
    )
    if offer.gpu.family not in speed.CALIBRATION.gpus:
        console.warn(
            f"{offer.machine.gpu}: no published throughput to fit; planned with the efficiencies of "
            f"{speed.STANDS_IN[offer.gpu.family]}"
        )


def _phase_line(phase: PhaseCost) -> list[str]:
    rate = phase.tokens_per_second
    counted = speed.mfu(phase.setup, rate, window_counted=True)
    hfu = speed.hfu(phase.setup, rate, window_counted=False)
    moved = cost.traffic(phase).total
    return [
        phase.name,
        f"{phase.micro_batch:,} × {phase.setup.accumulation}",
        f"{phase.step.total:.2f}",
        f"{rate:,.0f}",
        f"{phase.mfu:.1%}",
        f"{counted:.1%}",
        f"{hfu:.1%}",
        f"{size(moved)}, {phase.step.network:.2f} s" if moved else "-",
        f"{phase.seconds / 3600:,.1f}",
    ]


def show_options(found: Sequence[RunCost], most: int = 12) -> None:
    """The cheapest ways, one line for each GPU count with its fastest settings, the cheapest marked."""
    best = cost.best_by_count(found)
    cheapest = found[0]
    lines = []
    for each in best[:most]:
        first = each.phases[0]
        lines.append(
            [
                "▸" if each is cheapest else "",
                each.offer.name + (" (spot)" if each.offer.spot else ""),
                f"{each.n_gpus:,}",
                str(each.scaling.zero_stage),
                each.scaling.recompute,
                f"{first.micro_batch:,} × {first.setup.accumulation}",
                size(each.peak.total),
                f"{first.mfu:.0%}",
                f"{each.hours / 24:,.1f}" if each.hours >= 24 else f"{each.hours / 24:,.2f}",
                f"{each.gpu_hours:,.0f}",
                f"${each.dollars:,.0f}" if each.dollars else "-",
            ]
        )
    columns = (
        "",
        "offer",
        "GPUs",
        "ZeRO",
        "recompute",
        "micro-batch",
        "peak",
        "MFU",
        "days",
        "GPU hours",
        "dollars",
    )
    right = (*columns[2:4], *columns[5:])
    console.table(
        "The fastest settings at each GPU count; ▸ is the cheapest of all", columns, lines, right=right
    )


def size(n_bytes: float) -> str:
    """`3_221_225_472` as `3.0 GiB`."""
    for unit, power in (("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if abs(n_bytes) >= 2**power:
            return f"{n_bytes / 2**power:,.1f} {unit}"
    return f"{n_bytes:.0f} B"
