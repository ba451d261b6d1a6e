"""FlexAttention (`torch.nn.attention.flex_attention`) for square masks: compiled on CUDA, plain operations elsewhere.

Its list of blocks is made once per mask, from the arrays of first and last positions: no token-by-token mask is built.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from kernels.attention_mask import Mask

BLOCK = 128
_block_masks: WeakKeyDictionary[Mask, BlockMask] = WeakKeyDictionary()


def flex_refuses(device: torch.device, dtype: torch.dtype | None, head_dim: int | None) -> str | None:
    """Why FlexAttention cannot serve this case, or None."""
    if device.type == "cuda" and dtype == torch.float64:
        return "takes no float64 on CUDA"
    if device.type == "cuda" and head_dim is not None and head_dim < 16:
        return f"needs a head_dim of 16 or more, not {head_dim}"
    return None


def block_mask(mask: Mask) -> BlockMask:
    """The blocks of 128 x 128 that are seen in whole or in part; all others are skipped."""
    if mask not in _block_masks:
        _block_masks[mask] = _block_mask(mask)
    return _block_masks[mask]


def _block_mask(mask: Mask) -> BlockMask:
    first_BT, end_BT, causal = mask.first_BT, mask.end_BT, mask.causal
    n_tokens = first_BT.shape[1]
    starts_N = torch.arange(0, n_tokens, BLOCK, device=first_BT.device)
    lasts_N = (starts_N + BLOCK).clamp(max=n_tokens) - 1
    # As in the Triton kernels: a query block's keys, and the part of them that all its queries see.
    lo_BN, inner_lo_BN = first_BT[:, starts_N] // BLOCK, -(-first_BT[:, lasts_N] // BLOCK)
    if causal:
        hi_BN, inner_hi_BN = -(-(lasts_N + 1) // BLOCK).unsqueeze(0), ((starts_N + 1) // BLOCK).unsqueeze(0)
    else:
        hi_BN, inner_hi_BN = -(-end_BT[:, lasts_N] // BLOCK), end_BT[:, starts_N] // BLOCK
    key_block = torch.arange(len(starts_N), device=first_BT.device)
    touched = (key_block >= lo_BN.unsqueeze(2)) & (key_block < hi_BN.unsqueeze(2))
    whole = (key_block >= inner_lo_BN.unsqueeze(2)) & (key_block < inner_hi_BN.unsqueeze(2))
    shared = first_BT.shape[0] == 1

    def sees(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        row = torch.zeros_like(b) if shared else b
        return (j >= first_BT[row, i]) & (j <= i if causal else j < end_BT[row, i])

    return BlockMask.from_kv_blocks(
        *_listed(touched & ~whole),
        *_listed(touched & whole),
        BLOCK_SIZE=BLOCK,
        mask_mod=sees,
        seq_lengths=(n_tokens, n_tokens),
    )


def _listed(blocks_BNN: Tensor) -> tuple[Tensor, Tensor]:
    """How many key blocks each query block has, int32 [B, 1, N], and which, in front, int32 [B, 1, N, N]."""
    order = blocks_BNN.int().argsort(dim=-1, descending=True, stable=True)
    return blocks_BNN.sum(-1, dtype=torch.int32).unsqueeze(1), order.int().unsqueeze(1)


def flex_attention_of(
    q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor, mask: Mask, slopes_H: Tensor | None, scale: float
) -> Tensor:
    """[B, T, H, D] in the type of `q`. Raises `ValueError` where a CPU tensor wants gradients: PyTorch has none there."""
    if (
        q_BTHD.device.type != "cuda"
        and torch.is_grad_enabled()
        and any(x.requires_grad for x in (q_BTHD, k_BTKD, v_BTKD))
    ):
        raise ValueError(
            "attention back-end 'flex' has no gradients on a CPU: use MOXIN_ATTENTION=sdpa there"
        )

    def alibi(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        assert slopes_H is not None
        return score - slopes_H[h] * (i - j).abs()

    function = _compiled() if q_BTHD.device.type == "cuda" else _plain()
    out_BHTD = function(
        *(x.transpose(1, 2) for x in (q_BTHD, k_BTKD, v_BTKD)),
        score_mod=None if slopes_H is None else alibi,
        block_mask=block_mask(mask),
        scale=scale,
        enable_gqa=q_BTHD.shape[2] != k_BTKD.shape[2],
    )
    return out_BHTD.transpose(1, 2)


@lru_cache
def _compiled() -> Callable[..., Any]:
    return torch.compile(flex_attention)


def _plain() -> Callable[..., Any]:
    return cast(Callable[..., Any], flex_attention)  # overloaded for results that are not asked for here
