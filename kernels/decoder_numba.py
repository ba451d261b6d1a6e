# mypy: disable-error-code="attr-defined,call-arg,operator,no-untyped-def,var-annotated"
"""All layers of a decoder for a few tokens as one call on the CPU.

A layer is a dozen kernels, and a call of each from Python costs as much as a small model's arithmetic; here they follow
one another without. The kernels are those that `moxin.infer.model` calls one by one.

Letters of tensor names as in `kernels.paged_attention`: N tokens of all sequences, E the model's width, F the
feed-forward's, X the heads of queries, keys and values together.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numba import float32, int32
from torch import Tensor

from kernels import linear_digits, linear_numba, norm_numba, paged_attention_numba, rope_numba, swiglu_numba
from kernels.linear import Weight
from kernels.linear_digits import DIGITS, ROWS_FOR_TILES, SHAPES, TILE, scratch_bytes
from kernels.numba_math import (
    ALONE,
    INFINITY,
    LIKE,
    from_sortable,
    magnitude,
    part,
    put,
    row_at,
    sequential_kernel,
    threads_for,
)
from kernels.paged_attention import Pages, Queries
from kernels.paged_attention_numba import INT32, INT64, NO_WINDOW, PAGES_LIKE, scores_memory

WIDE = LIKE[torch.float32]
_norm, _digits, _floats = norm_numba._forward, linear_digits._multiply, linear_numba._multiply
_attend, rotate_tokens = paged_attention_numba._attend, rope_numba.rotate_tokens
normalise, gated_rows, gelu_of = norm_numba.normalise, swiglu_numba.gated, swiglu_numba.gelu_of
_swiglu, _gelu = swiglu_numba._forward, swiglu_numba._gelu_forward

# Columns of the table that says where a layer's tensors are.
ATTENTION_NORM, QKV, OUT, MLP_NORM, UP, DOWN, K, V, K_SCALES, V_SCALES, WINDOW, TABLES, COLUMNS = (
    0, 1, 4, 7, 8, 11, 14, 15, 16, 17, 18, 19, 20,
)  # fmt: skip
KERNELS = ("LINEAR", "PAGED_ATTENTION", "NORM", "ROPE", "SWIGLU", "GELU")
SCALES, SUMS, N_FIELDS = 1, 2, 21
"""A matrix has three columns: integers or floats, scales, sums of integers."""


@dataclass(frozen=True)
class LayerTensors:
    """What a layer is made of; `tables_RC` are those of `Queries`, whose memory stays in place."""

    attention_norm_E: Tensor
    qkv: Weight
    out: Weight
    mlp_norm_E: Tensor
    up: Weight
    down: Weight
    pages: Pages
    window: int | None
    tables_RC: Tensor


@dataclass(frozen=True)
class Shape:
    n_heads: int
    n_kv_heads: int
    head_dim: int
    norm_eps: float
    centred: bool
    """LayerNorm, not RMSNorm."""
    gated: bool
    """SwiGLU, not GELU."""
    clip_qkv: float | None


class LayerStack:
    """The layers' addresses, and `run`. The tensors must stay where they are: weights may change in place."""

    def __init__(self, layers: Sequence[LayerTensors], norm_E: Tensor, shape: Shape) -> None:
        self._layers, self.shape = tuple(layers), shape  # kept alive
        self._norms = [
            *(norm for layer in layers for norm in (layer.attention_norm_E, layer.mlp_norm_E)),
            norm_E,
        ]
        self._wide = [norm.float().contiguous() for norm in self._norms]
        first = layers[0]
        self.in_digits = first.qkv.in_digits
        self._weights_like = linear_numba.LIKE[first.qkv.values.dtype]
        self._pages_like = PAGES_LIKE[first.pages.k.dtype]
        self._page_size = first.pages.k.shape[1]
        self._d, self._f = first.down.shape
        self._bits = 8 * first.qkv.values.itemsize * first.qkv.values.shape[1] // first.qkv.n_inputs
        self._table = np.array([_row(layer) for layer in layers], np.int64)
        self._table[:, ATTENTION_NORM] = [norm.data_ptr() for norm in self._wide[:-1:2]]
        self._table[:, MLP_NORM] = [norm.data_ptr() for norm in self._wide[1:-1:2]]
        self._no_slopes = torch.zeros(shape.n_heads)
        self._windows = [layer.window for layer in layers]

    @staticmethod
    def suits(layers: Sequence[LayerTensors]) -> bool:
        """Whether its kernels are for these tensors, one kind of weights on a CPU with pages that numba reads, and nothing
        in the environment asks for others."""
        matrices = [matrix for layer in layers for matrix in _matrices(layer)]
        return (
            all(matrix.suits_numba and matrix.values.dtype in linear_numba.LIKE for matrix in matrices)
            and len({(matrix.values.dtype, matrix.in_digits) for matrix in matrices}) == 1
            and all(layer.pages.k.dtype in PAGES_LIKE for layer in layers)
            and not any(
                os.environ.get(f"MOXIN_{name}", "numba") not in ("numba", "automatic") for name in KERNELS
            )
        )

    def run(
        self,
        x_NE: Tensor,
        queries: Queries,
        rotation: tuple[Tensor, Tensor] | None = None,
        slopes_H: Tensor | None = None,
    ) -> Tensor:
        """The hidden states after all layers and the last norm, float32 [N, E], from the embeddings `x_NE`, float32, which
        are overwritten. `rotation` is that of `kernels.rope`, [1, N, 1, D / 2] each; `slopes_H` ALiBi's. `queries` may be
        those of any layer: rows and positions are read, tables are the layers' own."""
        n, shape = len(x_NE), self.shape
        assert x_NE.dtype == torch.float32
        assert x_NE.is_contiguous()
        width = shape.n_heads + 2 * shape.n_kv_heads
        up = self._f * (2 if shape.gated else 1)
        longest = max(
            queries.longest if window is None else min(queries.longest, window) for window in self._windows
        )
        wide_size = shape.n_heads // shape.n_kv_heads * longest
        n_threads = threads_for(self._d * self._f)
        scores = scores_memory(n_threads * wide_size)
        heads = shape.n_heads * shape.head_dim
        sizes = (self._d, width * shape.head_dim, heads, up, self._f, 2)
        memory = torch.empty(n * sum(sizes))
        at = [memory.data_ptr() + 4 * n * sum(sizes[:k]) for k in range(len(sizes))]
        longest_row = max(self._d, self._f, heads)
        tiles = self.in_digits and n >= ROWS_FOR_TILES and linear_digits.has_tiles()
        digits = torch.empty(n * DIGITS * longest_row if self.in_digits else 0, dtype=torch.uint8)
        laid = torch.empty(-(-n // TILE) * TILE * DIGITS * longest_row if tiles else 0, dtype=torch.uint8)
        sums = torch.empty(n_threads * scratch_bytes(n) if tiles else 0, dtype=torch.uint8)
        cos = sin = 0
        if rotation is not None:
            cos, sin = (part.data_ptr() for part in rotation)
        if slopes_H is None:
            slopes_H = self._no_slopes
        if any(wide is not norm for wide, norm in zip(self._wide, self._norms, strict=True)):
            torch._foreach_copy_(self._wide, self._norms)  # a 16-bit model may be trained on between calls
        out_NE = torch.empty(n, self._d)
        _layers_(
            self._table, self._weights_like, self._pages_like, x_NE.data_ptr(), out_NE.data_ptr(),
            self._wide[-1].data_ptr(), *at, digits.data_ptr(), laid.data_ptr() if tiles else 0, sums.data_ptr(),
            scratch_bytes(n), SHAPES.ctypes.data, cos, sin, slopes_H.data_ptr(), queries.rows_N.data_ptr(),
            queries.positions_N.data_ptr(), scores.data_ptr(), wide_size, n, self._d, self._f, shape.n_heads,
            shape.n_kv_heads, shape.head_dim, self._page_size, shape.norm_eps, shape.centred, shape.gated,
            float("inf") if shape.clip_qkv is None else shape.clip_qkv, self.in_digits, self._bits,
        )  # fmt: skip
        return out_NE


def _matrices(layer: LayerTensors) -> tuple[Weight, ...]:
    return layer.qkv, layer.out, layer.up, layer.down


def _row(layer: LayerTensors) -> list[int]:
    row = [0] * N_FIELDS
    for column, matrix in zip((QKV, OUT, UP, DOWN), _matrices(layer), strict=True):
        assert matrix.values.is_contiguous()
        row[column] = matrix.values.data_ptr()
        row[column + SCALES] = 0 if matrix.scales is None else matrix.scales.data_ptr()
        row[column + SUMS] = matrix.sums.data_ptr() if matrix.in_digits else 0
    row[K], row[V] = layer.pages.k.data_ptr(), layer.pages.v.data_ptr()
    if layer.pages.scales is not None:
        row[K_SCALES], row[V_SCALES] = (scales.data_ptr() for scales in layer.pages.scales)
    row[WINDOW] = NO_WINDOW if layer.window is None else layer.window
    row[TABLES], row[COLUMNS] = layer.tables_RC.data_ptr(), layer.tables_RC.shape[1]
    return row


@part
def _product(like, bits, in_digits, layer, column, x, y, n_outputs, n_inputs, n, digits, tiles, scale_x, sums, sums_size, shapes):  # fmt: skip  # noqa: E501
    """`y = x @ weight.T`: `kernels.linear` without its choices."""
    w, scale = layer[column], layer[column + SCALES]
    w_stride = n_inputs * bits // 8
    if in_digits:
        _digits(
            shapes, w, w_stride, scale, layer[column + SUMS], x, 4 * n_inputs, y, 4 * n_outputs, digits, tiles, scale_x,
            sums, sums_size, n_outputs, n_inputs, n,
        )  # fmt: skip
    else:
        scale_stride = 4 if bits == 8 else 4 * (n_inputs // linear_numba.GROUP) if bits == 4 else 0
        _floats(
            like, w, w_stride, x, 4 * n_inputs, y, 4 * n_outputs, scale, scale_stride, n_outputs, n_inputs, n
        )


@part
def _add_norm(alone, x, delta, weight, out, mean, scale, n, d, eps, add, centred):
    """`x` plus `delta` in place, and its norm."""
    if alone:  # a second thread would begin when the first is done
        normalise(0, n, x, d, WIDE, delta, d, WIDE, weight, out, x, mean, scale, n, d, eps, add, centred)
    else:
        _norm(x, d, WIDE, delta, d, WIDE, weight, out, x, mean, scale, n, d, eps, add, centred)


@part
def _clip(at, n, most):
    x = row_at(at, 0, n, WIDE)
    for i in range(n):
        value = x[i]
        x[i] = most if value > most else -most if value < -most else value  # NaN stays


@part
def _write(new_at, pages_at, scales_at, like, entry, n_kv, d):
    """One token's heads into an entry, as `kernels.paged_attention.Pages.write` does."""
    for head in range(n_kv):
        new = row_at(new_at, head * d, d, WIDE)
        page = row_at(pages_at, (entry * n_kv + head) * d, d, like)
        if scales_at != 0:
            largest = int32(0)
            for i in range(d):
                largest = max(largest, magnitude(new[i]))
            scale = max(from_sortable(largest), float32(1e-30)) / float32(127)
            if largest > int32(INFINITY):
                scale = float32(np.nan)
            scales = row_at(scales_at, entry * n_kv + head, 1, WIDE)
            for i in range(1):  # a loop: see `row_at`
                scales[i] = scale
            for i in range(d):
                put(page, i, np.rint(new[i] / scale))
        else:
            for i in range(d):
                put(page, i, new[i])


@sequential_kernel
def _layers_(
    table, like, pages_like, x, out, norm, h, qkv, attended, up, activated, per_row, digits, tiles, sums, sums_size, shapes,
    cos, sin, slopes, rows, positions, scores, wide_size, n, d, f, n_heads, n_kv, head_dim, page_size, eps, centred, gated,
    clip, in_digits, bits,
):  # fmt: skip
    alone = n * d < ALONE
    n_all = n_heads + 2 * n_kv
    width, heads, n_up = n_all * head_dim, n_heads * head_dim, 2 * f if gated else f
    scale_at, mean_at = per_row, per_row + 4 * n
    scale = 1.0 / np.sqrt(head_dim)
    delta = h  # what a block adds is written where its normed input stood, which nothing reads any more
    for number in range(len(table)):
        layer = table[number]
        _add_norm(
            alone, x, delta, layer[ATTENTION_NORM], h, mean_at, scale_at, n, d, eps, number > 0, centred
        )
        _product(
            like, bits, in_digits, layer, QKV, h, qkv, width, d, n, digits, tiles, scale_at, sums, sums_size, shapes,
        )  # fmt: skip
        if clip < np.inf:
            _clip(qkv, n * width, float32(clip))
        if cos != 0:
            rotate_tokens(
                0, n, qkv, 0, width, head_dim, qkv, 0, width, head_dim, WIDE, cos, sin, 0, 1.0, n_heads + n_kv, n, n_all,
                head_dim // 2,
            )  # fmt: skip
        position, row = row_at(positions, 0, n, INT64), row_at(rows, 0, n, INT64)
        for token in range(n):
            pages = row_at(layer[TABLES], row[token] * layer[COLUMNS], layer[COLUMNS], INT32)
            page = np.int64(pages[position[token] // page_size % layer[COLUMNS]])
            entry = page * page_size + position[token] % page_size
            k = qkv + 4 * (token * width + heads)
            _write(k, layer[K], layer[K_SCALES], pages_like, entry, n_kv, head_dim)
            _write(k + 4 * n_kv * head_dim, layer[V], layer[V_SCALES], pages_like, entry, n_kv, head_dim)
        _attend(
            qkv, width, layer[K], layer[V], pages_like, layer[K_SCALES], layer[V_SCALES], page_size, n_kv, head_dim,
            n_heads // n_kv, layer[TABLES], layer[COLUMNS], rows, positions, layer[WINDOW], slopes, scale, scores,
            wide_size, attended, n,
        )  # fmt: skip
        _product(
            like, bits, in_digits, layer, OUT, attended, delta, d, heads, n, digits, tiles, scale_at, sums, sums_size, shapes
        )  # fmt: skip
        _add_norm(alone, x, delta, layer[MLP_NORM], h, mean_at, scale_at, n, d, eps, True, centred)
        _product(
            like, bits, in_digits, layer, UP, h, up, n_up, d, n, digits, tiles, scale_at, sums, sums_size, shapes,
        )  # fmt: skip
        if gated and n * n_up < ALONE:
            gated_rows(0, n, up, n_up, activated, WIDE, f)
        elif gated:
            _swiglu(up, n_up, activated, WIDE, n, f)
        elif n * f < ALONE:
            gelu_of(up, activated, WIDE, 0, n * f)
        else:
            _gelu(up, activated, WIDE, n * f)
        _product(
            like, bits, in_digits, layer, DOWN, activated, delta, d, f, n, digits, tiles, scale_at, sums, sums_size, shapes
        )  # fmt: skip
    _add_norm(alone, x, delta, norm, out, mean_at, scale_at, n, d, eps, True, centred)
