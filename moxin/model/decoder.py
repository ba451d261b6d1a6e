"""One decoder for both families: Mistral and Moxin (arXiv 2310.06825, 2412.06845), MPT (github.com/mosaicml/llm-foundry).

Letters of tensor names: B rows of the batch, T tokens, E the model's width (`d_model`), H query heads, K key/value heads,
X = H + 2K all heads, D a head's width, F the feed-forward width, V vocabulary.

A block reads `x + delta`, the residual stream and what the block before adds to it, and leaves the same pair: so every sum
is made inside the norm that reads it. Queries, keys and values are one projection, gate and up another; the checkpoint
layouts (`moxin.model.layouts`) cut and join them.

Parameters may be bfloat16 or float32. Products run in `matmul_dtype` of that; norms, rotations, softmax and loss in float32.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kernels.alibi import alibi_slopes
from kernels.attention import Mask, attention
from kernels.cross_entropy import linear_cross_entropy, linear_cross_entropy_sum
from kernels.norm import add_layer_norm, add_rms_norm, layer_norm, rms_norm
from kernels.precision import matmul_dtype
from kernels.rope import Rotation, rope_, rotation
from kernels.swiglu import gelu, swiglu
from moxin.recipe import ModelConfig

Recompute = Literal["none", "selective", "full"]
RESIDUAL = ("attention.out.weight", "mlp.down.weight")
"""What a block adds to the residual stream comes out of these two."""


class Linear(nn.Module):
    """`x @ weight.T`, the weight brought to the type of `x`."""

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(d_out, d_in))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


class Head(nn.Module):
    """The output projection: logits, or with targets the loss without the logits."""

    def __init__(self, d: int, n_rows: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_rows, d))

    def forward(
        self, x_BTE: Tensor, targets_BT: Tensor | None = None, reduction: str = "none", z_loss: float = 0.0
    ) -> Tensor | tuple[Tensor, Tensor]:
        device = x_BTE.device.type
        if torch.is_autocast_enabled(device):
            x_BTE = x_BTE.to(torch.get_autocast_dtype(device))
        weight_VE = self.weight.to(x_BTE.dtype)
        if targets_BT is None:
            return F.linear(x_BTE, weight_VE)
        x_NE, targets_N = x_BTE.flatten(0, 1), targets_BT.flatten()
        if reduction == "sum":
            loss, nll_N = linear_cross_entropy_sum(x_NE, weight_VE, targets_N, z_loss)
            return loss, nll_N.view_as(targets_BT)
        return linear_cross_entropy(x_NE, weight_VE, targets_N).view_as(targets_BT)


class Norm(nn.Module):
    def __init__(self, config: ModelConfig, d: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(d))
        self.eps = config.norm_eps
        self.alone, self.after_sum = (
            (rms_norm, add_rms_norm) if config.norm == "rms" else (layer_norm, add_layer_norm)
        )

    def forward(self, x: Tensor, delta: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The norm of `x + delta`, and that sum."""
        if delta is None:
            return self.alone(x, self.weight, self.eps), x
        # Under autocast a block's answer is narrower than the stream that it is added to.
        return self.after_sum(x, delta.to(x.dtype), self.weight, self.eps)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        self.split = (config.n_heads, config.n_kv_heads, config.n_kv_heads)
        self.qkv = Linear(config.d_model, sum(self.split) * config.head_dim)
        self.out = Linear(config.d_model, config.d_model)
        if config.qk_norm:
            self.q_norm = Norm(config, config.n_heads * config.head_dim)
            self.k_norm = Norm(config, config.n_kv_heads * config.head_dim)

    def forward(self, x_BTE: Tensor, mask: Mask, by: Rotation | None, slopes_H: Tensor | None) -> Tensor:
        config, (n_q, n_kv, _) = self.config, self.split
        qkv = self.qkv(x_BTE)
        if config.clip_qkv is not None:
            qkv = qkv.clamp(-config.clip_qkv, config.clip_qkv)
        if config.qk_norm:
            q, k, v = qkv.split([n * config.head_dim for n in self.split], -1)
            qkv = torch.cat([self.q_norm(q)[0], self.k_norm(k)[0], v], -1)
        # Not `unflatten`: autograd copies the gradient of a view that is changed in place, twice.
        qkv_BTXD = torch.ops.aten._unsafe_view(qkv, [*qkv.shape[:2], sum(self.split), config.head_dim])
        if by is not None:
            qkv_BTXD = rope_(qkv_BTXD, by, n_q + n_kv)
        q_BTHD, k_BTKD, v_BTKD = qkv_BTXD.split(self.split, 2)
        return self.out(attention(q_BTHD, k_BTKD, v_BTKD, mask, alibi_slopes_H=slopes_H).flatten(2))


