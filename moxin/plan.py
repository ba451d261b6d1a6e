"""What follows from a recipe, with the formula: parameters, steps, memory, compute. What `--dry-run` prints."""

import json

from moxin import console
from moxin.config import to_jsonable
from moxin.recipe import ModelConfig, Recipe


def parameters(model: ModelConfig) -> dict[str, int]:
    """Parameter counts of the decoder by part."""
    kv = model.n_kv_heads * model.head_dim
    attention = model.d_model * (2 * model.d_model + 2 * kv)
    mlp = 3 * model.d_model * model.d_ff
    norms = (2 * model.n_layers + 1) * model.d_model
    embeddings = model.vocab_size * model.d_model * (1 if model.tie_embeddings else 2)
    body = model.n_layers * (attention + mlp) + norms
    return {"body": body, "embeddings": embeddings, "total": body + embeddings}


def training_bytes(total: int, n_workers: int, zero_stage: int, precision: str) -> int:
    """Bytes per worker for weights, gradients and AdamW state, without activations (ZeRO, arXiv 1910.02054, §3.1)."""
    weights, gradients, optimizer = (2, 2, 12) if precision == "bf16" else (4, 4, 8)
    return round(
        total
        * (
            weights / (n_workers if zero_stage >= 3 else 1)
            + gradients / (n_workers if zero_stage >= 2 else 1)
            + optimizer / (n_workers if zero_stage >= 1 else 1)
        )
    )


def rows(recipe: Recipe) -> list[tuple[str, str, str]]:
    """Each derived quantity: name, value, formula."""
    model, pretrain, scaling = recipe.model, recipe.pretrain, recipe.scaling
    count = parameters(model)
    tokens = sum(phase.tokens for phase in pretrain.phases)
    derived = [
        ("parameters outside embeddings", f"{count['body']:,}", "layers × (attention + SwiGLU) + norms"),
        (
            "parameters",
            f"{count['total']:,}",
            "the above + vocabulary × width" + (" × 2" if not model.tie_embeddings else ""),
        ),
        ("head size", f"{model.head_dim}", "d_model / n_heads"),
        (
            "KV cache per token",
            f"{4 * model.n_layers * model.n_kv_heads * model.head_dim:,} B",
            "2 × layers × kv heads × head size × 2 bytes (bf16)",
        ),
        ("pretraining tokens", f"{tokens:,}", "sum over phases"),
        ("tokens per parameter", f"{tokens / count['total']:.2f}", "Chinchilla: about 20"),
    ]
    first = 0
    for phase in pretrain.phases:
        steps = phase.tokens // pretrain.global_batch
        derived.append(
            (
                f"{phase.name}: steps",
                f"{steps:,} ({first:,} to {first + steps:,})",
                f"{phase.tokens:,} tokens / {pretrain.global_batch:,} per step, context {phase.context}",
            )
        )
        first += steps
    accumulation = max(1, pretrain.global_batch // scaling.n_workers // pretrain.micro_batch)
    zero = int(scaling.zero_stage)
    state = training_bytes(count["total"], scaling.n_workers, zero, scaling.precision)
    flops = 6 * count["total"] * tokens
    derived += [
        (
            "warm-up steps",
            f"{pretrain.warmup_tokens // pretrain.global_batch:,}",
            "warmup_tokens / global_batch",
        ),
        ("gradient accumulation", f"{accumulation}", "global_batch / n_workers / micro_batch"),
        (
            "model state per worker",
            f"{state / 2**20:,.1f} MiB",
            f"ZeRO-{zero}, {scaling.precision}: weights + gradients + AdamW, without activations",
        ),
        ("training compute", f"{flops:.3g} FLOPs", "6 × parameters × tokens, attention scores not counted"),
    ]
    return derived


def show(recipe: Recipe, run_url: str) -> None:
    """Prints the resolved recipe as JSON and what follows from it."""
    console.say(json.dumps(to_jsonable(recipe), indent=2, ensure_ascii=False))
    console.say(f"\nrun folder: {run_url}")
    console.table("What follows", ("quantity", "value", "formula"), rows(recipe))
