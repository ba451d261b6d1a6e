"""Causal attention of a row with itself on the CPU: blocks of queries against the keys they see, softmax in numba.

The products are batched matrix products, and everything between them is one pass over a block of scores that is still in the
cache. Keys outside the window or the documents of a block are never touched. As in FlashAttention-2 (arXiv 2307.08691) only
the log of each softmax's denominator is kept, and the scores are computed again on the way back. A block has all keys of its
queries, so there is no running maximum, and the sum that FlashAttention takes from the output comes from the row itself.

Products are rounded to the inputs' type, all else is float32. Letters of tensor names as in `kernels.attention`; N = B x K
batched products, G = H / K query heads each, R = T x G rows.
"""

import math
import threading
from typing import Any

import numpy as np
import torch
from numba import float32, get_thread_id, int32, njit, prange
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.attention_mask import Mask
from kernels.numba_math import (
    INFINITY,
    LIKE,
    exp32,
    from_sortable,
    get,
    kernel,
    magnitude,
    put,
    row_at,
    sortable,
    threads_for,
)

BLOCK = 128
"""Queries of a block. Two threads of a Zen 4, bfloat16, forward and backward, PyTorch's kernel and this: 15.1 and 6.7 ms for
8 x 256 tokens with 6 heads of 32, 24.3 and 10.7 for 4 x 512 (4 of 64), 60 and 35 for 2 x 1024 (8 of 64), 63 and 24 there
with a window of 256. Blocks of 64 and 256 take 5 to 20 % more."""
BLOCK_BYTES = 32 << 20
"""Most memory for a block's scores; many rows of long contexts get smaller blocks."""
WIDE = LIKE[torch.float32]


def numba_attention(
    q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor, mask: Mask, slopes_H: Tensor | None, scale: float
) -> Tensor:
    """Attention under a square causal mask, [B, T, H, D]; the arguments of `kernels.attention.attention`."""
    if slopes_H is None:
        slopes_H = torch.zeros(q_BTHD.shape[2])
    return _NumbaAttention.apply(q_BTHD, k_BTKD, v_BTKD, mask, slopes_H.float().contiguous(), scale)


