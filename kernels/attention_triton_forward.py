# mypy: disable-error-code="no-untyped-def, no-untyped-call, misc"
"""Attention's forward pass in Triton, and what it shares with the backward pass, after FlashAttention-2 (arXiv 2307.08691).

A program holds one block of queries (or of keys) of one head and walks over the keys (the queries) that it needs. With the
arrays `first` and `end` of a `Mask` this range is two look-ups, so blocks outside window or document are not loaded at all;
and it falls into three spans: [lo, inner_lo) and [inner_hi, hi) are compared score by score, whereas in between every query
sees every key, and nothing is compared. Full causal attention thus masks its diagonal only.

The softmax is kept in base 2 (`exp2` is one instruction): `scale` and slopes come multiplied by log2(e), `lse` is the base-2
logarithm of the sum. Sums are float32, products run on the inputs' type. Row offsets are int64, offsets in a block int32.

ALiBi adds slope * (j - i). The query's part is a constant of its row, which the softmax ignores: the scores get
slope * (j - i0) with i0 the block's first query, a vector over keys and one fused multiply-add per score, and `lse` is moved
by slope * (i - i0). Near the diagonal, where the weight is, these numbers are small and lose no digits.

WIDEN is for Triton's interpreter, which multiplies the bit patterns of bfloat16: there products run in float32.
"""

import triton
import triton.language as tl


@triton.jit
def product(a, b, acc, WIDEN: tl.constexpr):
    if WIDEN:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def load_rows(
    head, start, stride, n_tokens,
    BLOCK: tl.constexpr, HEAD_DIM: tl.constexpr, D: tl.constexpr, CHECK: tl.constexpr,
):  # fmt: skip
    """[BLOCK, D] rows of a head from `start` on, zero beyond the head's width and, with CHECK, beyond the last token."""
    n = tl.arange(0, BLOCK)
    d = tl.arange(0, D)
    pointers = head + tl.cast(start, tl.int64) * stride + (n[:, None] * stride + d[None, :])
    if CHECK:
        there = (start + n[:, None] < n_tokens) & (d[None, :] < HEAD_DIM)
        tile = tl.load(pointers, mask=there, other=0.0)
    elif HEAD_DIM != D:
        tile = tl.load(pointers, mask=d[None, :] < HEAD_DIM, other=0.0)
    else:
        tile = tl.load(pointers)
    return tile


@triton.jit
def store_rows(
    tile, head, start, stride, n_tokens, BLOCK: tl.constexpr, HEAD_DIM: tl.constexpr, D: tl.constexpr
):
    n = tl.arange(0, BLOCK)
    d = tl.arange(0, D)
    pointers = head + tl.cast(start, tl.int64) * stride + (n[:, None] * stride + d[None, :])
    there = (start + n[:, None] < n_tokens) & (d[None, :] < HEAD_DIM)
    tl.store(pointers, tile.to(head.dtype.element_ty), mask=there)


@triton.jit
def keys_of_queries(
    first, end, q_lo, n_tokens,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, CAUSAL: tl.constexpr, BOUNDED: tl.constexpr,
):  # fmt: skip
    """Of a block of queries: its range of keys in three spans, and each query's own bounds low <= j < high."""
    i = q_lo + tl.arange(0, BLOCK_Q)
    q_last = tl.minimum(q_lo + BLOCK_Q, n_tokens) - 1
    low = i * 0
    high = i * 0 + n_tokens
    lo = q_lo * 0
    inner_lo = lo
    hi = lo + n_tokens
    inner_hi = hi // BLOCK_K * BLOCK_K
    if BOUNDED:
        low = tl.load(first + i, mask=i < n_tokens, other=0)
        lo = tl.load(first + q_lo) // BLOCK_K * BLOCK_K
        inner_lo = (tl.load(first + q_last) + BLOCK_K - 1) // BLOCK_K * BLOCK_K
    if CAUSAL:
        high = i + 1
        hi = q_last + 1
        inner_hi = (q_lo + 1) // BLOCK_K * BLOCK_K
    elif BOUNDED:
        high = tl.load(end + i, mask=i < n_tokens, other=0)
        hi = tl.load(end + q_last)
        inner_hi = tl.load(end + q_lo) // BLOCK_K * BLOCK_K
    return lo, inner_lo, tl.maximum(inner_lo, inner_hi), hi, low, high


