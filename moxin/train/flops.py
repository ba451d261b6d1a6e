"""MFU and HFU: the floating-point operations of a step over what the accelerators could do in its time.

MFU counts what the model needs, whatever was computed twice (arXiv 2204.02311, appendix B); HFU also counts what activation
recomputation makes again. Per token, with N parameters, L layers, attention width d = heads x head size, context s:

    full   6 N + 12 L d s                       llm-foundry's: all N, every query sees all s keys
    seen   6 M + 12 sum over layers of d k      M without embedding rows that are only looked up and without norms; k, the
                                                keys a query sees on average: no later ones, none beyond the window

`full` compares with published tables; `seen` is smaller, and the one that does not grow when a window saves work: `mfu` and
`hfu` of a row are in `seen`, `mfu_full` in `full`. Both count a multiplication and an addition as two, the backward pass as
twice the forward one, neither document boundaries nor softmax, and no credit for flash-attention's own recomputation.
"""

from dataclasses import dataclass
from typing import Literal

from moxin.recipe import ModelConfig

Convention = Literal["seen", "full"]
Recompute = Literal["none", "selective", "full"]


def mean_keys(context: int, window: int | None) -> float:
    """Keys that a query sees on average over the positions of a row, itself included: min(i + 1, window) for position i."""
    w = min(window or context, context)
    return (w * (w + 1) / 2 + (context - w) * w) / context


def parameters(model: ModelConfig) -> dict[str, int]:
    """Parameters by how they take part: `attention` and `mlp` (of all layers), `head`, `lookup`, `norms`.

    Tied embeddings are the head; the look-up in them multiplies nothing.
    """
    q, kv = model.n_heads * model.head_dim, model.n_kv_heads * model.head_dim
    matrices = 3 if model.activation == "swiglu" else 2
    rows = model.vocab_size * model.d_model
    learned = model.max_seq_len * model.d_model if model.position == "learned" else 0
    return {
        "attention": model.n_layers * (model.d_model * (q + 2 * kv) + q * model.d_model),
        "mlp": model.n_layers * matrices * model.d_model * model.d_ff,
        "head": rows,
        "lookup": learned + (0 if model.tie_embeddings else rows),
        "norms": (2 * model.n_layers + 1) * model.d_model
        + (model.n_layers * (q + kv) if model.qk_norm else 0),
    }


def forward(model: ModelConfig, context: int, convention: Convention) -> dict[str, float]:
    """FLOPs of a forward pass per token by part: `blocks` (matrices), `mlp` (of these), `scores` (of attention), `head`."""
    n, width = parameters(model), model.n_heads * model.head_dim
    keys = [
        float(context) if convention == "full" else mean_keys(context, window) for window in model.windows
    ]
    uncounted = 2 * (n["lookup"] + n["norms"]) if convention == "full" else 0
    return {
        "blocks": 2.0 * (n["attention"] + n["mlp"]),
        "mlp": 2.0 * n["mlp"],
        "scores": 4.0 * width * sum(keys),
        "head": 2.0 * n["head"] + uncounted,
    }


def needed_per_token(model: ModelConfig, context: int, convention: Convention = "seen") -> float:
    """FLOPs per token, forward and backward, of one training step."""
    part = forward(model, context, convention)
    return 3 * (part["blocks"] + part["scores"] + part["head"])


def done_per_token(
    model: ModelConfig, context: int, recompute: Recompute, convention: Convention = "seen"
) -> float:
    """`needed_per_token` and what recomputation makes again: the blocks' forward pass, or its feed-forward half."""
    part = forward(model, context, convention)
    again = {"none": 0.0, "selective": part["mlp"], "full": part["blocks"] + part["scores"]}[recompute]
    return needed_per_token(model, context, convention) + again


@dataclass(frozen=True)
class Utilization:
    """What a row says of utilization: `Utilization(...)(tokens, seconds, context)`.

    `peak` is of one accelerator, in FLOP/s without sparsity, in the precision that is trained in; 0 where it is not known.
    """

    model: ModelConfig
    n_workers: int
    peak: float
    recompute: Recompute = "none"

    def __call__(self, tokens: int, seconds: float, context: int) -> dict[str, float]:
        """`mfu`, `hfu` and `mfu_full`, from 0 to 1, of a step of `tokens` in rows of `context`; empty without a peak."""
        if not self.peak or seconds <= 0:
            return {}
        could = self.peak * self.n_workers * seconds / tokens
        return {
            "mfu": round(needed_per_token(self.model, context) / could, 5),
            "hfu": round(done_per_token(self.model, context, self.recompute) / could, 5),
            "mfu_full": round(needed_per_token(self.model, context, "full") / could, 5),
        }
