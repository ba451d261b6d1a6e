"""Scaled dot-product attention with one signature for every use: causal, sliding window, documents packed in one row,
grouped-query heads, ALiBi, and queries against a cache.

Letters of tensor names: B rows of the batch, T queries, S keys, H query heads, K key/value heads (H a multiple of K),
D the head's width.

What a query sees is a `Mask`: positions, window and documents, from which each back-end makes what it needs, once for all
layers of a forward pass. Back-ends: `reference` (plain mathematics in float32 or float64) and `sdpa` (PyTorch's).
"""

import math
import os
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.precision import accumulator_dtype

BACKENDS = ("reference", "sdpa")


@dataclass(eq=False)
class Mask:
    """A query at index i sees the keys at i - window + 1 … i of its own document; a negative index means "not there".

    `q_index` is int64 [B or 1, T], `k_index` int64 [B or 1, S]; documents are integers of the same shapes, or None.
    """

    q_index_BT: Tensor
    k_index_BS: Tensor
    window: int | None = None
    causal: bool = True
    q_segments_BT: Tensor | None = None
    k_segments_BS: Tensor | None = None

    @classmethod
    def packed(
        cls,
        n_tokens: int,
        device: torch.device,
        window: int | None = None,
        segments_BT: Tensor | None = None,
        causal: bool = True,
    ) -> "Mask":
        """A row of tokens that looks at itself: the mask of training."""
        index = torch.arange(n_tokens, device=device).unsqueeze(0)
        window = window if window is not None and window < n_tokens else None
        return cls(index, index, window, causal, segments_BT, segments_BT)

    @property
    def square(self) -> bool:
        """Whether key j is query j, so that the keys a block of queries needs are known without looking."""
        return self.q_index_BT is self.k_index_BS

    @cached_property
    def dense(self) -> Tensor:
        """bool [B or 1, T, S], True where the query sees the key."""
        back = self.q_index_BT.unsqueeze(2) - self.k_index_BS.unsqueeze(1)
        seen = back >= 0 if self.causal else torch.ones_like(back, dtype=torch.bool)
        if self.window is not None:
            seen &= (back < self.window) & (back > -self.window)
        if not self.square:
            # A query that is not there sees the keys that are not there: its result means nothing but is finite.
            seen &= (self.q_index_BT >= 0).unsqueeze(2) == (self.k_index_BS >= 0).unsqueeze(1)
        if self.q_segments_BT is not None and self.k_segments_BS is not None:
            seen = seen & (self.q_segments_BT.unsqueeze(2) == self.k_segments_BS.unsqueeze(1))
        return seen

    def alibi(self, slopes_H: Tensor) -> Tensor:
        """Bias [B or 1, H, T, S]: minus slope times distance (arXiv 2108.12409), minus infinity where nothing is seen."""
        back = (self.q_index_BT.unsqueeze(2) - self.k_index_BS.unsqueeze(1)).abs().unsqueeze(1)
        bias = -slopes_H.view(1, -1, 1, 1) * back
        return bias.masked_fill(~self.dense.unsqueeze(1), -math.inf)


def attention_backend(backend: str | None = None) -> str:
    """The back-end that `attention` takes: the argument, else `MOXIN_ATTENTION`, else `sdpa`."""
    chosen = backend or os.environ.get("MOXIN_ATTENTION") or "sdpa"
    if chosen not in BACKENDS:
        raise ValueError(
            f"attention back-end {chosen!r} is not one of {', '.join(BACKENDS)} (MOXIN_ATTENTION)"
        )
    return chosen


