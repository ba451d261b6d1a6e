# mypy: disable-error-code="no-untyped-def, no-untyped-call, misc"
"""Attention's backward pass in Triton, after FlashAttention-2 (arXiv 2307.08691); see `kernels.attention_triton_forward`.

P is computed again from the scores and `lse`. One kernel walks over queries and sums the gradients of keys and values, the
other over keys for those of queries: every sum has one owner and one order, hence no atomics and the same bits each time.
"""

import triton
import triton.language as tl

from kernels.attention_triton_forward import keys_of_queries, load_rows, product, store_rows


@triton.jit
def _queries_of_keys(
    first, end, k_lo, n_tokens,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, CAUSAL: tl.constexpr, BOUNDED: tl.constexpr,
):  # fmt: skip
    """Of a block of keys: its range of queries in three spans, and each key's own bounds low <= i < high."""
    j = k_lo + tl.arange(0, BLOCK_K)
    k_last = tl.minimum(k_lo + BLOCK_K, n_tokens) - 1
    low = j * 0
    high = j * 0 + n_tokens
    lo = k_lo * 0
    inner_lo = lo
    hi = lo + n_tokens
    inner_hi = hi // BLOCK_Q * BLOCK_Q
    if BOUNDED:
        high = tl.load(end + j, mask=j < n_tokens, other=0)
        hi = tl.load(end + k_last)
        inner_hi = tl.load(end + k_lo) // BLOCK_Q * BLOCK_Q
    if CAUSAL:
        low = j
        lo = k_lo // BLOCK_Q * BLOCK_Q
        inner_lo = (k_last + BLOCK_Q - 1) // BLOCK_Q * BLOCK_Q
    elif BOUNDED:
        low = tl.load(first + j, mask=j < n_tokens, other=0)
        lo = tl.load(first + k_lo) // BLOCK_Q * BLOCK_Q
        inner_lo = (tl.load(first + k_last) + BLOCK_Q - 1) // BLOCK_Q * BLOCK_Q
    return lo, inner_lo, tl.maximum(inner_lo, inner_hi), hi, low, high