def _grouped(x_BTHD: Tensor, n_kv: int) -> Tensor:
    """[N, R, D] with row t G + g, a copy in one piece."""
    b, _, h, d = x_BTHD.shape
    return x_BTHD.unflatten(2, (n_kv, h // n_kv)).transpose(1, 2).reshape(b * n_kv, -1, d)


def _ungrouped(x_NRD: Tensor, b: int, groups: int) -> Tensor:
    """[B, T, H, D] of what `_grouped` made."""
    n, rows, d = x_NRD.shape
    return x_NRD.view(b, n // b, rows // groups, groups, d).transpose(1, 2).flatten(2, 3)


def _blocks(mask: Mask, n: int, groups: int, width: int) -> list[tuple[slice, slice, slice]]:
    """Queries, their rows, and the keys that any of them sees. A score has `width` bytes."""
    n_tokens = mask.q_index_BT.shape[1]
    block = min(BLOCK, max(16, BLOCK_BYTES // (width * n * groups * n_tokens)))
    first_T = mask.first_BT.amin(0).tolist()
    found = []
    for start in range(0, n_tokens, block):
        end = min(start + block, n_tokens)
        found.append((slice(start, end), slice(start * groups, end * groups), slice(first_T[start], end)))
    return found


class _NumbaAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor, mask: Mask, slopes_H: Tensor, scale: float
    ) -> Tensor:
        b, n_kv = len(q_BTHD), k_BTKD.shape[2]
        groups = q_BTHD.shape[2] // n_kv
        q_NRD, k_NTD, v_NTD = (_grouped(x, n_kv) for x in (q_BTHD, k_BTKD, v_BTKD))
        out_NRD, lse_NR = torch.empty_like(q_NRD), torch.empty(q_NRD.shape[:2])
        block = _Block(q_NRD, mask, slopes_H, groups, scale)
        for queries, rows, keys in _blocks(mask, len(q_NRD), groups, q_BTHD.itemsize):
            scores = block.product("scores", q_NRD[:, rows], k_NTD[:, keys])
            block.softmax(scores, lse_NR, queries.start, keys.start)
            out_NRD[:, rows] = torch.bmm(scores, v_NTD[:, keys])
        ctx.save_for_backward(q_BTHD, k_BTKD, v_BTKD, lse_NR, slopes_H)
        ctx.mask, ctx.scale = mask, scale
        return _ungrouped(out_NRD, b, groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        q_BTHD, k_BTKD, v_BTKD, lse_NR, slopes_H = ctx.saved_tensors
        b, n_kv, dtype = len(q_BTHD), k_BTKD.shape[2], q_BTHD.dtype
        groups = q_BTHD.shape[2] // n_kv
        q_NRD, k_NTD, v_NTD, grad_NRD = (_grouped(x, n_kv) for x in (q_BTHD, k_BTKD, v_BTKD, grads[0]))
        grad_q_NRD = torch.empty_like(q_NRD)
        grad_k_NTD, grad_v_NTD = torch.zeros(2, *k_NTD.shape)  # blocks are summed in float32
        block = _Block(q_NRD, ctx.mask, slopes_H, groups, ctx.scale)
        for queries, rows, keys in _blocks(ctx.mask, len(q_NRD), groups, dtype.itemsize):
            probs = block.product("scores", q_NRD[:, rows], k_NTD[:, keys])
            grad_scores = block.product("grad_probs", grad_NRD[:, rows], v_NTD[:, keys])
            block.differentiate(probs, grad_scores, lse_NR, queries.start, keys.start)
            grad_v_NTD[:, keys] += torch.bmm(probs.transpose(1, 2), grad_NRD[:, rows])
            grad_q_NRD[:, rows] = torch.bmm(grad_scores, k_NTD[:, keys])
            grad_k_NTD[:, keys] += torch.bmm(grad_scores.transpose(1, 2), q_NRD[:, rows])
        of_inputs = (
            _ungrouped(x, b, g).to(dtype) for x, g in ((grad_q_NRD, groups), (grad_k_NTD, 1), (grad_v_NTD, 1))
        )
        return *of_inputs, None, None, None


class _Block:
    """What is the same for all blocks of a call, with the memory that this thread keeps from call to call: fresh pages for
    every block cost more than its arithmetic."""

    kept = threading.local()

    def __init__(self, q_NRD: Tensor, mask: Mask, slopes_H: Tensor, groups: int, scale: float) -> None:
        self.n_rows, self.first_BT, self.slopes_H = q_NRD.shape[1], mask.first_BT.contiguous(), slopes_H
        self.groups, self.scale, self.like = groups, scale, LIKE[q_NRD.dtype]

    def product(self, name: str, left_NRD: Tensor, right_NSD: Tensor) -> Tensor:
        shape = (*left_NRD.shape[:2], right_NSD.shape[1])
        out = self.buffer(name, math.prod(shape), left_NRD.dtype).view(shape)
        return torch.bmm(left_NRD, right_NSD.transpose(1, 2), out=out)

    def buffer(self, name: str, size: int, dtype: torch.dtype) -> Tensor:
        kept = getattr(self.kept, name, None)
        if kept is None or kept.dtype != dtype or kept.numel() < size:
            with torch.inference_mode(False):  # else training could not write to what generation has made
                kept = torch.empty(size, dtype=dtype)
            setattr(self.kept, name, kept)
        return kept[:size]

    def softmax(self, scores_NRS: Tensor, lse_NR: Tensor, first_query: int, first_key: int) -> None:
        """Scores become probabilities."""
        _softmax(scores_NRS.data_ptr(), *self._rest(scores_NRS, lse_NR, first_query, first_key))

    def differentiate(
        self, scores_NRS: Tensor, grad_NRS: Tensor, lse_NR: Tensor, first_query: int, first_key: int
    ) -> None:
        """Scores become probabilities, and the gradient of the probabilities that of the scores."""
        assert (scores_NRS.shape, scores_NRS.dtype) == (grad_NRS.shape, grad_NRS.dtype)
        rest = self._rest(scores_NRS, lse_NR, first_query, first_key)
        _differentiate(scores_NRS.data_ptr(), grad_NRS.data_ptr(), *rest)

    def _rest(self, scores_NRS: Tensor, lse_NR: Tensor, first_query: int, first_key: int) -> tuple[Any, ...]:
        assert scores_NRS.is_contiguous()
        assert lse_NR.shape[1] == self.n_rows
        wide = self.buffer("wide", threads_for(scores_NRS.numel()) * scores_NRS.shape[2], torch.float32)
        return (
            self.like,
            wide.data_ptr(),
            lse_NR.data_ptr(),
            self.n_rows,
            self.first_BT.numpy(),
            self.slopes_H.numpy(),
            *scores_NRS.shape,
            first_query,
            first_key,
            self.groups,
            self.scale,
        )


@njit(inline="always")
def _seen(first_BT, slopes_H, item, row, first_query, first_key, groups, n_keys):  # type: ignore[no-untyped-def]
    """Of a row of scores: the range of keys seen, and what ALiBi adds to the first of them and from one to the next."""
    n_kv = slopes_H.size // groups
    query = first_query + row // groups
    slope = slopes_H[(item % n_kv) * groups + row % groups]
    low = max(first_BT[(item // n_kv) % first_BT.shape[0], query] - first_key, 0)
    return low, min(query - first_key + 1, n_keys), slope, slope * float32(low + first_key - query)


@kernel
def _softmax(  # type: ignore[no-untyped-def]
    scores_at, like, wide_at, lse_at, lse_stride, first_BT, slopes_H, n, n_rows, n_keys, first_query, first_key,
    groups, scale,
):  # fmt: skip
    factor = float32(scale)
    for at in prange(n * n_rows):
        item, row = at // n_rows, at % n_rows
        low, high, slope, bias = _seen(first_BT, slopes_H, item, row, first_query, first_key, groups, n_keys)
        count = high - low
        scores = row_at(scores_at, at * n_keys + low, count, like)
        wide = row_at(wide_at, get_thread_id() * n_keys, count, WIDE)
        key, largest = int32(-(2**31)), int32(0)
        for j in range(count):
            value = get(scores, j) * factor + (bias + slope * float32(int32(j)))
            wide[j] = value
            key = max(key, sortable(value))
            largest = max(largest, magnitude(value))
        top, total = from_sortable(key), float32(0)
        for j in range(count):
            e = exp32(wide[j] - top)
            wide[j] = e
            total += e
        inverse = float32(1) / total
        if largest > int32(INFINITY):  # `sortable` and `exp32` may have hidden a NaN
            inverse = float32(np.nan)
        before = row_at(scores_at, at * n_keys, low, like)
        for j in range(low):
            put(before, j, float32(0))
        for j in range(count):
            put(scores, j, wide[j] * inverse)
        after = row_at(scores_at, at * n_keys + high, n_keys - high, like)
        for j in range(n_keys - high):
            put(after, j, float32(0))
        lse = row_at(lse_at, item * lse_stride + first_query * groups, n_rows, WIDE)
        for j in range(row, row + 1):  # a store outside a loop would be taken for a dead one
            lse[j] = top - np.log(inverse)


@kernel
def _differentiate(  # type: ignore[no-untyped-def]
    scores_at, grad_at, like, wide_at, lse_at, lse_stride, first_BT, slopes_H, n, n_rows, n_keys, first_query,
    first_key, groups, scale,
):  # fmt: skip
    factor = float32(scale)
    for at in prange(n * n_rows):
        item, row = at // n_rows, at % n_rows
        low, high, slope, bias = _seen(first_BT, slopes_H, item, row, first_query, first_key, groups, n_keys)
        count = high - low
        lse = row_at(lse_at, item * lse_stride + first_query * groups, n_rows, WIDE)
        offset = bias - lse[row]
        for part in range(2):  # nothing is seen before `low` and from `high` on
            start, length = (0, low) if part == 0 else (high, n_keys - high)
            unseen = row_at(scores_at, at * n_keys + start, length, like)
            for j in range(length):
                put(unseen, j, float32(0))
            unseen = row_at(grad_at, at * n_keys + start, length, like)
            for j in range(length):
                put(unseen, j, float32(0))
        scores, grad = (
            row_at(scores_at, at * n_keys + low, count, like),
            row_at(grad_at, at * n_keys + low, count, like),
        )
        wide = row_at(wide_at, get_thread_id() * n_keys, count, WIDE)
        delta = float32(0)
        for j in range(count):
            e = exp32(get(scores, j) * factor + (offset + slope * float32(int32(j))))
            wide[j] = e
            delta += e * get(grad, j)
            put(scores, j, e)
        if lse[row] != lse[row]:
            delta = lse[row]
        for j in range(count):
            put(grad, j, wide[j] * (get(grad, j) - delta) * factor)
