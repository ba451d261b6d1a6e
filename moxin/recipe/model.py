"""The shape of a model."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ModelConfig:
    """A pre-norm decoder without biases. The defaults are those of Mistral (arXiv 2310.06825); MPT is the same decoder with
    `norm="layer"`, `activation="gelu"`, `position="alibi"`, `init="kaiming"` and tied embeddings."""

    n_layers: int = 4
    d_model: int = 192
    n_heads: int = 6
    n_kv_heads: int = 2
    """Key/value heads; `n_heads` is multi-head attention, 1 multi-query, between them grouped-query (arXiv 2305.13245)."""
    d_ff: int = 512
    """Hidden width of the feed-forward block."""
    vocab_size: int = 2048
    """Rows of the embedding; at least the tokenizer's size. `padded_vocab` rounds that up for the GPU's sake."""
    max_seq_len: int = 256
    """Longest context trained, in tokens; goes into the released configuration."""
    sliding_window: int | None = None
    """How many positions (itself included) a query sees; None is full causal attention."""
    layer_windows: tuple[int, ...] = ()
    """Windows of the layers in turn, over and over, in place of `sliding_window`; 0 is full attention."""
    norm: Literal["rms", "layer"] = "rms"
    """RMSNorm, or LayerNorm without bias whose input and output keep the model's type (MPT's `low_precision_layernorm`)."""
    norm_eps: float = 1e-5
    activation: Literal["swiglu", "gelu"] = "swiglu"
    """SwiGLU (arXiv 2002.05202), or two matrices around the exact GELU."""
    position: Literal["rope", "alibi", "learned", "none"] = "rope"
    rope_theta: float = 10_000.0
    alibi_bias_max: float = 8.0
    """The gentlest ALiBi slope is 2 to the power of minus this (arXiv 2108.12409)."""
    clip_qkv: float | None = None
    """Queries, keys and values are clamped to plus or minus this (MPT-30B: 6)."""
    qk_norm: bool = False
    """Whether all queries of a token, and all keys, go through a norm together (llm-foundry's `qk_ln`)."""
    tie_embeddings: bool = False
    init: Literal["normal", "kaiming"] = "normal"
    """`normal`: matrices normal(0, `init_std`), Mistral's. `kaiming`: normal(0, sqrt(2 / fan-in)), with the projections that
    end a residual branch divided by sqrt(2 x layers), MPT's."""
    init_std: float = 0.02

    @property
    def head_dim(self) -> int:
        return self.d_model // self.n_heads

    @property
    def windows(self) -> tuple[int | None, ...]:
        """Every layer's window."""
        if not self.layer_windows:
            return (self.sliding_window,) * self.n_layers
        return tuple(
            self.layer_windows[layer % len(self.layer_windows)] or None for layer in range(self.n_layers)
        )

    @property
    def widest_window(self) -> int | None:
        """How far back any layer looks; None where one sees everything."""
        windows = [window for window in self.windows if window is not None]
        return max(windows) if len(windows) == self.n_layers else None

    def validate(self) -> None:
        """Raises `ValueError` with the setting, its value and the fix."""
        for name in ("n_layers", "d_model", "n_heads", "n_kv_heads", "d_ff", "vocab_size", "max_seq_len"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} = {getattr(self, name)}: must be at least 1")
        if self.d_model % self.n_heads:
            raise ValueError(
                f"model.d_model = {self.d_model} is not a multiple of model.n_heads = {self.n_heads}"
            )
        if self.position == "rope" and self.head_dim % 2:
            raise ValueError(
                f"model.d_model / model.n_heads = {self.head_dim}: RoPE rotates pairs, make it even"
            )
        if self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"model.n_heads = {self.n_heads} is not a multiple of model.n_kv_heads = {self.n_kv_heads}: every "
                "key/value head must serve the same number of query heads"
            )
        if self.sliding_window is not None and self.sliding_window < 1:
            raise ValueError(
                f"model.sliding_window = {self.sliding_window}: at least 1, or none for full attention"
            )
        if self.layer_windows and self.sliding_window is not None:
            raise ValueError(
                f"model.layer_windows = {list(self.layer_windows)} replaces model.sliding_window = "
                f"{self.sliding_window}: set that to none"
            )
        if self.layer_windows and min(self.layer_windows) < 0:
            raise ValueError(
                f"model.layer_windows = {list(self.layer_windows)}: at least 1, or 0 for full attention"
            )
        if self.clip_qkv is not None and self.clip_qkv <= 0:
            raise ValueError(f"model.clip_qkv = {self.clip_qkv}: must be above 0, or none for no clipping")
        for name in ("rope_theta", "alibi_bias_max", "norm_eps", "init_std"):
            if not getattr(self, name) > 0:
                raise ValueError(f"model.{name} = {getattr(self, name)}: must be above 0")
        owners = {
            "rope_theta": ("position", "rope"),
            "alibi_bias_max": ("position", "alibi"),
            "init_std": ("init", "normal"),
        }
        for name, (owner, needed) in owners.items():
            if getattr(self, name) != getattr(ModelConfig, name) and getattr(self, owner) != needed:
                raise ValueError(
                    f"model.{name} = {getattr(self, name)} has no effect with model.{owner} = {getattr(self, owner)}: "
                    f"it belongs to {needed}"
                )


def padded_vocab(n_tokens: int, multiple: int = 128) -> int:
    """Rows of an embedding for a tokenizer of `n_tokens`: whole tiles of the GPU's matrix units.

    llm-foundry measured up to four points of MFU between 50,257 and 50,432 rows. Rows beyond the tokenizer are never
    targets; they are trained down like any other token that does not come.
    """
    return -(-n_tokens // multiple) * multiple
