"""What a model's shape says: parameters, FLOPs of a token, bytes of the KV cache. Integers, no torch."""

from dataclasses import dataclass

from moxin.recipe import ModelConfig, Recipe


def parameters(model: ModelConfig) -> dict[str, int]:
    """Parameter counts of the decoder by part."""
    q, kv = model.n_heads * model.head_dim, model.n_kv_heads * model.head_dim
    attention = model.d_model * (q + 2 * kv) + q * model.d_model
    norms = (2 * model.n_layers + 1) * model.d_model + (model.n_layers * (q + kv) if model.qk_norm else 0)
    positions = model.max_seq_len * model.d_model if model.position == "learned" else 0
    embeddings = model.vocab_size * model.d_model * (1 if model.tie_embeddings else 2)
    body = model.n_layers * (attention + feed_forward(model)) + norms + positions
    return {"body": body, "embeddings": embeddings, "total": body + embeddings}


def feed_forward(model: ModelConfig) -> int:
    """Parameters of a layer's feed-forward half, norm aside."""
    return (3 if model.activation == "swiglu" else 2) * model.d_model * model.d_ff


def block_parameters(model: ModelConfig) -> int:
    """Parameters of one layer's matrices."""
    heads = 2 * model.n_heads + 2 * model.n_kv_heads
    return model.d_model * heads * model.head_dim + feed_forward(model)


def in_matrices(model: ModelConfig) -> int:
    """Parameters that a token is multiplied with: the layers' matrices and the output projection, shared or not.

    The embedding is looked up, norms and positions are added or scaled: they cost no product.
    """
    return model.n_layers * block_parameters(model) + model.vocab_size * model.d_model


def keys_seen(context: int, window: int | None) -> float:
    """How many keys a query sees on average in a full row, itself included: causal, and no further back than the window."""
    window = min(window or context, context)
    return window - window * (window - 1) / (2 * context)


def flops_per_token(model: ModelConfig, context: int, *, window_counted: bool) -> tuple[float, float]:
    """FLOPs of a token, forward and in training (three times that), without what recomputation adds.

    Two conventions, and an MFU means nothing without saying which:

    - `window_counted=False`: 6N + 12 L d s of llm-foundry (and PaLM, arXiv 2204.02311, appendix B): N all parameters, and
      every query meets every key of the row. Comparable with published tables; it counts work that nobody does.
    - `window_counted=True`: the products that are made: 2 for each parameter in a matrix, the embedding left out, and
      4 H D for each key that causal attention and the layer's window let a query see.

    Norms, activations, rotations and softmax are in neither. A row of several documents does less: attention ends at each.
    """
    if not window_counted:
        heads = model.n_heads * model.head_dim
        forward = 2.0 * parameters(model)["total"] + 4.0 * model.n_layers * heads * context
    else:
        forward = 2.0 * in_matrices(model) + attention_flops(model, context)
    return forward, 3 * forward


def attention_flops(model: ModelConfig, context: int) -> float:
    """FLOPs of a token's scores and sums over values, forward, all layers, causal and window counted."""
    keys = sum(keys_seen(context, window) for window in model.windows)
    return 4.0 * model.n_heads * model.head_dim * keys


def recomputed_flops(model: ModelConfig, context: int, recompute: str, *, window_counted: bool) -> float:
    """FLOPs of a token that `scaling.recompute` adds on the way back; HFU counts them and MFU does not.

    `selective`: the feed-forward half of every layer once more. `full`: every layer once more; the output projection is
    never made again. In llm-foundry's convention `full` is a whole forward pass.
    """
    if recompute == "none":
        return 0.0
    if recompute == "selective":
        return 2.0 * model.n_layers * feed_forward(model)
    if not window_counted:
        return flops_per_token(model, context, window_counted=False)[0]
    return 2.0 * model.n_layers * block_parameters(model) + attention_flops(model, context)


@dataclass(frozen=True)
class Compute:
    """Training FLOPs of all phases, in both conventions of `flops_per_token`."""

    full: float
    window_counted: float

    @classmethod
    def of(cls, recipe: Recipe) -> "Compute":
        phases = recipe.pretrain.phases
        full, counted = (
            sum(
                phase.tokens * flops_per_token(recipe.model, phase.context, window_counted=by)[1]
                for phase in phases
            )
            for by in (False, True)
        )
        return cls(full, counted)


def kv_bytes_per_token(model: ModelConfig) -> int:
    """Bytes of keys and values of a token, all layers, bfloat16."""
    return 4 * model.n_layers * model.n_kv_heads * model.head_dim
