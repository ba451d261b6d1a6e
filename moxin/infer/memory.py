"""What a model and its cache take, by arithmetic: how many tokens of cache a card has room for beside the weights."""

from dataclasses import dataclass

from moxin import console
from moxin.infer.cache import PAGE_SIZE, columns_of
from moxin.recipe import ModelConfig

GIB, MIB = 2**30, 2**20
UTILIZATION = 0.95
"""The share of a card that weights and cache may take. The rest is the CUDA context, about half a GiB, and activations: a
chunk of 2,048 tokens of MPT-30B has 0.3 GiB in its widest layer."""
WEIGHT_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "int8": 1.0, "int4": 0.5}
CACHE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}
SCALE_BYTES = 4


def weight_bytes(config: ModelConfig, weights: str) -> int:
    """Of all parameters. int8 has a scale for every output, 4 bits one for every 32 inputs; norms keep 16 bits."""
    count, matrices = n_parameters(config), _matrices(config)
    if weights not in ("int8", "int4"):
        return int(count * WEIGHT_BYTES[weights])
    in_matrices = sum(rows * columns for rows, columns in matrices)
    n_scales = sum(rows if weights == "int8" else rows * columns // 32 for rows, columns in matrices)
    return int(in_matrices * WEIGHT_BYTES[weights] + n_scales * SCALE_BYTES + (count - in_matrices) * 2)


def n_parameters(config: ModelConfig) -> int:
    """Of `Decoder(config)`, exactly."""
    norms = (2 * config.n_layers + 1) * config.d_model
    if config.qk_norm:
        norms += config.n_layers * (config.n_heads + config.n_kv_heads) * config.head_dim
    positions = config.max_seq_len * config.d_model if config.position == "learned" else 0
    return sum(rows * columns for rows, columns in _matrices(config)) + norms + positions


def _matrices(config: ModelConfig) -> list[tuple[int, int]]:
    """(outputs, inputs) of every matrix that is quantised."""
    heads = (config.n_heads + 2 * config.n_kv_heads) * config.head_dim
    up = config.d_ff * (2 if config.activation == "swiglu" else 1)
    layer = [
        (heads, config.d_model),
        (config.d_model, config.d_model),
        (up, config.d_model),
        (config.d_model, config.d_ff),
    ]
    tables = 1 if config.tie_embeddings else 2
    return layer * config.n_layers + [(config.vocab_size, config.d_model)] * tables


def cache_bytes_per_token(config: ModelConfig, cache: str) -> int:
    """Keys and values of a token in all layers; int8 with a float32 scale for each head."""
    head = config.head_dim * CACHE_BYTES[cache] + (SCALE_BYTES if cache == "int8" else 0)
    return 2 * config.n_layers * config.n_kv_heads * head


def sequence_bytes(config: ModelConfig, n_tokens: int, cache: str, chunk: int = 1) -> int:
    """Most that one sequence of this length holds in the cache at once, whole pages, when `chunk` tokens are written
    together: in windowed layers no more than the window, the chunk and a page."""
    per_layer = cache_bytes_per_token(config, cache) // config.n_layers
    return sum(per_layer * PAGE_SIZE * columns_of(window, n_tokens, chunk) for window in config.windows)


@dataclass(frozen=True)
class Fit:
    """What fits a card."""

    card: int
    usable: int
    weights: int
    per_token: int
    n_tokens: int
    """Tokens of cache, whole pages."""


def fit(
    config: ModelConfig, weights: str, cache: str, card_bytes: int, utilization: float = UTILIZATION
) -> Fit:
    """Raises `ValueError` with the arithmetic where not one page of cache fits, and for an unknown kind of numbers."""
    for name, value, allowed in (("weights", weights, WEIGHT_BYTES), ("cache", cache, CACHE_BYTES)):
        if value not in allowed:
            raise ValueError(f"{name} = {value!r}: one of {', '.join(allowed)}")
    if not 0 < utilization <= 1:
        raise ValueError(f"utilization = {utilization}: above 0 and at most 1")
    taken, per_token = weight_bytes(config, weights), cache_bytes_per_token(config, cache)
    usable = int(card_bytes * utilization)
    n_tokens = (usable - taken) // per_token // PAGE_SIZE * PAGE_SIZE
    if n_tokens < PAGE_SIZE:
        raise ValueError(
            f"{weights} weights take {taken / GIB:.1f} GiB and a page of {PAGE_SIZE} tokens "
            f"{PAGE_SIZE * per_token / MIB:.1f} MiB of {cache} cache; of the card's {card_bytes / GIB:.1f} GiB "
            f"{utilization:.0%} are {usable / GIB:.1f} GiB: no token fits. Take {_smaller(weights)}, or a larger card"
        )
    return Fit(card_bytes, usable, taken, per_token, n_tokens)


def _smaller(weights: str) -> str:
    return {"int8": "int4 weights", "int4": "more than one card"}.get(weights, "int8 weights")


def rows(config: ModelConfig, found: Fit, weights: str, cache: str) -> list[tuple[str, str, str]]:
    """Quantity, value, formula: a part of a plan."""
    count = n_parameters(config)
    sequences = sequence_bytes(config, config.max_seq_len, cache)
    per_sequence = -(-sequences // found.per_token)
    return [
        ("weights", f"{found.weights / GIB:.1f} GiB", f"{count:,} parameters in {weights}, scales included"),
        (
            "cache per token",
            f"{found.per_token / MIB:.3f} MiB",
            f"2 × layers × kv heads × head size in {cache}" + (", with scales" if cache == "int8" else ""),
        ),
        (
            "room for the cache",
            f"{(found.usable - found.weights) / GIB:.1f} GiB",
            f"{found.usable / GIB:.1f} GiB - weights",
        ),
        ("tokens of cache", f"{found.n_tokens:,}", "room / cache per token, whole pages"),
        (
            f"sequences of {config.max_seq_len:,} tokens",
            f"{found.n_tokens / per_sequence:.2f}",
            f"each holds {per_sequence:,} tokens of cache",
        ),
    ]


def show(config: ModelConfig, weights: str, cache: str, card_bytes: int) -> None:
    """Prints the table; raises `ValueError` as `fit`."""
    found = fit(config, weights, cache, card_bytes)
    title = f"{weights} weights and {cache} cache on a card of {card_bytes / GIB:.0f} GiB"
    console.table(title, ("quantity", "value", "formula"), rows(config, found, weights, cache))
