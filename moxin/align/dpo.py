"""Length-normalised direct preference optimisation (arXiv 2305.18290; Tülu 3, arXiv 2411.15124, divides by the length).

    loss = -log sigmoid(beta * ((logp_chosen - ref_chosen) - (logp_rejected - ref_rejected)))

where every log-probability is the mean over the tokens of its answer, the closing <|end|> included.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moxin.align.data import Pair, stack_pairs
from moxin.train.objective import IGNORE


def mean_logps(module: nn.Module, micro: Mapping[str, Tensor]) -> Tensor:
    """Mean log-probability per answer token of every row: float32[B]."""
    nll_BT = module(micro["tokens"], segments_BT=micro["segments"], targets_BT=micro["targets"])
    return -nll_BT.float().sum(1) / (micro["targets"] != IGNORE).sum(1)


def dpo(module: nn.Module, micro: Mapping[str, Tensor], beta: float) -> tuple[Tensor, Tensor]:
    """The loss summed over the P pairs of a micro-batch (`data.stack_pairs` with `reference` float32[2P]); again, and P."""
    rewards = beta * (mean_logps(module, micro) - micro["reference"])
    chosen, rejected = rewards.chunk(2)
    loss = -F.logsigmoid(chosen - rejected).sum()
    return loss, torch.stack([loss.detach().double(), loss.new_full((), len(chosen), dtype=torch.float64)])


def count_pairs(micro: Mapping[str, np.ndarray]) -> int:
    """The count that `dpo` will return for this micro-batch."""
    return len(micro["tokens"]) // 2


@torch.inference_mode()
def score_pairs(module: nn.Module, pairs: Sequence[Pair], pad_id: int) -> tuple[list[float], list[float]]:
    """Mean log-probability per answer token of the chosen and of the rejected answers, in one batch."""
    device = next(module.parameters()).device
    micro = {name: torch.from_numpy(array).to(device) for name, array in stack_pairs(pairs, pad_id).items()}
    scores = mean_logps(module, micro).tolist()
    return scores[: len(pairs)], scores[len(pairs) :]