class MLP(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation = swiglu if config.activation == "swiglu" else gelu
        self.up = Linear(config.d_model, config.d_ff * (2 if config.activation == "swiglu" else 1))
        self.down = Linear(config.d_ff, config.d_model)

    def forward(self, x_BTE: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x_BTE)))


class Block(nn.Module):
    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = Norm(config, config.d_model)
        self.attention = Attention(config, layer)
        self.mlp_norm = Norm(config, config.d_model)
        self.mlp = MLP(config)

    def forward(
        self,
        x_BTE: Tensor,
        delta_BTE: Tensor | None,
        mask: Mask,
        by: Rotation | None,
        slopes_H: Tensor | None,
        recompute_mlp: bool = False,
    ) -> tuple[Tensor, Tensor]:
        h_BTE, x_BTE = self.attention_norm(x_BTE, delta_BTE)
        h_BTE, x_BTE = self.mlp_norm(x_BTE, self.attention(h_BTE, mask, by, slopes_H))
        if recompute_mlp:
            return x_BTE, checkpoint(self.mlp, h_BTE, use_reentrant=False)
        return x_BTE, self.mlp(h_BTE)


class Embedding(nn.Module):
    def __init__(self, n_rows: int, d: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_rows, d))

    def forward(self, ids: Tensor, dtype: torch.dtype, setting: str) -> Tensor:
        if ids.device.type == "cpu" and ids.numel():  # elsewhere a look would wait for the device
            low, high = (int(bound) for bound in ids.aminmax())
            if low < 0 or high >= len(self.weight):
                raise ValueError(
                    f"ids from {low} to {high} where model.{setting} = {len(self.weight)}: they must lie in 0 to "
                    f"{len(self.weight) - 1}"
                )
        # Widened before the look-up, so that the gradients of a frequent token are summed in the wider type.
        return F.embedding(ids, self.weight.to(dtype))