def attention(
    q_BTHD: Tensor,
    k_BSKD: Tensor,
    v_BSKD: Tensor,
    mask: Mask,
    *,
    alibi_slopes_H: Tensor | None = None,
    scale: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """`softmax(scale q k + bias) v` of every query over the keys it sees, [B, T, H, D] in the type of `q`.

    Query head h uses key/value head h // (H / K). `scale` is 1/sqrt(D) by default. Raises `ValueError` where the heads do
    not divide or the back-end is unknown.
    """
    if q_BTHD.shape[2] % k_BSKD.shape[2]:
        raise ValueError(
            f"{q_BTHD.shape[2]} query heads are no multiple of {k_BSKD.shape[2]} key/value heads"
        )
    scale = q_BTHD.shape[3] ** -0.5 if scale is None else scale
    implementation = {"reference": _reference, "sdpa": _sdpa}[attention_backend(backend)]
    return implementation(q_BTHD, k_BSKD, v_BSKD, mask, alibi_slopes_H, scale)


def _reference(
    q_BTHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, mask: Mask, slopes_H: Tensor | None, scale: float
) -> Tensor:
    groups = q_BTHD.shape[2] // k_BSKD.shape[2]
    wide = accumulator_dtype(q_BTHD.dtype)
    q, k, v = (
        x.to(wide) for x in (q_BTHD, k_BSKD.repeat_interleave(groups, 2), v_BSKD.repeat_interleave(groups, 2))
    )
    scores_BHTS = torch.einsum("bthd,bshd->bhts", q, k) * scale
    if slopes_H is not None:
        scores_BHTS = scores_BHTS + mask.alibi(slopes_H.to(wide))
    scores_BHTS = scores_BHTS.masked_fill(~mask.dense.unsqueeze(1), -math.inf)
    return torch.einsum("bhts,bshd->bthd", scores_BHTS.softmax(-1), v).to(q_BTHD.dtype)


def _sdpa(
    q_BTHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, mask: Mask, slopes_H: Tensor | None, scale: float
) -> Tensor:
    q_BHTD, k_BKSD, v_BKSD = (x.transpose(1, 2) for x in (q_BTHD, k_BSKD, v_BSKD))
    on_cpu = q_BHTD.device.type == "cpu"
    plain = mask.square and mask.causal and mask.window is None and mask.q_segments_BT is None
    if plain and slopes_H is None and not on_cpu:
        out_BHTD = F.scaled_dot_product_attention(
            q_BHTD, k_BKSD, v_BKSD, is_causal=True, scale=scale, enable_gqa=True
        )
        return out_BHTD.transpose(1, 2)
    seen = mask.alibi(slopes_H.to(q_BHTD.dtype)) if slopes_H is not None else mask.dense.unsqueeze(1)
    if on_cpu and mask.square and mask.causal:
        return _sdpa_in_blocks(q_BHTD, k_BKSD, v_BKSD, seen, mask.window, scale).transpose(1, 2)
    if not on_cpu:  # with a mask, CUDA's fast kernels take as many key/value heads as query heads
        groups = q_BHTD.shape[1] // k_BKSD.shape[1]
        k_BKSD, v_BKSD = k_BKSD.repeat_interleave(groups, 1), v_BKSD.repeat_interleave(groups, 1)
    out_BHTD = F.scaled_dot_product_attention(
        q_BHTD, k_BKSD, v_BKSD, attn_mask=seen, scale=scale, enable_gqa=on_cpu
    )
    return out_BHTD.transpose(1, 2)


def _sdpa_in_blocks(
    q_BHTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor, seen: Tensor, window: int | None, scale: float
) -> Tensor:
    """A block of queries at a time meets only the keys from its window to its end.

    One thread of an EPYC 7003, 6 heads of 32, window 128, float32, forward and backward, against one call for all: 1.3
    times as fast at 4 x 256 tokens, 3.9 times at 1 x 1024.
    """
    n_tokens = q_BHTD.shape[2]
    block = max(64, n_tokens // 16)
    reach = n_tokens if window is None else window - 1
    outs = []
    for first in range(0, n_tokens, block):
        queries = slice(first, first + block)
        keys = slice(max(0, first - reach), first + block)
        q, k, v = q_BHTD[:, :, queries], k_BKTD[:, :, keys], v_BKTD[:, :, keys]
        outs.append(
            F.scaled_dot_product_attention(
                q, k, v, attn_mask=seen[:, :, queries, keys], scale=scale, enable_gqa=True
            )
        )
    return torch.cat(outs, 2)
