"""How a request's next token is drawn. Each request has its own random stream: its company does not change it."""

import math
import secrets
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SamplingParams:
    max_tokens: int = 128
    temperature: float = 0.0
    """0 takes the most probable token; else the logits are divided by it."""
    top_k: int = 0
    """Only the k most probable tokens; 0 is no limit."""
    top_p: float = 1.0
    """Only the fewest tokens that together reach this probability (nucleus sampling, arXiv 1904.09751)."""
    seed: int | None = None
    """The same tokens every time; None draws a seed."""
    stop_ids: tuple[int, ...] = ()
    """Tokens that end the answer and are not part of it."""
    stop: tuple[str, ...] = ()
    """Strings that end the answer; the text ends before them."""

    def validate(self) -> None:
        """Raises `ValueError` with the name, the value and what is allowed."""
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens = {self.max_tokens}: at least 1")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature = {self.temperature}: a finite number, at least 0")
        if self.top_k < 0:
            raise ValueError(f"top_k = {self.top_k}: at least 0 (no limit)")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p = {self.top_p}: above 0 and at most 1 (no limit)")
        if "" in self.stop:
            raise ValueError("stop holds an empty string, which every text contains")


def generator(seed: int | None) -> torch.Generator:
    """A request's own random stream; on the CPU, so that a seed means the same everywhere."""
    return torch.Generator().manual_seed(secrets.randbits(63) if seed is None else seed % 2**63)


def sample(logits_V: Tensor, params: SamplingParams, stream: torch.Generator) -> int:
    """One token id. Draws exactly one number from `stream`, or none where the temperature is 0."""
    if params.temperature == 0:
        return int(logits_V.argmax())
    logits_V = logits_V.double().cpu()
    # Subtracting the largest first keeps a very small temperature from overflowing.
    probs_V = ((logits_V - logits_V.max()) / params.temperature).softmax(-1)
    probs_V, ids_V = probs_V.sort(descending=True, stable=True)
    if params.top_k:
        probs_V = probs_V[: params.top_k]
    cumulative_V = probs_V.cumsum(0)
    if params.top_p < 1:
        enough = int((cumulative_V < params.top_p * cumulative_V[-1]).sum()) + 1
        cumulative_V = cumulative_V[:enough]
    point = torch.rand((), dtype=torch.float64, generator=stream) * cumulative_V[-1]
    rank = min(int(torch.searchsorted(cumulative_V, point, right=True)), len(cumulative_V) - 1)
    return int(ids_V[rank])
