"""ALiBi (Press et al., arXiv 2108.12409): a bias of minus slope times distance in place of position embeddings."""

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=16)
def alibi_slopes(n_heads: int, bias_max: float = 8.0, device: torch.device | str = "cpu") -> Tensor:
    """Every head's slope, float32 [H]: `2^(-bias_max i / n)` for i from 1 to n, `n_heads` rounded up to a power of two.

    Where `n_heads` is none, the slopes of even i come first, then those of odd i until there are enough: the rule of the
    paper's code and of MPT's. The tensor is shared between calls: do not write to it.
    """
    n = 1 << (n_heads - 1).bit_length()
    with torch.inference_mode(False):  # what an answer has made must also serve a training step
        slopes = 2.0 ** (-bias_max / n * torch.arange(1, n + 1, dtype=torch.float64))
        if n != n_heads:
            slopes = torch.cat([slopes[1::2], slopes[::2]])[:n_heads]
        return slopes.to(device, torch.float32)
