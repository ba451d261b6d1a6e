"""The objective of language modelling. Every objective returns a sum and a count, so that a step's loss is exact however the
batch is cut into workers and micro-batches."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

IGNORE = -100
"""Target of a position that is not in the loss."""


def next_token(
    module: nn.Module, micro: Mapping[str, Tensor], z_loss: float = 0.0, n_sources: int = 0
) -> tuple[Tensor, Tensor]:
    """The sum of the negative log-likelihood (nats) of `targets`, with `z_loss` times log²(Z) each, to differentiate; and
    float64[2 + 2 · n_sources]: that without the z-loss, the number of targets, and the same two of every source.

    `tokens` and `targets` are int64[B, T], `segments` int32[B, T]; targets of -100 are left out. `sources`, int64[B], says
    where a row is from.
    """
    loss, nll_BT = module(
        micro["tokens"],
        segments_BT=micro["segments"],
        targets_BT=micro["targets"],
        reduction="sum",
        z_loss=z_loss,
    )
    rows_B2 = torch.stack([nll_BT.sum(1, dtype=torch.float64), (micro["targets"] != IGNORE).sum(1)], 1)
    sums = rows_B2.sum(0)
    if not n_sources:
        return loss, sums
    by_source = rows_B2.new_zeros(n_sources, 2).index_add_(0, micro["sources"], rows_B2)
    return loss, torch.cat([sums, by_source.flatten()])


def count_targets(micro: Mapping[str, np.ndarray]) -> int:
    """The count that `next_token` will return for this micro-batch."""
    return int((micro["targets"] != IGNORE).sum())
