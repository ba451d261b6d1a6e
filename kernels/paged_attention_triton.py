# mypy: disable-error-code="no-untyped-def, no-untyped-call, misc"
"""Attention over paged keys and values in Triton: blocks of a sequence's queries with all heads that share a key/value head,
walking over the pages that they see (FlashAttention-2, arXiv 2307.08691). Where a step has too few queries to fill the GPU
the keys are cut into splits whose results are put together afterwards (Flash-Decoding, pytorch.org/blog/flash-decoding).

For decoding, one query a sequence, everything that varies is read on the device, so that a CUDA graph can hold the launch.
Letters of tensor names as in `kernels.paged_attention`; the softmax is in base 2.
"""

import math
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.attention_triton_forward import product
from kernels.checks import require

if TYPE_CHECKING:
    from kernels.paged_attention import Pages, Queries

BLOCK_K = 64
"""Keys at a time."""
SPLIT_KEYS = 512
"""A split has at least so many keys."""
MOST_SPLITS = 16
INTERPRETED_PROCESSORS = 8
"""Stands for the number of processors in the interpreter: enough for more than one split."""


def attend(
    q_NHD: Tensor,
    pages: "Pages",
    queries: "Queries",
    window: int | None,
    slopes_H: Tensor | None,
    scale: float,
) -> Tensor:
    """See `kernels.paged_attention.paged_attention`."""
    require("paged_attention", q_NHD, pages.k, pages.v)
    n, n_heads, d = q_NHD.shape
    page_size, n_kv = pages.k.shape[1:3]
    group = n_heads // n_kv
    padded = triton.next_power_of_2(group)
    assert q_NHD.stride()[1:] == (d, 1)
    decode = queries.most == 1
    block_t = max(1, (16 if decode else 64) // padded)
    firsts, counts = (
        _blocks(queries, block_t, q_NHD.device) if not decode else (queries.rows_N, queries.rows_N)
    )
    n_blocks = n if decode else len(firsts)
    longest = queries.longest if window is None else min(queries.longest, window + block_t)
    splits = _splits(n_blocks * n_kv, longest, q_NHD.device)
    out_NHD = torch.empty(n, n_heads, d, dtype=q_NHD.dtype, device=q_NHD.device)
    part = out_NHD
    sums = torch.empty((splits, n, n_heads, 2), dtype=torch.float32, device=q_NHD.device)
    if splits > 1:
        part = torch.empty((splits, n, n_heads, d), dtype=torch.float32, device=q_NHD.device)
    scales = pages.scales or (pages.k, pages.k)
    with torch.cuda.device_of(q_NHD):
        _attend_kernel[(n_blocks, n_kv, splits)](
            q_NHD,
            pages.k,
            pages.v,
            *scales,
            slopes_H if slopes_H is not None else sums,
            queries.tables_RC,
            queries.rows_N,
            queries.positions_N,
            firsts,
            counts,
            part,
            sums,
            q_NHD.stride(0),
            queries.tables_RC.shape[1],
            n,
            n_kv,
            0 if window is None else window,
            scale * math.log2(math.e),
            splits,
            GROUP=group,
            PADDED=padded,
            BLOCK_T=block_t,
            BLOCK_K=BLOCK_K,
            PAGE=page_size,
            HEAD_DIM=d,
            D=triton.next_power_of_2(d),
            DECODE=decode,
            WINDOWED=window is not None,
            ALIBI=slopes_H is not None,
            SCALED=pages.scales is not None,
            SPLIT=splits > 1,
            WIDEN=q_NHD.device.type != "cuda",
            num_warps=4,
        )
        if splits > 1:
            _combine_kernel[(n * n_heads,)](
                part,
                sums,
                out_NHD,
                n * n_heads,
                splits,
                SPLITS=MOST_SPLITS,
                HEAD_DIM=d,
                D=triton.next_power_of_2(d),
            )
    return out_NHD


def _splits(n_programs: int, longest: int, device: torch.device) -> int:
    """Of the keys, so that about two programs come to each processor. Depends on nothing that a graph would hold fast."""
    processors = INTERPRETED_PROCESSORS
    if device.type == "cuda":
        processors = torch.cuda.get_device_properties(device).multi_processor_count
    wanted = triton.cdiv(2 * processors, n_programs)
    return max(1, min(wanted, triton.cdiv(longest, SPLIT_KEYS), MOST_SPLITS))


def _blocks(queries: "Queries", block_t: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """First query and number of queries of every block."""
    firsts, counts = [], []
    for first, n in queries.spans:
        for start in range(0, n, block_t):
            firsts.append(first + start)
            counts.append(min(block_t, n - start))
    return torch.tensor(firsts, device=device), torch.tensor(counts, device=device)


@triton.jit
def _attend_kernel(
    q, k_pages, v_pages, k_scales, v_scales, slopes, tables, rows, positions, firsts, counts, out, sums,
    q_stride, n_columns, n_queries, n_kv, window, scale, n_splits,
    GROUP: tl.constexpr, PADDED: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr, PAGE: tl.constexpr,
    HEAD_DIM: tl.constexpr, D: tl.constexpr, DECODE: tl.constexpr, WINDOWED: tl.constexpr, ALIBI: tl.constexpr,
    SCALED: tl.constexpr, SPLIT: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    block, kv, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    if DECODE:
        first = block.to(tl.int64)
        count = 1
    else:
        first = tl.load(firsts + block)
        count = tl.load(counts + block).to(tl.int32)
    row = tl.load(rows + first)
    position = tl.load(positions + first).to(tl.int32)
    m = tl.arange(0, BLOCK_T * PADDED)
    t, g = m // PADDED, m % PADDED
    there = (t < count) & (g < GROUP)
    head = kv * GROUP + g
    i = position + t
    d = tl.arange(0, D)
    q_tile = tl.load(
        q + (first + t[:, None]) * q_stride + head[:, None] * HEAD_DIM + d[None, :],
        mask=there[:, None] & (d[None, :] < HEAD_DIM),
        other=0.0,
    )
    slope = tl.zeros([BLOCK_T * PADDED], tl.float32)
    if ALIBI:
        slope = tl.load(slopes + head, mask=there, other=0.0) * 1.4426950408889634
    low = position * 0
    if WINDOWED:
        low = tl.maximum(position - window + 1, 0)
    high = position + count
    if SPLIT:
        each = tl.cdiv(tl.cdiv(high - low, n_splits), BLOCK_K) * BLOCK_K
        low += split * each
        high = tl.minimum(high, low + each)
    acc = tl.zeros([BLOCK_T * PADDED, D], tl.float32)
    peak = tl.full([BLOCK_T * PADDED], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_T * PADDED], tl.float32)
    for start in range(low, high, BLOCK_K):
        j = start + tl.arange(0, BLOCK_K)
        inside = j < high
        page = tl.load(tables + row * n_columns + j // PAGE % n_columns, mask=inside, other=0)
        entry = (page.to(tl.int64) * PAGE + j % PAGE) * n_kv + kv
        tile = inside[:, None] & (d[None, :] < HEAD_DIM)
        k = (
            tl.load(k_pages + entry[:, None] * HEAD_DIM + d[None, :], mask=tile, other=0)
            .to(tl.float32)
            .to(q_tile.dtype)
        )
        scores = (
            product(q_tile, tl.trans(k), tl.zeros([BLOCK_T * PADDED, BLOCK_K], tl.float32), WIDEN) * scale
        )
        if SCALED:
            scores *= tl.load(k_scales + entry, mask=inside, other=0.0)[None, :]
        if ALIBI:
            scores += slope[:, None] * (j[None, :] - i[:, None]).to(tl.float32)
        seen = (j[None, :] <= i[:, None]) & inside[None, :]
        if WINDOWED:
            seen = seen & (j[None, :] > i[:, None] - window)
        scores = tl.where(seen, scores, float("-inf"))
        new_peak = tl.maximum(peak, tl.max(scores, 1))
        base = tl.where(new_peak == float("-inf"), 0.0, new_peak)
        p = tl.exp2(scores - base[:, None])
        shrink = tl.exp2(peak - base)
        total = total * shrink + tl.sum(p, 1)
        v = (
            tl.load(v_pages + entry[:, None] * HEAD_DIM + d[None, :], mask=tile, other=0)
            .to(tl.float32)
            .to(q_tile.dtype)
        )
        if SCALED:
            p *= tl.load(v_scales + entry, mask=inside, other=0.0)[None, :]
        acc = product(p.to(v.dtype), v, acc * shrink[:, None], WIDEN)
        peak = new_peak
    at = (first + t) * (n_kv * GROUP) + head
    target = there[:, None] & (d[None, :] < HEAD_DIM)
    if SPLIT:
        at += split.to(tl.int64) * n_queries * n_kv * GROUP
        tl.store(sums + at * 2, peak, mask=there)
        tl.store(sums + at * 2 + 1, total, mask=there)
        tl.store(out + at[:, None] * HEAD_DIM + d[None, :], acc, mask=target)
    else:
        result = acc / tl.where(there, total, 1.0)[:, None]
        tl.store(out + at[:, None] * HEAD_DIM + d[None, :], result.to(out.dtype.element_ty), mask=target)


@triton.jit
def _combine_kernel(
    part, sums, out, n_heads_in_all, n_splits, SPLITS: tl.constexpr, HEAD_DIM: tl.constexpr, D: tl.constexpr
):
    """One query's head: its splits, each weighted by what it has of the softmax's sum."""
    at = tl.program_id(0).to(tl.int64)
    s = tl.arange(0, SPLITS)
    d = tl.arange(0, D)
    where = s.to(tl.int64) * n_heads_in_all + at
    there = s < n_splits
    peak = tl.load(sums + where * 2, mask=there, other=float("-inf"))
    total = tl.load(sums + where * 2 + 1, mask=there, other=0.0)
    weight = tl.exp2(peak - tl.max(peak, 0))
    tile = tl.load(
        part + where[:, None] * HEAD_DIM + d[None, :],
        mask=there[:, None] & (d[None, :] < HEAD_DIM),
        other=0.0,
    )
    result = tl.sum(tile * weight[:, None], 0) / tl.sum(total * weight, 0)
    tl.store(out + at * HEAD_DIM + d, result.to(out.dtype.element_ty), mask=d < HEAD_DIM)
