"""What a request may ask of its answer, and how a token is drawn from logits. Each answer has its own random stream: its
company does not change it.

The order is that of `transformers`: penalties, bias and what is forbidden; temperature; top-k; top-p; min-p.
"""

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import Tensor

MAX_N = 128
"""Most answers to one request."""
MAX_TOP_LOGPROBS = 128
"""Most alternatives that are reported for a token."""
MAX_STOPS = 64
"""Most stop strings, and most stop ids."""
NUCLEUS = 256
"""Tokens that are looked at first for a nucleus; only where they do not reach `top_p` is the whole vocabulary sorted."""


@dataclass(frozen=True)
class SamplingParams:
    max_tokens: int = 128
    temperature: float = 0.0
    """0 takes the most probable token; else the logits are divided by it."""
    top_k: int = 0
    """Only the k most probable tokens; 0 is no limit."""
    top_p: float = 1.0
    """Only the fewest tokens that together reach this probability (nucleus sampling, arXiv 1904.09751)."""
    min_p: float = 0.0
    """Only tokens at least this share as probable as the most probable one (arXiv 2407.01082)."""
    repetition_penalty: float = 1.0
    """Logits of tokens of prompt and answer are divided by it where positive, else multiplied (arXiv 1909.05858, §4.1)."""
    presence_penalty: float = 0.0
    """Subtracted from the logits of tokens that the answer has, OpenAI's."""
    frequency_penalty: float = 0.0
    """Subtracted from the logits of tokens of the answer, once for each time."""
    logit_bias: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))
    """Added to the logits of these tokens."""
    seed: int | None = None
    """The same tokens every time; None draws a seed. Answer i of `n` has a stream of its own."""
    stop_ids: tuple[int, ...] = ()
    """Tokens that end the answer and are not part of it."""
    stop: tuple[str, ...] = ()
    """Strings that end the answer; the text ends before them, with `include_stop` behind them."""
    include_stop: bool = False
    min_tokens: int = 0
    """Before so many tokens nothing ends the answer: stop ids cannot come and stop strings are not looked for."""
    ignore_eos: bool = False
    """Whether the engine's own `eos_ids` are tokens like any other."""
    n: int = 1
    """Answers to the prompt."""
    logprobs: int | None = None
    """With every token its log-probability and those of this many most probable ones; 0 is the token's alone."""
    prompt_logprobs: int | None = None
    """The same for the prompt's tokens."""
    json_schema: str | None = None
    """The answer is JSON of this schema (a JSON text; "{}" is any JSON)."""
    regex: str | None = None
    """The answer matches this regular expression."""
    grammar: str | None = None
    """The answer is of this grammar, in llguidance's variant of Lark."""

    @property
    def constrained(self) -> bool:
        return any(text is not None for text in (self.json_schema, self.regex, self.grammar))

    def validate(self, vocab_size: int | None = None) -> None:
        """Raises `ValueError` with the name, the value and what is allowed."""
        for name, low, high in (
            ("max_tokens", 1, None),
            ("top_k", 0, None),
            ("min_tokens", 0, self.max_tokens),
            ("n", 1, MAX_N),
            ("logprobs", 0, MAX_TOP_LOGPROBS),
            ("prompt_logprobs", 0, MAX_TOP_LOGPROBS),
        ):
            value = getattr(self, name)
            if value is None and name.endswith("logprobs"):
                continue
            if type(value) is not int or value < low or (high is not None and value > high):
                bound = f"{low} to {high}" if high is not None else f"at least {low}"
                raise ValueError(f"{name} = {value!r}: a whole number, {bound}")
        for name in ("temperature", "presence_penalty", "frequency_penalty"):
            if not _finite(getattr(self, name)):
                raise ValueError(f"{name} = {getattr(self, name)}: must be a finite number")
        if self.temperature < 0:
            raise ValueError(f"temperature = {self.temperature}: at least 0 (greedy)")
        if not (_finite(self.top_p) and 0 < self.top_p <= 1):
            raise ValueError(f"top_p = {self.top_p}: above 0 and at most 1 (no limit)")
        if not (_finite(self.min_p) and 0 <= self.min_p <= 1):
            raise ValueError(f"min_p = {self.min_p}: from 0 (no limit) to 1")
        if not (_finite(self.repetition_penalty) and self.repetition_penalty > 0):
            raise ValueError(f"repetition_penalty = {self.repetition_penalty}: above 0; 1 is none")
        if self.seed is not None and type(self.seed) is not int:
            raise ValueError(f"seed = {self.seed!r}: a whole number, or None")
        if any(not isinstance(stop, str) or not stop for stop in self.stop):
            raise ValueError(
                "stop holds an empty string, which every text contains, or something else than text"
            )
        for name in ("stop", "stop_ids"):
            if len(getattr(self, name)) > MAX_STOPS:
                raise ValueError(f"{name} has {len(getattr(self, name))} entries: at most {MAX_STOPS}")
        for token, bias in self.logit_bias.items():
            if type(token) is not int or token < 0 or (vocab_size is not None and token >= vocab_size):
                raise ValueError(f"logit_bias: token {token!r} is outside the vocabulary of {vocab_size}")
            if math.isnan(bias):
                raise ValueError(f"logit_bias of token {token} is {bias}: must be a number")
        chosen = [name for name in ("json_schema", "regex", "grammar") if getattr(self, name) is not None]
        if len(chosen) > 1:
            raise ValueError(f"{' and '.join(chosen)} are given: an answer takes one of them")