@triton.jit
def delta_kernel(
    out, dout, delta, n_tokens, n_heads, stride_db, stride_dt, stride_dh,
    HEAD_DIM: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid: blocks of queries, B * H. `delta` [B, H, T] float32 is the sum of out * dout."""
    start = tl.program_id(0) * BLOCK
    row = (tl.program_id(1) // n_heads).to(tl.int64)
    h = (tl.program_id(1) % n_heads).to(tl.int64)
    out_head = out + (row * n_tokens * n_heads + h) * HEAD_DIM
    o = load_rows(out_head, start, n_heads * HEAD_DIM, n_tokens, BLOCK, HEAD_DIM, D, True)
    do = load_rows(
        dout + row * stride_db + h * stride_dh, start, stride_dt, n_tokens, BLOCK, HEAD_DIM, D, True
    )
    i = start + tl.arange(0, BLOCK)
    value = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)
    tl.store(delta + (row * n_heads + h) * n_tokens + i, value, mask=i < n_tokens)


@triton.jit
def _keys_span(
    dk, dv, k, v, q_head, do_head, lse_head, delta_head, j, lo, hi, low, high, n_tokens, stride_qt, stride_dt,
    scale, slope, HEAD_DIM: tl.constexpr, D: tl.constexpr, BLOCK_Q: tl.constexpr, ALIBI: tl.constexpr,
    WIDEN: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    for start in range(lo, hi, BLOCK_Q):
        i = start + tl.arange(0, BLOCK_Q)
        q = load_rows(q_head, start, stride_qt, n_tokens, BLOCK_Q, HEAD_DIM, D, MASKED)
        if MASKED:
            log_sum = tl.load(lse_head + i, mask=i < n_tokens, other=0.0)
            delta = tl.load(delta_head + i, mask=i < n_tokens, other=0.0)
        else:
            log_sum = tl.load(lse_head + i)
            delta = tl.load(delta_head + i)
        # Everything is transposed, [keys, queries], so that P and dS enter the sums over queries as they stand.
        scores = product(k, tl.trans(q), tl.zeros([k.shape[0], BLOCK_Q], tl.float32), WIDEN) * scale
        if ALIBI:
            scores += (slope * (j - start).to(tl.float32))[:, None]
            log_sum += slope * (i - start).to(tl.float32)
        p = tl.exp2(scores - log_sum[None, :])
        if MASKED:
            p = tl.where((i[None, :] >= low[:, None]) & (i[None, :] < high[:, None]), p, 0.0)
        do = load_rows(do_head, start, stride_dt, n_tokens, BLOCK_Q, HEAD_DIM, D, MASKED)
        dv = product(p.to(do.dtype), do, dv, WIDEN)
        dp = product(v, tl.trans(do), tl.zeros([k.shape[0], BLOCK_Q], tl.float32), WIDEN)
        ds = p * (dp - delta[None, :])
        dk = product(ds.to(q.dtype), q, dk, WIDEN)
    return dk, dv


@triton.jit
def keys_kernel(
    q, k, v, dout, lse, delta, dk, dv, first, end, slopes, n_tokens, n_heads, group, mask_stride,
    stride_qb, stride_qt, stride_qh, stride_kb, stride_kt, stride_kh, stride_vb, stride_vt, stride_vh,
    stride_db, stride_dt, stride_dh, scale, dscale,
    HEAD_DIM: tl.constexpr, D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    CAUSAL: tl.constexpr, BOUNDED: tl.constexpr, ALIBI: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Grid: blocks of keys, B * K. `dk`, `dv` [B, T, K, D] contiguous: the sums over the query heads of the group."""
    k_lo = tl.program_id(0) * BLOCK_K
    n_kv_heads = n_heads // group
    row = (tl.program_id(1) // n_kv_heads).to(tl.int64)
    kv = (tl.program_id(1) % n_kv_heads).to(tl.int64)
    lo, inner_lo, inner_hi, hi, low, high = _queries_of_keys(
        first + row * mask_stride, end + row * mask_stride, k_lo, n_tokens, BLOCK_Q, BLOCK_K, CAUSAL, BOUNDED
    )
    j = k_lo + tl.arange(0, BLOCK_K)
    k_tile = load_rows(
        k + row * stride_kb + kv * stride_kh, k_lo, stride_kt, n_tokens, BLOCK_K, HEAD_DIM, D, True
    )
    v_tile = load_rows(
        v + row * stride_vb + kv * stride_vh, k_lo, stride_vt, n_tokens, BLOCK_K, HEAD_DIM, D, True
    )
    dk_tile = tl.zeros([BLOCK_K, D], tl.float32)
    dv_tile = tl.zeros([BLOCK_K, D], tl.float32)
    for member in range(0, group):
        h = kv * group + member
        q_head = q + row * stride_qb + h * stride_qh
        do_head = dout + row * stride_db + h * stride_dh
        lse_head = lse + (row * n_heads + h) * n_tokens
        delta_head = delta + (row * n_heads + h) * n_tokens
        slope = 0.0
        if ALIBI:
            slope = tl.load(slopes + h)
        if CAUSAL or BOUNDED:
            dk_tile, dv_tile = _keys_span(
                dk_tile, dv_tile, k_tile, v_tile, q_head, do_head, lse_head, delta_head, j, lo, inner_lo,
                low, high, n_tokens, stride_qt, stride_dt, scale, slope, HEAD_DIM, D, BLOCK_Q, ALIBI, WIDEN, True,
            )  # fmt: skip
        dk_tile, dv_tile = _keys_span(
            dk_tile, dv_tile, k_tile, v_tile, q_head, do_head, lse_head, delta_head, j, inner_lo, inner_hi,
            low, high, n_tokens, stride_qt, stride_dt, scale, slope, HEAD_DIM, D, BLOCK_Q, ALIBI, WIDEN, False,
        )  # fmt: skip
        dk_tile, dv_tile = _keys_span(
            dk_tile, dv_tile, k_tile, v_tile, q_head, do_head, lse_head, delta_head, j, inner_hi, hi,
            low, high, n_tokens, stride_qt, stride_dt, scale, slope, HEAD_DIM, D, BLOCK_Q, ALIBI, WIDEN, True,
        )  # fmt: skip
    stride_t = n_kv_heads * HEAD_DIM
    offset = (row * n_tokens * n_kv_heads + kv) * HEAD_DIM
    store_rows(dk_tile * dscale, dk + offset, k_lo, stride_t, n_tokens, BLOCK_K, HEAD_DIM, D)
    store_rows(dv_tile, dv + offset, k_lo, stride_t, n_tokens, BLOCK_K, HEAD_DIM, D)


@triton.jit
def _queries_span(
    dq, q, do, log_sum, delta, k_head, v_head, i0, lo, hi, low, high, n_tokens, stride_kt, stride_vt, scale, slope,
    HEAD_DIM: tl.constexpr, D: tl.constexpr, BLOCK_K: tl.constexpr, ALIBI: tl.constexpr, WIDEN: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    for start in range(lo, hi, BLOCK_K):
        j = start + tl.arange(0, BLOCK_K)
        k = load_rows(k_head, start, stride_kt, n_tokens, BLOCK_K, HEAD_DIM, D, MASKED)
        v = load_rows(v_head, start, stride_vt, n_tokens, BLOCK_K, HEAD_DIM, D, MASKED)
        scores = product(q, tl.trans(k), tl.zeros([q.shape[0], BLOCK_K], tl.float32), WIDEN) * scale
        if ALIBI:
            scores += (slope * (j - i0).to(tl.float32))[None, :]
        p = tl.exp2(scores - log_sum[:, None])
        if MASKED:
            p = tl.where((j[None, :] >= low[:, None]) & (j[None, :] < high[:, None]), p, 0.0)
        dp = product(do, tl.trans(v), tl.zeros([q.shape[0], BLOCK_K], tl.float32), WIDEN)
        ds = p * (dp - delta[:, None])
        dq = product(ds.to(k.dtype), k, dq, WIDEN)
    return dq


@triton.jit
def queries_kernel(
    q, k, v, dout, lse, delta, dq, first, end, slopes, n_tokens, n_heads, group, mask_stride,
    stride_qb, stride_qt, stride_qh, stride_kb, stride_kt, stride_kh, stride_vb, stride_vt, stride_vh,
    stride_db, stride_dt, stride_dh, scale, dscale,
    HEAD_DIM: tl.constexpr, D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    CAUSAL: tl.constexpr, BOUNDED: tl.constexpr, ALIBI: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Grid: blocks of queries, B * H. `dq` [B, T, H, D] contiguous."""
    q_lo = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_Q
    row = (tl.program_id(1) // n_heads).to(tl.int64)
    h = (tl.program_id(1) % n_heads).to(tl.int64)
    k_head = k + row * stride_kb + h // group * stride_kh
    v_head = v + row * stride_vb + h // group * stride_vh
    lo, inner_lo, inner_hi, hi, low, high = keys_of_queries(
        first + row * mask_stride, end + row * mask_stride, q_lo, n_tokens, BLOCK_Q, BLOCK_K, CAUSAL, BOUNDED
    )
    i = q_lo + tl.arange(0, BLOCK_Q)
    q_tile = load_rows(
        q + row * stride_qb + h * stride_qh, q_lo, stride_qt, n_tokens, BLOCK_Q, HEAD_DIM, D, True
    )
    do_tile = load_rows(
        dout + row * stride_db + h * stride_dh, q_lo, stride_dt, n_tokens, BLOCK_Q, HEAD_DIM, D, True
    )
    log_sum = tl.load(lse + (row * n_heads + h) * n_tokens + i, mask=i < n_tokens, other=0.0)
    delta_i = tl.load(delta + (row * n_heads + h) * n_tokens + i, mask=i < n_tokens, other=0.0)
    slope = 0.0
    if ALIBI:
        slope = tl.load(slopes + h)
        log_sum += slope * (i - q_lo).to(tl.float32)
    dq_tile = tl.zeros([BLOCK_Q, D], tl.float32)
    if BOUNDED:
        dq_tile = _queries_span(
            dq_tile, q_tile, do_tile, log_sum, delta_i, k_head, v_head, q_lo, lo, inner_lo, low, high, n_tokens,
            stride_kt, stride_vt, scale, slope, HEAD_DIM, D, BLOCK_K, ALIBI, WIDEN, True,
        )  # fmt: skip
    dq_tile = _queries_span(
        dq_tile, q_tile, do_tile, log_sum, delta_i, k_head, v_head, q_lo, inner_lo, inner_hi, low, high, n_tokens,
        stride_kt, stride_vt, scale, slope, HEAD_DIM, D, BLOCK_K, ALIBI, WIDEN, False,
    )  # fmt: skip
    dq_tile = _queries_span(
        dq_tile, q_tile, do_tile, log_sum, delta_i, k_head, v_head, q_lo, inner_hi, hi, low, high, n_tokens,
        stride_kt, stride_vt, scale, slope, HEAD_DIM, D, BLOCK_K, ALIBI, WIDEN, True,
    )  # fmt: skip
    offset = (row * n_tokens * n_heads + h) * HEAD_DIM
    store_rows(dq_tile * dscale, dq + offset, q_lo, n_heads * HEAD_DIM, n_tokens, BLOCK_Q, HEAD_DIM, D)
