"""Attention over keys and values that lie in pages (PagedAttention, arXiv 2309.06180), with windows whose pages come round.

Letters of tensor names: N queries, H query heads, K key/value heads, D a head's width, P pages, S entries of a page, R rows
of the tables (sequences), C their columns, T queries of one sequence.

A sequence's token at position p lies in entry p mod S of page `tables_RC[row, (p // S) mod C]`. A table that has a column
for every page of the longest sequence is a plain one; for a window W it needs no more than the pages of W tokens and of
those written together, and its columns, like its pages, are used again and again.

| back-end    | pages                   | needs                                                                |
| ----------- | ----------------------- | -------------------------------------------------------------------- |
| `reference` | all                     | nothing: each query over its gathered keys, float64 where q is       |
| `torch`     | all                     | nothing: `kernels.attention` over each sequence's gathered keys      |
| `numba`     | float32, bfloat16, int8 | a CPU; queries float32. For few queries of a sequence                |
| `triton`    | float32, 16 bits, int8  | CUDA (or the interpreter)                                            |

Pages of int8 hold a token's head as integers with one float32 scale: `kernels.paged_attention.quantised`.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from kernels.attention import Mask, attention
from kernels.backend import choose, has_numba, runs_triton

BACKENDS = ("automatic", "reference", "torch", "numba", "triton")
FEW_QUERIES = 16
"""Queries of a sequence up to which each walks over the pages by itself on a CPU; more share gathered keys and matrix
products."""


@dataclass(frozen=True)
class Pages:
    """Keys and values of one layer, [P, S, K, D] each; int8 ones with scales float32 [P, S, K]."""

    k: Tensor
    v: Tensor
    scales: tuple[Tensor, Tensor] | None = None

    def write(self, entries_N: Tensor, k_NKD: Tensor, v_NKD: Tensor) -> None:
        """Puts tokens into entries (page x S + offset), int64."""
        for i, (pages, new) in enumerate(((self.k, k_NKD), (self.v, v_NKD))):
            if self.scales is not None:
                new, scale_NK = quantised(new)
                self.scales[i].flatten(0, 1).index_copy_(0, entries_N, scale_NK)
            pages.flatten(0, 1).index_copy_(0, entries_N, new.to(pages.dtype))

    def gathered(self, entries_N: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys and values of some entries, [N, K, D] each."""
        found = []
        for i, pages in enumerate((self.k, self.v)):
            part = pages.flatten(0, 1).index_select(0, entries_N)
            if self.scales is not None:
                part = part.float() * self.scales[i].flatten(0, 1).index_select(0, entries_N).unsqueeze(-1)
            found.append(part.to(dtype))
        return found[0], found[1]


def quantised(x_NKD: Tensor) -> tuple[Tensor, Tensor]:
    """A token's heads as int8 and the scale of each, float32 [N, K]; the largest magnitude is met exactly."""
    wide = x_NKD.float()
    scale_NK = wide.abs().amax(-1).clamp_(min=1e-30) / 127
    return (wide / scale_NK.unsqueeze(-1)).round_().to(torch.int8), scale_NK


@dataclass(frozen=True)
class Queries:
    """Which sequence each of N queries belongs to and where it stands there; queries of a sequence are adjacent and rise."""

    tables_RC: Tensor
    """int32, on the device of the pages."""
    rows_N: Tensor
    """int64: the table's row."""
    positions_N: Tensor
    """int64."""
    spans: tuple[tuple[int, int], ...]
    """(first query, number of queries) of every sequence in the batch."""
    longest: int
    """Above every position."""

    @cached_property
    def most(self) -> int:
        """Queries of the sequence that has most."""
        return max((n for _, n in self.spans), default=0)

    def entries(self, page_size: int) -> Tensor:
        """Where the queries' own tokens lie, int64 [N]."""
        column_N = self.positions_N // page_size % self.tables_RC.shape[1]
        return self.tables_RC[self.rows_N, column_N].long() * page_size + self.positions_N % page_size

    def entries_before(self, span: tuple[int, int], window: int | None, page_size: int) -> tuple[Tensor, int]:
        """Entries of all that a sequence's queries see, in order, and the position of the first of them."""
        first, n = span
        low, high = int(self.positions_N[first]), int(self.positions_N[first + n - 1])
        start = 0 if window is None else max(0, low - window + 1)
        at = torch.arange(start, high + 1, device=self.positions_N.device)
        table_C = self.tables_RC[self.rows_N[first]]
        return table_C[at // page_size % len(table_C)].long() * page_size + at % page_size, start


def paged_attention_backend(
    queries: Queries, pages: Pages, device: torch.device, backend: str | None = None
) -> str:
    """The back-end for these queries: the argument, else `MOXIN_PAGED_ATTENTION`, else the fastest that serves them."""
    chosen = choose("paged_attention", BACKENDS, "automatic", backend)
    if chosen != "automatic":
        return chosen
    if device.type == "cpu":
        few = queries.most <= FEW_QUERIES and pages.k.dtype != torch.float16 and has_numba()
        return "numba" if few else "torch"
    return "triton" if runs_triton(device) else "torch"


def paged_attention(
    q_NHD: Tensor,
    pages: Pages,
    queries: Queries,
    window: int | None = None,
    alibi_slopes_H: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Attention of every query over the keys of its sequence at its position and before, [N, H, D] in the type of `q`.

    The queries' own tokens have been written. With a `window` the last `window` positions are seen, the query's included.
    `alibi_slopes_H` are float32, as `kernels.attention` takes them. Raises `ValueError` for an unknown back-end.
    """
    chosen = paged_attention_backend(queries, pages, q_NHD.device, backend)
    scale = q_NHD.shape[-1] ** -0.5
    if chosen == "numba":
        from kernels.paged_attention_numba import (
            attend,  # only where it is chosen: numba takes 0.3 s to import
        )

        longest = queries.longest if window is None else min(queries.longest, window)
        return attend(
            q_NHD,
            pages.k,
            pages.v,
            pages.scales,
            queries.tables_RC,
            queries.rows_N,
            queries.positions_N,
            window,
            alibi_slopes_H,
            scale,
            longest,
        )
    if chosen == "triton":
        from kernels.paged_attention_triton import attend as triton_attend

        return triton_attend(q_NHD, pages, queries, window, alibi_slopes_H, scale)
    exact = "reference" if chosen == "reference" else None
    out_NHD = torch.empty(q_NHD.shape, dtype=q_NHD.dtype, device=q_NHD.device)
    page_size = pages.k.shape[1]
    for span in queries.spans:
        first, n = span
        entries, start = queries.entries_before(span, window, page_size)
        k_SKD, v_SKD = pages.gathered(entries, q_NHD.dtype)
        index_1T = queries.positions_N[first : first + n].unsqueeze(0)
        if n == len(entries):
            mask = Mask.packed(n, q_NHD.device, window)
        else:
            mask = Mask(
                index_1T, torch.arange(start, start + len(entries), device=q_NHD.device)[None], window
            )
        out_NHD[first : first + n] = attention(
            q_NHD[None, first : first + n],
            k_SKD[None],
            v_SKD[None],
            mask,
            alibi_slopes_H=alibi_slopes_H,
            backend=exact,
        )[0]
    return out_NHD
