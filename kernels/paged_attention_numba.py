# mypy: disable-error-code="attr-defined,call-arg,operator,no-untyped-def,var-annotated"
"""Attention of single queries over paged keys and values on the CPU: a sequence's pages once for each key/value head.

A query's scores stand in a thread's own memory between the two passes; all is float32 whatever the pages hold. Every query
is on its own, so its result does not depend on what else is in the batch. Letters of tensor names as in
`kernels.paged_attention`.
"""

import threading

import numpy as np
import torch
from numba import float32, get_thread_id, int32, prange
from torch import Tensor

from kernels.numba_math import (
    INFINITY,
    LIKE,
    exp32,
    from_sortable,
    get,
    kernel,
    magnitude,
    put_one,
    row_at,
    sortable,
    threads_for,
)

WIDE = LIKE[torch.float32]
PAGES_LIKE = {**LIKE, torch.int8: np.empty(0, np.int8)}
INT32, INT64 = np.empty(0, np.int32), np.empty(0, np.int64)
NO_WINDOW = 2**40


@kernel
def _attend(
    q_at, q_stride, k_at, v_at, like, k_scale_at, v_scale_at, page_size, n_kv, d, group, tables_at, n_columns, rows_at,
    positions_at, window, slopes_at, scale, wide_at, wide_size, out_at, n,
):  # fmt: skip
    scaled = k_scale_at != 0
    for item in prange(n * n_kv):
        token, head = item // n_kv, item % n_kv
        position = row_at(positions_at, token, 1, INT64)[0]
        table = row_at(tables_at, row_at(rows_at, token, 1, INT64)[0] * n_columns, n_columns, INT32)
        slopes = row_at(slopes_at, head * group, group, WIDE)
        first = max(0, position - window + 1)
        count = position + 1 - first
        thread = get_thread_id() * wide_size
        at = first
        while at <= position:  # page by page
            place = table[at // page_size % n_columns]
            entry = np.int64(place) * page_size + at % page_size
            n_here = min(position + 1, (at // page_size + 1) * page_size) - at
            for j in range(n_here):
                k = row_at(k_at, ((entry + j) * n_kv + head) * d, d, like)
                factor = float32(scale)
                if scaled:
                    factor *= row_at(k_scale_at, (entry + j) * n_kv + head, 1, WIDE)[0]
                for g in range(group):
                    q = row_at(q_at, token * q_stride + (head * group + g) * d, d, WIDE)
                    total = float32(0)
                    for i in range(d):
                        total += q[i] * float32(get(k, i))
                    bias = slopes[g] * float32(int32(at + j - position))
                    scores = row_at(wide_at, thread + g * count, count, WIDE)
                    put_one(scores, at + j - first, total * factor + bias)
            at += n_here
        for g in range(group):
            scores = row_at(wide_at, thread + g * count, count, WIDE)
            key, largest = int32(-(2**31)), int32(0)
            for s in range(count):
                key = max(key, sortable(scores[s]))
                largest = max(largest, magnitude(scores[s]))
            top, total = from_sortable(key), float32(0)
            for s in range(count):
                e = exp32(scores[s] - top)
                scores[s] = e
                total += e
            inverse = float32(1) / total
            if largest > int32(INFINITY):  # `sortable` and `exp32` may have hidden a NaN
                inverse = float32(np.nan)
            for s in range(count):
                scores[s] *= inverse
        for g in range(group):
            out = row_at(out_at, ((token * n_kv + head) * group + g) * d, d, WIDE)
            for i in range(d):
                out[i] = float32(0)
        at = first
        while at <= position:
            place = table[at // page_size % n_columns]
            entry = np.int64(place) * page_size + at % page_size
            n_here = min(position + 1, (at // page_size + 1) * page_size) - at
            for j in range(n_here):
                v = row_at(v_at, ((entry + j) * n_kv + head) * d, d, like)
                factor = float32(1)
                if scaled:
                    factor = row_at(v_scale_at, (entry + j) * n_kv + head, 1, WIDE)[0]
                for g in range(group):
                    weight = row_at(wide_at, thread + g * count, count, WIDE)[at + j - first] * factor
                    out = row_at(out_at, ((token * n_kv + head) * group + g) * d, d, WIDE)
                    for i in range(d):
                        out[i] += weight * float32(get(v, i))
            at += n_here


_kept = threading.local()


def scores_memory(n: int) -> Tensor:
    """Memory of this thread for `n` scores, kept between calls."""
    wide = getattr(_kept, "wide", None)
    if wide is None or wide.numel() < n:
        wide = _kept.wide = torch.empty(n + n // 4)
    return wide


def attend(
    q_NHD: Tensor,
    k_PSKD: Tensor,
    v_PSKD: Tensor,
    scales: tuple[Tensor, Tensor] | None,
    tables_RC: Tensor,
    rows_N: Tensor,
    positions_N: Tensor,
    window: int | None,
    slopes_H: Tensor | None,
    scale: float,
    longest: int,
) -> Tensor:
    """See `kernels.paged_attention.paged_attention`; `q` is float32, `longest` the most keys of a query."""
    n, n_heads, d = q_NHD.shape
    assert q_NHD.dtype == torch.float32
    assert q_NHD.stride()[1:] == (d, 1)
    assert tables_RC.is_contiguous()
    page_size, n_kv = k_PSKD.shape[1:3]
    if slopes_H is None:
        slopes_H = torch.zeros(n_heads)
    out_NHD = torch.empty(n, n_heads, d)
    wide_size = n_heads // n_kv * longest
    n_threads = threads_for(n * longest * n_heads * d)
    wide = scores_memory(n_threads * wide_size)
    _attend(
        q_NHD.data_ptr(),
        q_NHD.stride(0),
        k_PSKD.data_ptr(),
        v_PSKD.data_ptr(),
        PAGES_LIKE[k_PSKD.dtype],
        0 if scales is None else scales[0].data_ptr(),
        0 if scales is None else scales[1].data_ptr(),
        page_size,
        n_kv,
        d,
        n_heads // n_kv,
        tables_RC.data_ptr(),
        tables_RC.shape[1],
        rows_N.data_ptr(),
        positions_N.data_ptr(),
        NO_WINDOW if window is None else window,
        slopes_H.data_ptr(),
        scale,
        wide.data_ptr(),
        wide_size,
        out_NHD.data_ptr(),
        n,
    )
    return out_NHD
