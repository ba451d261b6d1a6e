"""Decoding steps as CUDA graphs: a step of one token for each sequence is hundreds of launches of microseconds each, and a
graph makes them one. A graph has fixed shapes, so there is one for each of a few batch sizes; what a step leaves over is
padding, which is written to the page that nobody holds."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kernels.paged_attention import Queries
from moxin.infer.cache import Held, PagedCache
from moxin.infer.model import InferenceModel

SIZES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256)
"""Batch sizes that graphs are made for, each when it is first needed."""


class DecodeGraphs:
    """Graphs of `InferenceModel.hidden` and `logits` over one cache. The tables are copied to the device once a step."""

    def __init__(self, model: InferenceModel, cache: PagedCache) -> None:
        self.model, self.cache = model, cache
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor, list[Queries], Tensor]] = {}
        self._tables = [
            torch.zeros(group.table_RC.shape, dtype=torch.int32, device=cache.device)
            for group in cache.groups
        ]
        self._pool: Any = None

    def serves(self, work: Sequence[tuple[Held, int, int]]) -> bool:
        """Whether every sequence has one token and there are not too many."""
        return len(work) <= SIZES[-1] and all(n == 1 for _, _, n in work)

    def logits(self, tokens: Sequence[int], work: Sequence[tuple[Held, int, int]]) -> Tensor:
        """[N, V] of the N sequences' tokens, float32; overwritten by the next call."""
        size = next(size for size in SIZES if size >= len(tokens))
        if size not in self._graphs:
            self._graphs[size] = self._capture(size)
        graph, tokens_N, queries, logits_NV = self._graphs[size]
        n_pad = size - len(tokens)
        nobody = self.cache.n_rows  # a row of the tables that stays 0
        tokens_N.copy_(torch.tensor([*tokens, *[0] * n_pad]))
        queries[0].rows_N.copy_(torch.tensor([*(held.row for held, _, _ in work), *[nobody] * n_pad]))
        queries[0].positions_N.copy_(torch.tensor([*(at for _, at, _ in work), *[0] * n_pad]))
        for table, group in zip(self._tables, self.cache.groups, strict=True):
            table.copy_(torch.from_numpy(group.table_RC))
        graph.replay()
        return logits_NV[: len(tokens)]

    def _capture(self, size: int) -> tuple[torch.cuda.CUDAGraph, Tensor, list[Queries], Tensor]:
        device = self.cache.device
        tokens_N = torch.zeros(size, dtype=torch.int64, device=device)
        first = Queries(
            self._tables[0],
            torch.full((size,), self.cache.n_rows, device=device),
            torch.zeros(size, dtype=torch.int64, device=device),
            tuple((i, 1) for i in range(size)),
            self.cache.max_len,
        )
        queries = [replace(first, tables_RC=table) for table in self._tables]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # compiles kernels and fills the allocator before anything is captured
            for _ in range(2):
                self.model.logits(self.model.hidden(tokens_N, self.cache, queries))
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            logits_NV = self.model.logits(self.model.hidden(tokens_N, self.cache, queries))
        self._pool = graph.pool()
        return graph, tokens_N, queries, logits_NV
