"""Embeddings: the mean of what the last layer says of every token, read beside the engine's answers."""

from collections.abc import Sequence

import torch

from moxin.infer.cache import Held
from moxin.infer.engine import FEW, Engine


class Embedding:
    """A text on its way to its embedding: `step` reads a chunk of it with the engine's weights and cache.

    The embedding is the mean over all tokens of the decoder's output after its last norm, scaled to length 1. A decoder that
    was trained to say what comes next gives embeddings that compare texts roughly; it was not trained for them.
    Raises `ValueError` for a text that is empty, does not fit `max_len`, or has ids outside the vocabulary.
    """

    def __init__(self, engine: Engine, tokens: Sequence[int]) -> None:
        vocab = engine.model.config.vocab_size
        if not 0 < len(tokens) <= engine.max_len:
            raise ValueError(f"input has {len(tokens)} tokens: 1 to {engine.max_len}")
        for token in tokens:
            if type(token) is not int or not 0 <= token < vocab:
                raise ValueError(f"input token {token!r} is outside the vocabulary of {vocab}")
        self.engine, self.tokens = engine, list(tokens)
        self.n_read = 0
        self._sum_E = torch.zeros(engine.model.config.d_model, dtype=torch.float64)
        self._held: Held | None = None

    @torch.inference_mode()
    def step(self) -> list[float] | None:
        """The embedding [d_model] when all is read, else None. Nothing happens while every row of the cache is taken."""
        cache, scheduler, model = self.engine.cache, self.engine.scheduler, self.engine.model
        if self._held is None:
            if not cache.n_free_rows:
                return None
            self._held = cache.open([], 0)
        n = min(scheduler.chunk, len(self.tokens) - self.n_read)
        scheduler.reserve(self._held, self.n_read + n)
        tokens_N = torch.tensor(self.tokens[self.n_read : self.n_read + n], device=model.device)
        queries = cache.queries([(self._held, self.n_read, n)])
        few_rows = self.engine.few_rows if n <= FEW else 0
        stack = self.engine.stack if few_rows else None
        self._sum_E += model.hidden(tokens_N, cache, queries, few_rows, stack).double().sum(0).cpu()
        self.n_read += n
        cache.commit(self._held, [], self.n_read)
        if self.n_read < len(self.tokens):
            return None
        self.close()
        mean_E = self._sum_E / len(self.tokens)
        return (mean_E / mean_E.norm().clamp_min(1e-12)).tolist()

    def close(self) -> None:
        """Gives back what it holds of the cache; to be called where it is not wanted any more."""
        if self._held is not None:
            self.engine.cache.close(self._held)
            self._held = None
