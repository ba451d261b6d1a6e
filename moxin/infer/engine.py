"""Continuous batching: every step admits waiting requests, reads a chunk of their prompts and makes one token for every
running one. Requests come and go at any step; none waits for another to end (Orca, OSDI 2022)."""

from collections import deque
from dataclasses import dataclass, field

import torch
from torch import Tensor

from moxin.infer.cache import RollingCache
from moxin.infer.detokenize import Decode, Detokenizer
from moxin.infer.sampling import SamplingParams, generator, sample
from moxin.model.decoder import Decoder

PREFILL_CHUNK = 256
"""Most prompt tokens of a request that one step reads, so that a long prompt does not hold up the others."""


@dataclass(frozen=True)
class Request:
    id: str
    tokens: list[int]
    params: SamplingParams = field(default_factory=SamplingParams)


@dataclass(frozen=True)
class Event:
    """Something that happened to a request. `token` is None where a stop id, which is no part of it, ended the answer."""

    id: str
    token: int | None
    finished: str | None = None
    """"stop" or "length" with the last event of a request."""


class _Running:
    """A request in a row of the cache: the tokens it has, how many of them the cache holds, and its random stream."""

    def __init__(self, request: Request, row: int, decode: Decode | None) -> None:
        self.request, self.row = request, row
        self.tokens = list(request.tokens)
        self.n_cached = 0
        self.stream = generator(request.params.seed)
        self.text = Detokenizer(decode, request.params.stop) if decode and request.params.stop else None

    @property
    def n_waiting(self) -> int:
        """Tokens that the model has not read: the rest of the prompt, or the one token made last."""
        return len(self.tokens) - self.n_cached


class Engine:
    """Requests in, events out. `max_len` bounds prompt and answer together, in tokens (`max_seq_len` by default);
    `decode` is needed for stop strings only. Raises `ValueError` for a `max_len` beyond learned positions."""

    def __init__(
        self, model: Decoder, *, max_batch: int = 8, max_len: int | None = None, decode: Decode | None = None
    ) -> None:
        weight = model.embedding.weight
        self.model, self.decode, self.device = model.eval(), decode, weight.device
        self.max_len = max_len or model.config.max_seq_len
        if model.config.position == "learned" and self.max_len > model.config.max_seq_len:
            raise ValueError(
                f"max_len = {self.max_len} exceeds model.max_seq_len = {model.config.max_seq_len}: learned positions end"
            )
        self.cache = RollingCache(model.config, max_batch, self.max_len, weight.dtype, weight.device)
        self.waiting: deque[Request] = deque()
        self.running: list[_Running] = []
        self.free_rows = list(range(max_batch))

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, request: Request) -> None:
        """Queues a request. Raises `ValueError` for one that cannot be answered: its prompt, parameters or id."""
        request.params.validate()
        known = {other.id for other in self.waiting} | {state.request.id for state in self.running}
        if request.id in known:
            raise ValueError(f"request id {request.id!r} is in use")
        if not 0 < len(request.tokens) < self.max_len:
            raise ValueError(
                f"the prompt has {len(request.tokens)} tokens; it needs at least 1 and, so that an answer fits in "
                f"max_len = {self.max_len}, at most {self.max_len - 1}"
            )
        vocab = self.model.config.vocab_size
        if outside := [token for token in request.tokens if not 0 <= token < vocab]:
            raise ValueError(f"prompt token {outside[0]} is outside the vocabulary of {vocab}")
        if request.params.stop and self.decode is None:
            raise ValueError("stop strings need text: give Engine(decode=tokenizer.decode)")
        self.waiting.append(request)

    def cancel(self, id: str) -> bool:
        """Drops a request and frees its row at once; no event follows. False where it is not known (any more)."""
        for request in self.waiting:
            if request.id == id:
                self.waiting.remove(request)
                return True
        for state in self.running:
            if state.request.id == id:
                self._release(state)
                return True
        return False

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """One round; what came of it, in no particular order among requests."""
        while self.waiting and self.free_rows:
            row = min(self.free_rows)
            self.free_rows.remove(row)
            self.running.append(_Running(self.waiting.popleft(), row, self.decode))
        self.running.sort(key=lambda state: state.row)
        reading = [state for state in self.running if state.n_waiting > 1]
        writing = [state for state in self.running if state.n_waiting == 1]
        return [event for group in (reading, writing) if group for event in self._forward(group)]

    def _forward(self, group: list[_Running]) -> list[Event]:
        chunks = [state.tokens[state.n_cached :][:PREFILL_CHUNK] for state in group]
        longest = max(map(len, chunks))
        tokens_BT = torch.tensor(
            [chunk + [0] * (longest - len(chunk)) for chunk in chunks], device=self.device
        )
        positions_BT = torch.tensor(
            [
                [state.n_cached + i if i < len(chunk) else -1 for i in range(longest)]
                for state, chunk in zip(group, chunks, strict=True)
            ],
            device=self.device,
        )
        cache = self.cache.rows([state.row for state in group])
        x_BTE = self.model.hidden(tokens_BT, cache=cache, positions_BT=positions_BT)
        for state, chunk in zip(group, chunks, strict=True):
            state.n_cached += len(chunk)
        ends = [b for b, state in enumerate(group) if state.n_waiting == 0]
        if not ends:
            return []
        # Logits are made for the last token of a prompt only.
        x_BE = x_BTE[ends, [len(chunks[b]) - 1 for b in ends]]
        logits_BV = self.model.head(x_BE)
        return [self._next(group[b], logits_V) for b, logits_V in zip(ends, logits_BV, strict=True)]

    def _next(self, state: _Running, logits_V: Tensor) -> Event:
        request, params = state.request, state.request.params
        token = sample(logits_V, params, state.stream)
        if token in params.stop_ids:
            self._release(state)
            return Event(request.id, None, "stop")
        state.tokens.append(token)
        finished = None
        if state.text is not None:
            state.text.push(token)
            finished = "stop" if state.text.stopped else None
        n_new = len(state.tokens) - len(request.tokens)
        if not finished and (n_new == params.max_tokens or len(state.tokens) == self.max_len):
            finished = "length"
        if finished:
            self._release(state)
        return Event(request.id, token, finished)

    def _release(self, state: _Running) -> None:
        self.running.remove(state)
        self.cache.free(state.row)
        self.free_rows.append(state.row)