def _finite(value: float) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def generator(seed: int | None, index: int = 0) -> torch.Generator:
    """An answer's own random stream; on the CPU, so that a seed means the same everywhere."""
    if seed is None:
        return torch.Generator().manual_seed(secrets.randbits(63))
    # Answer 0 has the seed itself; the others are spread by a large odd number.
    return torch.Generator().manual_seed((seed + index * 0x9E3779B97F4A7C15) % 2**63)


def penalised(
    logits_V: Tensor, params: SamplingParams, prompt: set[int], counts: Mapping[int, int]
) -> Tensor:
    """The logits after penalties and bias, float32; in a tensor of its own where anything changes. `counts` says how often
    each token stands in the answer."""
    repetition = params.repetition_penalty != 1
    additive = bool(params.presence_penalty or params.frequency_penalty)
    if not (repetition or (additive and counts) or params.logit_bias):
        return logits_V
    logits_V = logits_V.clone()
    if repetition and (seen := prompt.union(counts)):
        ids = torch.tensor(sorted(seen), device=logits_V.device)
        at = logits_V[ids]
        logits_V[ids] = torch.where(at > 0, at / params.repetition_penalty, at * params.repetition_penalty)
    if additive and counts:
        ids = torch.tensor(list(counts), device=logits_V.device)
        times = torch.tensor(list(counts.values()), dtype=torch.float32, device=logits_V.device)
        logits_V[ids] -= params.presence_penalty + params.frequency_penalty * times
    for token, bias in params.logit_bias.items():
        logits_V[token] += bias
    return logits_V


def sample(logits_V: Tensor, params: SamplingParams, stream: torch.Generator) -> int:
    """One token id. Draws exactly one number from `stream`, or none where the temperature is 0."""
    if params.temperature == 0:
        return int(logits_V.argmax())
    # Subtracting the largest first keeps a very small temperature from overflowing.
    scaled_V = (logits_V.cpu().double() - logits_V.max().item()) / params.temperature
    probs_V = scaled_V.softmax(-1)
    ids_V: Tensor | None = None
    if params.top_k and params.top_k < len(probs_V):
        probs_V, ids_V = probs_V.topk(params.top_k)
    if params.top_p < 1:
        wanted = params.top_p * float(probs_V.sum())
        if ids_V is None:
            probs_V, ids_V = _nucleus_candidates(probs_V, wanted)
        enough = int((probs_V.cumsum(0) < wanted).sum()) + 1
        probs_V, ids_V = probs_V[:enough], ids_V[:enough]
    if params.min_p:
        probs_V = probs_V * (probs_V >= params.min_p * probs_V.max())
    cumulative_V = probs_V.cumsum(0)
    point = torch.rand((), dtype=torch.float64, generator=stream) * cumulative_V[-1]
    rank = min(int(torch.searchsorted(cumulative_V, point, right=True)), len(cumulative_V) - 1)
    while rank > 0 and probs_V[rank] == 0:  # the sum's rounding must not lead to what cannot come
        rank -= 1
    return rank if ids_V is None else int(ids_V[rank])


def _nucleus_candidates(probs_V: Tensor, wanted: float) -> tuple[Tensor, Tensor]:
    if len(probs_V) > NUCLEUS:
        found = probs_V.topk(NUCLEUS)
        if float(found.values.sum()) >= wanted:
            return found.values, found.indices
    ordered = probs_V.sort(descending=True, stable=True)
    return ordered.values, ordered.indices


@dataclass(frozen=True)
class Logprobs:
    """Natural logarithms of probabilities under the model itself: before temperature, penalties and constraints."""

    token: int
    logprob: float
    rank: int
    """1 is the most probable token."""
    top: tuple[tuple[int, float], ...] = ()
    """The most probable tokens and their logarithms, falling."""


def logprobs_of(logits_V: Tensor, token: int, n_top: int) -> Logprobs:
    logp_V = logits_V.float().log_softmax(-1)
    at = logp_V[token]
    top = logp_V.topk(min(n_top, len(logp_V)))
    pairs = tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True))
    return Logprobs(token, float(at), int((logp_V > at).sum()) + 1, pairs)
