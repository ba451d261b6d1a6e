"""AdamW as language models are trained with it."""

import torch
from torch import nn


def adamw(module: nn.Module, betas: tuple[float, float], weight_decay: float) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101) that decays matrices and embeddings, and not norms. The loop sets the learning rate.

    torch's own: DeepSpeed's CPU Adam compiles C++ on first use, 89 s measured.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=0.0, betas=betas, eps=1e-8, fused=True)