@triton.jit
def _forward_span(
    acc, peak, total, q, k_head, v_head, lo, hi, low, high, i0, n_tokens, stride_kt, stride_vt, scale, slope,
    HEAD_DIM: tl.constexpr, D: tl.constexpr, BLOCK_K: tl.constexpr, ALIBI: tl.constexpr, WIDEN: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    for start in range(lo, hi, BLOCK_K):
        j = start + tl.arange(0, BLOCK_K)
        k = load_rows(k_head, start, stride_kt, n_tokens, BLOCK_K, HEAD_DIM, D, MASKED)
        scores = product(q, tl.trans(k), tl.zeros([q.shape[0], BLOCK_K], tl.float32), WIDEN)
        if ALIBI:
            scores = scores * scale + (slope * (j - i0).to(tl.float32))[None, :]
        if MASKED:
            seen = (j[None, :] >= low[:, None]) & (j[None, :] < high[:, None])
            scores = tl.where(seen, scores, float("-inf"))
        factor = 1.0 if ALIBI else scale
        new_peak = tl.maximum(peak, tl.max(scores, 1) * factor)
        base = new_peak
        if MASKED:  # a query that has seen nothing yet: infinity minus infinity would be no number
            base = tl.where(new_peak == float("-inf"), 0.0, new_peak)
        p = tl.exp2(scores * factor - base[:, None])
        shrink = tl.exp2(peak - base)
        total = total * shrink + tl.sum(p, 1)
        v = load_rows(v_head, start, stride_vt, n_tokens, BLOCK_K, HEAD_DIM, D, MASKED)
        acc = product(p.to(v.dtype), v, acc * shrink[:, None], WIDEN)
        peak = new_peak
    return acc, peak, total


@triton.jit
def forward_kernel(
    q, k, v, out, lse, first, end, slopes, n_tokens, n_heads, group, mask_stride,
    stride_qb, stride_qt, stride_qh, stride_kb, stride_kt, stride_kh, stride_vb, stride_vt, stride_vh, scale,
    HEAD_DIM: tl.constexpr, D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    CAUSAL: tl.constexpr, BOUNDED: tl.constexpr, ALIBI: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Grid: blocks of queries, B * H. `out` is [B, T, H, D] contiguous, `lse` float32 [B, H, T]."""
    # The last block of a causal row has most keys: it starts first, so that no long one is left over at the end.
    q_lo = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_Q
    row = (tl.program_id(1) // n_heads).to(tl.int64)
    h = (tl.program_id(1) % n_heads).to(tl.int64)
    k_head = k + row * stride_kb + h // group * stride_kh
    v_head = v + row * stride_vb + h // group * stride_vh
    lo, inner_lo, inner_hi, hi, low, high = keys_of_queries(
        first + row * mask_stride, end + row * mask_stride, q_lo, n_tokens, BLOCK_Q, BLOCK_K, CAUSAL, BOUNDED
    )
    slope = 0.0
    if ALIBI:
        slope = tl.load(slopes + h)
    i = q_lo + tl.arange(0, BLOCK_Q)
    q_tile = load_rows(
        q + row * stride_qb + h * stride_qh, q_lo, stride_qt, n_tokens, BLOCK_Q, HEAD_DIM, D, True
    )
    acc = tl.zeros([BLOCK_Q, D], tl.float32)
    peak = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_Q], tl.float32)
    if BOUNDED:
        acc, peak, total = _forward_span(
            acc, peak, total, q_tile, k_head, v_head, lo, inner_lo, low, high, q_lo, n_tokens, stride_kt, stride_vt,
            scale, slope, HEAD_DIM, D, BLOCK_K, ALIBI, WIDEN, True,
        )  # fmt: skip
    acc, peak, total = _forward_span(
        acc, peak, total, q_tile, k_head, v_head, inner_lo, inner_hi, low, high, q_lo, n_tokens, stride_kt, stride_vt,
        scale, slope, HEAD_DIM, D, BLOCK_K, ALIBI, WIDEN, False,
    )  # fmt: skip
    acc, peak, total = _forward_span(
        acc, peak, total, q_tile, k_head, v_head, inner_hi, hi, low, high, q_lo, n_tokens, stride_kt, stride_vt,
        scale, slope, HEAD_DIM, D, BLOCK_K, ALIBI, WIDEN, True,
    )  # fmt: skip
    total = tl.where(i < n_tokens, total, 1.0)
    stride_t = n_heads * HEAD_DIM
    out_head = out + (row * n_tokens * n_heads + h) * HEAD_DIM
    store_rows(acc / total[:, None], out_head, q_lo, stride_t, n_tokens, BLOCK_Q, HEAD_DIM, D)
    log_sum = peak + tl.log2(total)
    if ALIBI:
        log_sum += slope * (q_lo - i).to(tl.float32)
    tl.store(lse + (row * n_heads + h) * n_tokens + i, log_sum, mask=i < n_tokens)
