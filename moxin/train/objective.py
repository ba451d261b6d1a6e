"""The objective of language modelling. Every objective returns a sum and a count, so that a step's loss is exact however the
batch is cut into workers and micro-batches."""

from collections.abc import Mapping

import numpy as np
from torch import Tensor, nn

IGNORE = -100
"""Target of a position that is not in the loss."""


def next_token(module: nn.Module, micro: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Sum of the negative log-likelihood (nats) of `targets`, and the number of targets.

    `tokens` and `targets` are int64[B, T], `segments` int32[B, T]; targets of -100 are left out.
    """
    total, _ = module(
        micro["tokens"], segments_BT=micro["segments"], targets_BT=micro["targets"], reduction="sum"
    )
    return total, (micro["targets"] != IGNORE).sum()


def count_targets(micro: Mapping[str, np.ndarray]) -> int:
    """The count that `next_token` will return for this micro-batch."""
    return int((micro["targets"] != IGNORE).sum())
