"""What each query sees: positions, sliding window and documents, and the block ranges that the kernels derive from them.

Letters of tensor names as in `kernels.attention`.
"""

import math
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor


@dataclass(eq=False)
class Mask:
    """A query at index i sees the keys at i - window + 1 … i of its own document; a negative index means "not there".

    `q_index_BT` is int64 [B or 1, T], `k_index_BS` int64 [B or 1, S]; documents are integers of the same shapes, or None.
    A mask is made once per forward pass: what is derived from it is cached and serves every layer. A mask that is not
    causal sees as far ahead as back. Raises `ValueError` for a window below 1.

    In a square mask (`packed`) a document is a run of equal numbers, padding (-1) included. The keys that a query sees are
    then adjacent, `first_BT[i]` … i, and so are the queries that see a key, j … `end_BT[j] - 1`; both arrays rise with the
    index. So the first query of a block tells the first key of the block and the last key its last query: what lies outside
    is never loaded, and one comparison per score masks window and documents together.
    """

    q_index_BT: Tensor
    k_index_BS: Tensor
    window: int | None = None
    causal: bool = True
    q_segments_BT: Tensor | None = None
    k_segments_BS: Tensor | None = None
    _cu_seqlens: dict[int, tuple[Tensor, int]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.window is not None and self.window < 1:
            raise ValueError(
                f"sliding_window={self.window}: a query sees at least itself; set it to 1 or more, or to None for no window"
            )

    @classmethod
    def packed(
        cls,
        n_tokens: int,
        device: torch.device,
        window: int | None = None,
        segments_BT: Tensor | None = None,
        causal: bool = True,
    ) -> "Mask":
        """A row of tokens that looks at itself: the mask of training. Without documents it serves any number of rows."""
        index = torch.arange(n_tokens, device=device).unsqueeze(0)
        window = window if window is not None and window < n_tokens else None
        return cls(index, index, window, causal, segments_BT, segments_BT)

    def within(self, window: int | None) -> "Mask":
        """The same queries, keys and documents with another window: one more kind of layer of the same forward pass."""
        if window is not None and self.square and window >= self.q_index_BT.shape[1]:
            window = None
        return self if window == self.window else replace(self, window=window)

    @property
    def square(self) -> bool:
        """Whether key j is query j, so that the keys a block of queries needs are known without looking."""
        return self.q_index_BT is self.k_index_BS

    @property
    def full(self) -> bool:
        """Whether every query sees every key, or every key up to its own: no window and no documents."""
        return self.square and self.window is None and self.q_segments_BT is None

    @cached_property
    def dense(self) -> Tensor:
        """bool [B or 1, T, S], True where the query sees the key. Quadratic in memory: for references, caches and CPUs."""
        if self.square:
            key_S = torch.arange(self.k_index_BS.shape[1], device=self.k_index_BS.device)
            seen = key_S >= self.first_BT.unsqueeze(2)
            return seen & (key_S < (key_S.unsqueeze(1) + 1 if self.causal else self.end_BT.unsqueeze(2)))
        back = self.q_index_BT.unsqueeze(2) - self.k_index_BS.unsqueeze(1)
        seen = back >= 0 if self.causal else torch.ones_like(back, dtype=torch.bool)
        if self.window is not None:
            seen &= (back < self.window) & (back > -self.window)
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

    @cached_property
    def _document_starts(self) -> Tensor:
        """bool [B or 1, T], True at the first token of each document of a square mask."""
        assert self.square, "documents of a cached mask are not contiguous"
        starts = torch.zeros_like(
            self.q_index_BT if self.q_segments_BT is None else self.q_segments_BT, dtype=torch.bool
        )
        starts[:, :1] = True
        if self.q_segments_BT is not None:
            starts[:, 1:] = self.q_segments_BT[:, 1:] != self.q_segments_BT[:, :-1]
        return starts

    @cached_property
    def first_BT(self) -> Tensor:  # noqa: N802
        """int32 [B or 1, T]: the index in its row of the first key that a query sees. Square masks."""
        index_T = torch.arange(self.q_index_BT.shape[1], device=self.q_index_BT.device, dtype=torch.int32)
        first_BT = (self._document_starts * index_T).int().cummax(1).values
        if self.window is not None:
            first_BT = torch.maximum(first_BT, index_T - self.window + 1)
        return first_BT

    @cached_property
    def end_BT(self) -> Tensor:  # noqa: N802
        """int32 [B or 1, T]: the index in its row after the last query that sees a key. Square masks."""
        n_tokens = self.q_index_BT.shape[1]
        index_T = torch.arange(n_tokens, device=self.q_index_BT.device, dtype=torch.int32)
        next_BT = torch.full_like(self._document_starts, n_tokens, dtype=torch.int32)
        next_BT[:, :-1] = torch.where(self._document_starts[:, 1:], index_T[1:], n_tokens)
        end_BT = next_BT.flip(1).cummin(1).values.flip(1)
        if self.window is not None:
            end_BT = torch.minimum(end_BT, index_T + self.window)
        return end_BT.contiguous()

    def cu_seqlens(self, n_rows: int) -> tuple[Tensor, int]:
        """Where the documents of `n_rows` rows start when all tokens stand in one line, int32 [documents + 1] with the
        number of tokens last, and the longest document's length. Square masks; `n_rows` since rows may share one mask.

        With documents the first call waits for the device, as the number of documents is a shape.
        """
        if n_rows not in self._cu_seqlens:
            n_tokens = self.q_index_BT.shape[1]
            total = n_rows * n_tokens
            device = self.q_index_BT.device
            if self.q_segments_BT is None:
                starts = torch.arange(0, total + 1, n_tokens, device=device, dtype=torch.int32)
                self._cu_seqlens[n_rows] = (starts, n_tokens)
            else:
                found = self._document_starts.expand(n_rows, -1).flatten().nonzero().flatten().int()
                starts = torch.cat([found, found.new_tensor([total])])
                self._cu_seqlens[n_rows] = (starts, int(starts.diff().max()))
        return self._cu_seqlens[n_rows]
