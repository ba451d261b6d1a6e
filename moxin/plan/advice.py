"""What looks wrong with a recipe before anything is paid for: refusals, and warnings that name setting and usual values."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from moxin.plan import counts, memory
from moxin.recipe import PLACEHOLDER, Recipe

TOLERANCE = 1.1
"""The plan's memory may be wrong by a tenth: only what is further above a GPU's is refused."""


def refuse(recipe: Recipe) -> None:
    """Raises `ValueError` for what would fail on the workers: a path that is a placeholder, a model that fits no GPU.

    `Recipe.validate` has looked at the settings before; a plan and `--dry-run` do not ask here.
    """
    for setting, value in _texts(recipe, ""):
        if value.startswith(PLACEHOLDER):
            raise ValueError(
                f"{setting} = {value} is a placeholder: say where the corpora, tokenizers and models lie with "
                f"MOXIN_DATA=s3://bucket/folder, or give this one with --set {setting}=..."
            )
    scaling = recipe.scaling
    if not scaling.use_gpu or not scaling.accelerator:
        return
    free = memory.usable_bytes(scaling.accelerator)
    for phase in recipe.pretrain.phases:
        given = (recipe.model, scaling, recipe.pretrain.optimizer)
        need = memory.of(*given, phase.context, phase.context, scaling.n_workers)
        if need.total > free * TOLERANCE:
            raise ValueError(
                f"pretrain.phases.{phase.name}: one row of {phase.context} tokens needs {need.total / 2**30:.1f} GiB on "
                f"each worker, an {scaling.accelerator} has {free / 2**30:.1f}; "
                + _ways(recipe, phase.context, phase.context, free)
            )


def warnings(recipe: Recipe) -> list[str]:
    """What is unusual, each a sentence that names its setting; empty where nothing is."""
    return [*_rates(recipe), *_contexts(recipe), *_batches(recipe), *_memory(recipe)]


def usual_learning_rate(n_parameters: int, optimizer: str) -> tuple[float, float]:
    """The range of peak rates that decoders of this size were trained from fresh weights with.

    In the middle GPT-3's table 2.1 (arXiv 2005.14165), 6e-4 at 125M falling as N^-0.4 to 6e-5 at 175B; a third of that to
    ten times that holds OPT, Llama 1 to 3, OLMo, DeepSeek and SmolLM. Lion takes a tenth to a third of AdamW's rate
    (arXiv 2302.06675, section 5), Muon AdamW's, scaled as it is here.
    """
    middle = 6e-4 * (n_parameters / 125e6) ** -0.4
    low, high = middle / 3, min(middle * 10, 0.03)
    return (low / 10, high / 3) if optimizer == "lion" else (low, high)


def _rates(recipe: Recipe) -> Iterator[str]:
    pretrain = recipe.pretrain
    n = counts.parameters(recipe.model)["total"]
    low, high = usual_learning_rate(n, pretrain.optimizer)
    fresh = "from fresh weights"
    if pretrain.initial:  # going on may begin where the other run ended, a tenth of its peak or less
        low, fresh = low / 100, "going on from pretrain.initial"
    rates = {"pretrain.learning_rate": pretrain.learning_rate} if pretrain.common_phases else {}
    rates |= {
        f"pretrain.phases.{phase.name}.learning_rate": phase.learning_rate
        for phase in pretrain.phases
        if phase.learning_rate
    }
    for setting, rate in rates.items():
        first = setting == "pretrain.learning_rate" or setting.split(".")[2] == pretrain.phases[0].name
        least = low if first else low / 100
        if not least <= rate <= high:
            yield (
                f"{setting} = {rate:g} is {'below' if rate < least else 'above'} what is usual for {n / 1e6:,.0f}M "
                f"parameters with {pretrain.optimizer} {fresh}: {least:.1g} to {high:.1g}"
            )
    total = sum(phase.tokens for phase in pretrain.common_phases)
    if total and pretrain.warmup_tokens > total / 10:
        yield (
            f"pretrain.warmup_tokens = {pretrain.warmup_tokens:,} is {pretrain.warmup_tokens / total:.0%} of the schedule's "
            f"{total:,} tokens: usual are 0.1 % to 5 %"
        )


def _contexts(recipe: Recipe) -> Iterator[str]:
    longest, of = 0, ""
    for phase in recipe.pretrain.phases:
        if phase.context < longest:
            yield (
                f"pretrain.phases.{phase.name}.context = {phase.context} is shorter than {longest} of phase {of}: what was "
                "learned of long rows fades; set it at least as long, or mean it"
            )
        if phase.context > longest:
            longest, of = phase.context, phase.name
        if rest := recipe.model.max_seq_len % phase.context:
            yield (
                f"pretrain.phases.{phase.name}.context = {phase.context} does not divide model.max_seq_len = "
                f"{recipe.model.max_seq_len}: {rest / recipe.model.max_seq_len:.1%} of every source is never read"
            )
    for name in ("sft", "dpo"):
        context = getattr(recipe, name).context
        if context > longest:
            yield f"{name}.context = {context} is longer than any row of pretraining ({longest})"


def _batches(recipe: Recipe) -> Iterator[str]:
    pretrain, workers = recipe.pretrain, recipe.scaling.n_workers
    for phase in pretrain.phases:
        rows = pretrain.global_batch // phase.context
        if rows % workers:
            idle = 1 - rows / workers / -(-rows // workers)
            yield (
                f"pretrain.global_batch = {pretrain.global_batch:,} is {rows} rows of {phase.context} in phase "
                f"{phase.name}, which {workers} workers (scaling.n_workers) cannot share evenly: {idle:.0%} of their time "
                "is waiting"
            )
        if pretrain.micro_batch != "auto" and pretrain.micro_batch % phase.context:
            kept = pretrain.micro_batch // phase.context * phase.context
            yield (
                f"pretrain.micro_batch = {pretrain.micro_batch} holds rows of {phase.context} for {kept} tokens only in "
                f"phase {phase.name}; a multiple of {phase.context} uses all of it"
            )


def _memory(recipe: Recipe) -> Iterator[str]:
    scaling, pretrain = recipe.scaling, recipe.pretrain
    if not scaling.use_gpu or not scaling.accelerator:
        return
    free = memory.usable_bytes(scaling.accelerator)
    for phase in pretrain.phases:
        size = phase.context
        if pretrain.micro_batch != "auto":
            size = max(1, pretrain.micro_batch // phase.context) * phase.context
        given = (recipe.model, scaling, pretrain.optimizer)
        need = memory.of(*given, size, phase.context, scaling.n_workers).total
        if need > free:
            yield (
                f"pretrain.micro_batch = {size:,} tokens of phase {phase.name} need {need / 2**30:.1f} GiB, an "
                f"{scaling.accelerator} has {free / 2**30:.1f}; " + _ways(recipe, size, phase.context, free)
            )


def _ways(recipe: Recipe, micro_batch: int, context: int, free: int) -> str:
    scaling = recipe.scaling
    given = (recipe.model, scaling, recipe.pretrain.optimizer)
    found = memory.next_settings(*given, micro_batch, context, scaling.n_workers, free)
    if not found:
        return "no setting of scaling fits: take another accelerator or a smaller model"
    return "what fits, the fastest first: " + "; or ".join(found)


def _texts(node: Any, where: str) -> Iterator[tuple[str, str]]:
    """Every string of a recipe with its dotted setting."""
    if isinstance(node, str):
        yield where, node
    elif dataclasses.is_dataclass(node) and not isinstance(node, type):
        for each in dataclasses.fields(node):
            yield from _texts(getattr(node, each.name), f"{where}.{each.name}" if where else each.name)
    elif isinstance(node, tuple):
        for position, item in enumerate(node):
            name = getattr(item, "name", "") or (position if dataclasses.is_dataclass(item) else "")
            yield from _texts(item, f"{where}.{name}" if name != "" else where)
