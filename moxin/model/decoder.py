"""The decoder of the Mistral family (arXiv 2310.06825): RMSNorm, RoPE, grouped-query and sliding-window attention, SwiGLU.

Letters of tensor names: B rows of the batch, T tokens, E the model's width (`d_model`), H query heads, K key/value heads,
D the head's width, V vocabulary, N = B x T. Parameters have the names of `MistralForCausalLM`, so a checkpoint is one.

Parameters may be bfloat16 or float32. Products run in `matmul_dtype` of that; norms, rotations, softmax and loss in float32.
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.attention import Mask, attention
from kernels.cross_entropy import linear_cross_entropy
from kernels.norm import rms_norm
from kernels.precision import matmul_dtype
from kernels.rope import Rotation, apply_rope, rotation
from kernels.swiglu import swiglu
from moxin.recipe import ModelConfig


class Cache(Protocol):
    """Keys and values of earlier tokens (`moxin.infer.cache`)."""

    def begin(self, positions_BT: Tensor) -> Mask:
        """Called once per forward pass with the positions of its tokens, -1 for padding; what each of them sees."""

    def update(self, layer: int, k_BTKD: Tensor, v_BTKD: Tensor) -> tuple[Tensor, Tensor]:
        """Keeps a layer's new keys and values; returns those to attend to, in the order of the mask."""


class Linear(nn.Module):
    """`x @ weight.T`, the weight brought to the type of `x`."""

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(d_out, d_in))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


class Head(Linear):
    """The output projection: logits, or with targets each token's loss without the logits."""

    def forward(self, x_BTE: Tensor, targets_BT: Tensor | None = None) -> Tensor:
        weight_VE = self.weight.to(x_BTE.dtype)
        if targets_BT is None:
            return F.linear(x_BTE, weight_VE)
        return linear_cross_entropy(x_BTE.flatten(0, 1), weight_VE, targets_BT.flatten()).view_as(targets_BT)


class RMSNorm(nn.Module):
    def __init__(self, d: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(d))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        self.q_proj = Linear(config.d_model, config.n_heads * config.head_dim)
        self.k_proj = Linear(config.d_model, config.n_kv_heads * config.head_dim)
        self.v_proj = Linear(config.d_model, config.n_kv_heads * config.head_dim)
        self.o_proj = Linear(config.n_heads * config.head_dim, config.d_model)

    def forward(self, x_BTE: Tensor, by: Rotation, mask: Mask, cache: Cache | None) -> Tensor:
        heads = (self.q_proj(x_BTE), self.k_proj(x_BTE), self.v_proj(x_BTE))
        q_BTHD, k_BTKD, v_BTKD = (x.unflatten(-1, (-1, self.head_dim)) for x in heads)
        q_BTHD, k_BTKD = apply_rope(q_BTHD, by), apply_rope(k_BTKD, by)
        if cache is not None:
            k_BTKD, v_BTKD = cache.update(self.layer, k_BTKD, v_BTKD)
        return self.o_proj(attention(q_BTHD, k_BTKD, v_BTKD, mask).flatten(2))


class MLP(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.d_model, config.d_ff)
        self.up_proj = Linear(config.d_model, config.d_ff)
        self.down_proj = Linear(config.d_ff, config.d_model)

    def forward(self, x_BTE: Tensor) -> Tensor:
        return self.down_proj(swiglu(self.gate_proj(x_BTE), self.up_proj(x_BTE)))


class Block(nn.Module):
    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.d_model, config.norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.d_model, config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x_BTE: Tensor, by: Rotation, mask: Mask, cache: Cache | None) -> Tensor:
        x_BTE = x_BTE + self.self_attn(self.input_layernorm(x_BTE), by, mask, cache)
        return x_BTE + self.mlp(self.post_attention_layernorm(x_BTE))


class Embedding(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.vocab_size, config.d_model))

    def forward(self, tokens_BT: Tensor, dtype: torch.dtype) -> Tensor:
        # Widened before the look-up, so that the gradients of a frequent token are summed in the wider type.
        return F.embedding(tokens_BT, self.weight.to(dtype))


class Body(nn.Module):
    """Embedding, blocks and last norm: what `transformers` calls `MistralModel`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = Embedding(config)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.norm = RMSNorm(config.d_model, config.norm_eps)

    def forward(
        self,
        tokens_BT: Tensor,
        segments_BT: Tensor | None = None,
        cache: Cache | None = None,
        positions_BT: Tensor | None = None,
    ) -> Tensor:
        if cache is not None:
            if positions_BT is None or segments_BT is not None:
                raise ValueError("a cache needs positions_BT and takes no segments_BT: one document per row")
            mask = cache.begin(positions_BT)
        else:
            mask = Mask.packed(tokens_BT.shape[1], tokens_BT.device, self.config.sliding_window, segments_BT)
            if positions_BT is None:
                positions_BT = mask.q_index_BT if segments_BT is None else positions_in_segments(segments_BT)
        by = rotation(positions_BT, self.config.head_dim, self.config.rope_theta)
        x_BTE = self.embed_tokens(tokens_BT, matmul_dtype(self.embed_tokens.weight.dtype, tokens_BT.device))
        for block in self.layers:
            x_BTE = block(x_BTE, by, mask, cache)
        return self.norm(x_BTE)


class Decoder(nn.Module):
    """A causal language model; initialised with seed 0 unless it is built on the meta device."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        config.validate()
        self.config = config
        self.model = Body(config)
        self.lm_head = Head(config.d_model, config.vocab_size)
        if config.tie_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        if not self.lm_head.weight.is_meta:
            self.reset(0)

    def forward(
        self,
        tokens_BT: Tensor,
        segments_BT: Tensor | None = None,
        targets_BT: Tensor | None = None,
        cache: Cache | None = None,
        positions_BT: Tensor | None = None,
    ) -> Tensor:
        """Logits [B, T, V]; with `targets_BT` each token's negative log-likelihood in nats, float32, 0 where it is -100.

        `tokens_BT` and `targets_BT` are int64. `segments_BT` numbers the documents packed into a row: attention never
        crosses from one to another, and positions start again at 0. With a `cache` the row goes on where the cache ends:
        `positions_BT` says where that is, -1 marks padding. Raises `ValueError` for a cache together with segments.
        """
        return self.lm_head(self.model(tokens_BT, segments_BT, cache, positions_BT), targets_BT)

    @torch.no_grad()
    def reset(self, seed: int) -> None:
        """Mistral's initialisation: matrices normal(0, `init_std`), norms 1; the same numbers on every device and type."""
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            if parameter.ndim == 1:
                parameter.fill_(1.0)
            else:
                values = torch.empty(parameter.shape, dtype=torch.float32)
                parameter.copy_(values.normal_(0.0, self.config.init_std, generator=generator))

    def n_parameters(self, embeddings: bool = True) -> int:
        """Parameters in all, or without the embedding and the output projection; shared ones count once."""
        total = sum(parameter.numel() for parameter in self.parameters())
        if embeddings:
            return total
        tables = {id(table): table.numel() for table in (self.model.embed_tokens.weight, self.lm_head.weight)}
        return total - sum(tables.values())


def positions_in_segments(segments_BT: Tensor) -> Tensor:
    """Each token's distance from the start of its document, int64 [B, T]."""
    index_T = torch.arange(segments_BT.shape[1], device=segments_BT.device)
    starts_BT = torch.zeros_like(segments_BT, dtype=torch.int64)
    starts_BT[:, 1:] = (segments_BT[:, 1:] != segments_BT[:, :-1]) * index_T[1:]
    return index_T - starts_BT.cummax(1).values
