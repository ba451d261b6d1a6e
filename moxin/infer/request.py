"""What goes into the engine and what comes out of it."""

from dataclasses import dataclass, field
from typing import Literal

from moxin.infer.sampling import Logprobs, SamplingParams

Finish = Literal["stop", "length"]


@dataclass(frozen=True)
class Request:
    id: str
    tokens: list[int]
    """The prompt."""
    params: SamplingParams = field(default_factory=SamplingParams)
    salt: str = ""
    """Only requests with the same salt share remembered pages: how fast a prompt is read tells what others have sent."""


@dataclass(frozen=True)
class Event:
    """A token of an answer, or the end of one. `token` is None where a stop id, which is no part of it, ended the answer."""

    id: str
    token: int | None
    finished: Finish | None = None
    """With the last event of an answer: "stop" or "length"."""
    text: str = ""
    """The text that can be shown now, whole characters; "" without a `decode`. All pieces together are the answer's text."""
    index: int = 0
    """Which of the request's `n` answers."""
    logprobs: Logprobs | None = None
    prompt_logprobs: tuple[Logprobs | None, ...] | None = None
    """With the first event of answer 0 where they were asked for: one for each prompt token, None for the first."""
    stop_reason: int | str | None = None
    """The stop id or stop string that ended the answer."""


@dataclass(frozen=True)
class Stats:
    """The engine now, and since it was made (the counters). Names as of vLLM's metrics where it has them."""

    num_requests_running: int
    """Answers in work; a request with `n` answers counts n times."""
    num_requests_waiting: int
    num_free_pages: tuple[int, ...]
    """For each group of layers with one window."""
    num_pages: tuple[int, ...]
    kv_cache_usage_perc: float
    """Pages held, of all: 0 to 1."""
    prefix_cache_queries: int
    """Tokens looked for among remembered pages."""
    prefix_cache_hits: int
    num_preemptions: int
    prompt_tokens: int
    """Prompt tokens read, those found in the prefix cache included."""
    generation_tokens: int
    request_success_stop: int
    request_success_length: int
    requests_cancelled: int
    spec_decode_num_draft_tokens: int
    spec_decode_num_accepted_tokens: int