class Decoder(nn.Module):
    """A causal language model, initialised with `seed`; with None, or on the meta device, its weights hold nothing yet.

    `recompute="full"` keeps no activations inside a block and computes them again on the way back: about a third more
    arithmetic for memory of two tensors [B, T, E] a block. `"selective"` does so for the feed-forward half alone, whose
    activations are the largest.
    """

    def __init__(self, config: ModelConfig, seed: int | None = 0, recompute: Recompute = "none") -> None:
        super().__init__()
        config.validate()
        self.config, self.recompute = config, recompute
        self.embedding = Embedding(config.vocab_size, config.d_model)
        if config.position == "learned":
            self.position = Embedding(config.max_seq_len, config.d_model)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.norm = Norm(config, config.d_model)
        self.head = Head(config.d_model, config.vocab_size)
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight
        if seed is not None and not self.head.weight.is_meta:
            self.reset(seed)

    def forward(
        self,
        tokens_BT: Tensor,
        segments_BT: Tensor | None = None,
        targets_BT: Tensor | None = None,
        positions_BT: Tensor | None = None,
        reduction: Literal["none", "sum"] = "none",
        z_loss: float = 0.0,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Logits [B, T, V]; with `targets_BT` each token's negative log-likelihood in nats, float32, 0 where it is -100.

        `tokens_BT` and `targets_BT` are int64. `segments_BT` numbers the documents packed into a row: attention never
        crosses from one to another, and positions start again at 0; `positions_BT` puts others in their place.
        `reduction="sum"` is a quarter cheaper at the output projection:
        it gives the sum of the losses with `z_loss` times log²(Z) added, to differentiate, and each without, to report.

        Raises `ValueError` for ids outside the vocabulary (on a CPU), or a position beyond the table of learned ones.
        """
        return self.head(self.hidden(tokens_BT, segments_BT, positions_BT), targets_BT, reduction, z_loss)

    def hidden(
        self,
        tokens_BT: Tensor,
        segments_BT: Tensor | None = None,
        positions_BT: Tensor | None = None,
    ) -> Tensor:
        """What the output projection reads, [B, T, E]; arguments as of `forward`."""
        config, longest = self.config, None
        widest = Mask.packed(tokens_BT.shape[1], tokens_BT.device, None, segments_BT)
        if positions_BT is None:
            longest = tokens_BT.shape[1]
            positions_BT = widest.q_index_BT if segments_BT is None else positions_in_segments(segments_BT)
        masks = {window: widest.within(window) for window in set(config.windows)}
        x_BTE = self.embedding(
            tokens_BT, matmul_dtype(self.embedding.weight.dtype, tokens_BT.device), "vocab_size"
        )
        by = slopes_H = None
        if config.position == "rope":
            by = rotation(positions_BT, config.head_dim, config.rope_theta, longest)
        elif config.position == "alibi":
            slopes_H = alibi_slopes(config.n_heads, config.alibi_bias_max, tokens_BT.device)
        elif config.position == "learned":
            if longest is not None and segments_BT is None and longest > config.max_seq_len:
                raise ValueError(
                    f"rows of {longest} tokens where model.max_seq_len = {config.max_seq_len}: learned positions end there"
                )
            x_BTE = x_BTE + self.position(positions_BT.clamp(min=0), x_BTE.dtype, "max_seq_len")
        delta_BTE = None
        for block, window in zip(self.blocks, config.windows, strict=True):
            recompute = self.recompute if torch.is_grad_enabled() else "none"
            arguments = (x_BTE, delta_BTE, masks[window], by, slopes_H)
            if recompute == "full":
                x_BTE, delta_BTE = checkpoint(block, *arguments, use_reentrant=False)
            else:
                x_BTE, delta_BTE = block(*arguments, recompute == "selective")
        return self.norm(x_BTE, delta_BTE)[0]

    @torch.no_grad()
    def reset(self, seed: int) -> None:
        """Fresh weights as `config.init` says, norms 1; the same numbers on every device and type."""
        generator = torch.Generator().manual_seed(seed)
        config = self.config
        for name, parameter in self.named_parameters():
            if parameter.ndim == 1:
                parameter.fill_(1.0)
                continue
            std = init_std_of(config, name, parameter.shape[1])
            values = torch.empty(parameter.shape, dtype=torch.float32)
            parameter.copy_(values.normal_(0.0, std, generator=generator))

    def n_parameters(self, embeddings: bool = True) -> int:
        """Parameters in all, or without the embedding and the output projection; shared ones count once."""
        total = sum(parameter.numel() for parameter in self.parameters())
        if embeddings:
            return total
        tables = {id(table): table.numel() for table in (self.embedding.weight, self.head.weight)}
        return total - sum(tables.values())


def init_std_of(config: ModelConfig, name: str, fan_in: int) -> float:
    """Standard deviation that the matrix `name` starts with."""
    if config.init == "normal":
        return config.init_std
    residual = name.endswith(RESIDUAL)
    return (2 / fan_in / (2 * config.n_layers if residual else 1)) ** 0.5


def positions_in_segments(segments_BT: Tensor) -> Tensor:
    """Each token's distance from the start of its document, int64 [B, T]."""
    index_T = torch.arange(segments_BT.shape[1], device=segments_BT.device)
    starts_BT = torch.zeros_like(segments_BT, dtype=torch.int64)
    starts_BT[:, 1:] = (segments_BT[:, 1:] != segments_BT[:, :-1]) * index_T[1:]
    return index_T - starts_BT.cummax(1).values
