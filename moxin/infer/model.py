"""A decoder as inference computes it: `moxin.model.decoder` over the tokens of many sequences in one line, keys and values
in pages, weights dense or quantised, nothing kept for a way back.

Letters of tensor names as in `moxin.model.decoder` and `kernels.paged_attention`: N tokens of all sequences.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from kernels.alibi import alibi_slopes
from kernels.backend import has_numba
from kernels.linear import Weight, linear
from kernels.norm import add_layer_norm, add_rms_norm, layer_norm, rms_norm
from kernels.paged_attention import Queries, paged_attention
from kernels.rope import rope_, rotation
from kernels.swiglu import gelu, swiglu
from moxin.infer.cache import PagedCache
from moxin.model.decoder import Block, Decoder
from moxin.recipe import ModelConfig

if TYPE_CHECKING:
    from kernels.decoder_numba import LayerStack


@dataclass(frozen=True)
class Layer:
    attention_norm_E: Tensor
    qkv: Weight
    out: Weight
    mlp_norm_E: Tensor
    up: Weight
    down: Weight
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None


@dataclass(frozen=True)
class InferenceModel:
    """Weights and shape. Activations have `dtype`: float32 on a CPU, on a GPU what the weights are (quantised: were)."""

    config: ModelConfig
    embedding: Weight
    layers: tuple[Layer, ...]
    norm_E: Tensor
    head: Weight
    dtype: torch.dtype
    position_LE: Tensor | None = None
    """Learned positions."""

    @classmethod
    def of(cls, model: Decoder) -> "InferenceModel":
        """The decoder's own parameters, not copied; they may be trained on between steps."""
        device, stored = model.embedding.weight.device, model.embedding.weight.dtype
        table = Weight(model.embedding.weight.detach())
        head = table if model.config.tie_embeddings else Weight(model.head.weight.detach())
        layers = []
        for block in cast(list[Block], list(model.blocks)):
            attention, mlp = block.attention, block.mlp
            norms = (attention.q_norm, attention.k_norm) if model.config.qk_norm else ()
            layers.append(
                Layer(
                    block.attention_norm.weight.detach(),
                    Weight(attention.qkv.weight.detach()),
                    Weight(attention.out.weight.detach()),
                    block.mlp_norm.weight.detach(),
                    Weight(mlp.up.weight.detach()),
                    Weight(mlp.down.weight.detach()),
                    *(norm.weight.detach() for norm in norms),
                )
            )
        return cls(
            model.config,
            table,
            tuple(layers),
            model.norm.weight.detach(),
            head,
            activation_dtype(stored, device),
            model.position.weight.detach() if model.config.position == "learned" else None,
        )

    @property
    def device(self) -> torch.device:
        return self.norm_E.device

    @property
    def n_bytes(self) -> int:
        """Of all weights; shared ones count once."""
        tables = [self.embedding] if self.head is self.embedding else [self.embedding, self.head]
        tables += [weight for layer in self.layers for weight in (layer.qkv, layer.out, layer.up, layer.down)]
        norms = [
            self.norm_E,
            *(x for layer in self.layers for x in (layer.attention_norm_E, layer.mlp_norm_E)),
        ]
        return sum(weight.n_bytes for weight in tables) + sum(x.numel() * x.itemsize for x in norms)

    def hidden(
        self,
        tokens_N: Tensor,
        cache: PagedCache,
        queries: Sequence[Queries],
        few_rows: int | None = None,
        stack: "LayerStack | None" = None,
    ) -> Tensor:
        """What the output projection reads, [N, E]; the tokens' keys and values are written to the cache on the way.
        `few_rows` as of `kernels.linear`; with a `stack` of this cache, see `stack`, the layers are one call."""
        config = self.config
        positions_N, longest = queries[0].positions_N, queries[0].longest
        by = slopes_H = None
        if config.position == "rope":
            by = rotation(positions_N.unsqueeze(0), config.head_dim, config.rope_theta, longest)
        elif config.position == "alibi":
            slopes_H = alibi_slopes(config.n_heads, config.alibi_bias_max, tokens_N.device)
        x_NE = self.embedding.rows(tokens_N, self.dtype)
        if self.position_LE is not None:
            x_NE = x_NE + self.position_LE[positions_N].to(self.dtype)
        if stack is not None:
            return stack.run(x_NE, queries[0], by, slopes_H)
        entries = [of.entries(cache.page_size) for of in queries]
        first, others = (rms_norm, add_rms_norm) if config.norm == "rms" else (layer_norm, add_layer_norm)
        activation = swiglu if config.activation == "swiglu" else gelu
        split = (config.n_heads, config.n_kv_heads, config.n_kv_heads)
        delta_NE: Tensor | None = None
        for number, layer in enumerate(self.layers):
            if delta_NE is None:
                h_NE = first(x_NE, layer.attention_norm_E, config.norm_eps)
            else:
                h_NE, x_NE = others(x_NE, delta_NE, layer.attention_norm_E, config.norm_eps)
            qkv = linear(h_NE, layer.qkv, few_rows=few_rows)
            if config.clip_qkv is not None:
                qkv = qkv.clamp_(-config.clip_qkv, config.clip_qkv)
            if layer.q_norm is not None and layer.k_norm is not None:
                q, k, v = qkv.split([n * config.head_dim for n in split], -1)
                q, k = first(q, layer.q_norm, config.norm_eps), first(k, layer.k_norm, config.norm_eps)
                qkv = torch.cat([q, k, v], -1)
            qkv_1NXD = qkv.view(1, len(qkv), sum(split), config.head_dim)
            if by is not None:
                qkv_1NXD = rope_(qkv_1NXD, by, config.n_heads + config.n_kv_heads)
            q_NHD, k_NKD, v_NKD = qkv_1NXD[0].split(split, 1)
            group, window, pages = cache.layer(number)
            pages.write(entries[group], k_NKD, v_NKD)
            out_NHD = paged_attention(q_NHD, pages, queries[group], window, slopes_H)
            h_NE, x_NE = others(
                x_NE,
                linear(out_NHD.flatten(1), layer.out, few_rows=few_rows),
                layer.mlp_norm_E,
                config.norm_eps,
            )
            up = activation(linear(h_NE, layer.up, few_rows=few_rows))
            delta_NE = linear(up, layer.down, few_rows=few_rows)
        assert delta_NE is not None
        return others(x_NE, delta_NE, self.norm_E, config.norm_eps)[0]

    def stack(self, cache: PagedCache) -> "LayerStack | None":
        """All layers over this cache as one call for few tokens, or None where there is none for such a model."""
        config = self.config
        if self.device.type != "cpu" or self.dtype != torch.float32 or config.qk_norm or not has_numba():
            return None
        from kernels.decoder_numba import LayerStack, LayerTensors, Shape  # numba takes 0.3 s to import

        tensors = []
        for number, layer in enumerate(self.layers):
            group, window, pages = cache.layer(number)
            tensors.append(
                LayerTensors(
                    layer.attention_norm_E,
                    layer.qkv,
                    layer.out,
                    layer.mlp_norm_E,
                    layer.up,
                    layer.down,
                    pages,
                    window,
                    torch.from_numpy(cache.groups[group].table_RC),
                )
            )
        if not LayerStack.suits(tensors):
            return None
        shape = Shape(
            config.n_heads,
            config.n_kv_heads,
            config.head_dim,
            config.norm_eps,
            config.norm != "rms",
            config.activation == "swiglu",
            config.clip_qkv,
        )
        return LayerStack(tensors, self.norm_E, shape)

    def logits(self, x_NE: Tensor, few_rows: int | None = None) -> Tensor:
        """[N, V], float32."""
        return linear(x_NE, self.head, few_rows=few_rows).float()


def activation_dtype(weights: torch.dtype, device: torch.device) -> torch.dtype:
    """On a CPU float32, which costs nothing where weights are what is read; elsewhere the type of the weights."""
    return torch.float32 if device.type == "cpu" and weights != torch.float64 else weights
