"""The rolling key/value cache: a ring per row and layer, no longer than the model can look back (arXiv 2310.06825, §2).

Letters of tensor names as in `moxin.model.decoder`; R entries of a ring, S keys attended to.
"""

import torch
from torch import Tensor

from kernels.attention import Mask
from kernels.precision import matmul_dtype
from moxin.recipe import ModelConfig


class RollingCache:
    """Keys and values of `n_rows` sequences. The token at position p lies in entry p mod R of its row, where R is the
    widest window of any layer, or `max_len` where a layer has none or is never asked to go beyond it.

    Memory: 2 x n_layers x n_rows x (R + 1) x n_kv_heads x head_dim numbers; entry 0 of the tensors takes padding.
    """

    def __init__(
        self,
        config: ModelConfig,
        n_rows: int,
        max_len: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.window = config.widest_window
        self.size = min(max_len, self.window or max_len)
        shape = (config.n_layers, n_rows, 1 + self.size, config.n_kv_heads, config.head_dim)
        dtype = matmul_dtype(dtype, torch.device(device))
        self.k = torch.zeros(shape, dtype=dtype, device=device)
        self.v = torch.zeros(shape, dtype=dtype, device=device)
        self.positions = torch.full((n_rows, 1 + self.size), -1, dtype=torch.int64, device=device)

    def rows(self, rows: list[int] | None = None) -> "CacheRows":
        """The part of the cache that a forward pass over these rows, in this order, reads and writes; None is all."""
        return CacheRows(self, list(range(len(self.positions))) if rows is None else rows)

    def free(self, row: int) -> None:
        """Forgets a row's sequence; another may begin there."""
        self.positions[row] = -1


class CacheRows:
    """One forward pass's view of a `RollingCache`: row b of the batch is row `rows[b]` of the cache.

    One new token each: it is written first and the ring itself is attended to. Several: they may overwrite what the first
    of them must still see, so they attend to the ring as it was with the new ones behind it.
    """

    def __init__(self, cache: RollingCache, rows: list[int]) -> None:
        self.cache = cache
        first = rows[0]
        adjacent = rows == list(range(first, first + len(rows)))
        device = cache.positions.device
        self.rows_B1 = torch.tensor(rows, device=device).unsqueeze(1)
        # Adjacent rows are a view; others are copied together for every layer.
        self.part: slice | Tensor = slice(first, first + len(rows)) if adjacent else self.rows_B1.squeeze(1)

    def begin(self, positions_BT: Tensor) -> Mask:
        """Takes the positions of the new tokens, rising by one in each row, -1 for padding; returns what each token sees."""
        cache = self.cache
        before_BR = cache.positions[self.part].clone()
        last_B1 = positions_BT.amax(1, keepdim=True)
        stays = (positions_BT >= 0) & (positions_BT > last_B1 - cache.size)
        self.entries_BT = torch.where(stays, 1 + positions_BT % cache.size, 0)
        cache.positions[self.rows_B1, self.entries_BT] = torch.where(stays, positions_BT, -1)
        self.single = positions_BT.shape[1] == 1
        # Entries that no row of this batch has filled yet are not read.
        self.filled = 1 + min(cache.size, int((last_B1 if self.single else before_BR).max()) + 1)
        if self.single:
            keys_BS = cache.positions[self.part][:, : self.filled]
        else:
            keys_BS = torch.cat([before_BR[:, : self.filled], positions_BT], 1)
        return Mask(positions_BT, keys_BS, cache.window)

    def update(self, layer: int, k_BTKD: Tensor, v_BTKD: Tensor) -> tuple[Tensor, Tensor]:
        """Writes a layer's keys and values; returns those to attend to, [B, S, K, D] in the order of the mask."""
        return self._one(self.cache.k[layer], k_BTKD), self._one(self.cache.v[layer], v_BTKD)

    def _one(self, ring_BRKD: Tensor, new_BTKD: Tensor) -> Tensor:
        if not self.single:
            seen = torch.cat([ring_BRKD[self.part, : self.filled], new_BTKD], 1)
        ring_BRKD[self.rows_B1, self.entries_BT] = new_BTKD
        return ring_BRKD[self.part, : self.filled] if self.single else seen
