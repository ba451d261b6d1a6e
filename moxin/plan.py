"""What follows from a recipe, with the formula: parameters, steps, memory, compute. What `--dry-run` prints."""

import json

from moxin import console
from moxin.config import to_jsonable
from moxin.recipe import ModelConfig, Recipe


def parameters(model: ModelConfig) -> dict[str, int]:
    """Parameter counts of the decoder by part."""
    q, kv = model.n_heads * model.head_dim, model.n_kv_heads * model.head_dim
    attention = model.d_model * (q + 2 * kv) + q * model.d_model
    mlp = (3 if model.activation == "swiglu" else 2) * model.d_model * model.d_ff
    norms = (2 * model.n_layers + 1) * model.d_model + (model.n_layers * (q + kv) if model.qk_norm else 0)
    positions = model.max_seq_len * model.d_model if model.position == "learned" else 0
    embeddings = model.vocab_size * model.d_model * (1 if model.tie_embeddings else 2)
    body = model.n_layers * (attention + mlp) + norms + positions
    return {"body": body, "embeddings": embeddings, "total": body + embeddings}


def model_rows(model: ModelConfig) -> list[tuple[str, str, str]]:
    """What follows from a model's shape: quantity, value, formula."""
    count = parameters(model)
    kv_bytes = 4 * model.n_layers * model.n_kv_heads * model.head_dim
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
        *model_rows(model),
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
        if rest := model.max_seq_len % phase.context:
            share = f"{rest / model.max_seq_len:.1%} of every source"
            formula = f"context {phase.context} does not divide max_seq_len {model.max_seq_len}: the end of each such piece"
            derived.append((f"{phase.name}: never read", share, formula))
        first += steps
    micro_batch = pretrain.phases[0].context if pretrain.micro_batch == "auto" else pretrain.micro_batch
    accumulation = max(1, pretrain.global_batch // scaling.n_workers // micro_batch)
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
