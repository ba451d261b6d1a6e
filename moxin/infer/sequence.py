"""One answer in work: its tokens, how far the model has read them, and what decides its next one."""

import torch
from torch import Tensor

from moxin.infer.cache import Held
from moxin.infer.detokenize import Decode, Detokenizer
from moxin.infer.grammar import Matcher
from moxin.infer.request import Event, Finish, Request
from moxin.infer.sampling import Logprobs, generator, logprobs_of, penalised, sample
from moxin.infer.speculate import PromptLookup


class AnswerSequence:
    """Answer `index` to a request. `held` is its place in the cache, None while it waits."""

    def __init__(
        self,
        request: Request,
        index: int,
        decode: Decode | None,
        eos_ids: tuple[int, ...],
        max_len: int,
        matcher: Matcher | None = None,
        lookup: PromptLookup | None = None,
    ) -> None:
        params = request.params
        self.request, self.index, self.matcher, self.lookup = request, index, matcher, lookup
        self.tokens = list(request.tokens)
        self.n_prompt, self.n_computed = len(request.tokens), 0
        self.keys: list[bytes] = []
        self.held: Held | None = None
        self.prompt_logprobs: list[Logprobs | None] | None = (
            None if params.prompt_logprobs is None else [None]
        )
        self._stream = generator(params.seed, index)
        self._prompt = set(request.tokens) if params.repetition_penalty != 1 else set()
        self._counts: dict[int, int] = {}
        self._text = Detokenizer(decode, params.stop, params.include_stop) if decode else None
        ends = params.stop_ids if params.ignore_eos else (*params.stop_ids, *eos_ids)
        self._stop_ids = frozenset(ends)
        self._max_len = max_len
        self._ended = False

    @property
    def n_answered(self) -> int:
        return len(self.tokens) - self.n_prompt

    @property
    def n_pending(self) -> int:
        """Tokens that the model has not read: the rest of the prompt, or the one made last."""
        return len(self.tokens) - self.n_computed

    @property
    def simple(self) -> bool:
        """Whether the next token is the most probable one, whatever went before."""
        params = self.request.params
        return (
            params.temperature == 0
            and params.logprobs is None
            and self.matcher is None
            and not self.forbids_end
            and params.repetition_penalty == 1
            and not (params.presence_penalty or params.frequency_penalty or params.logit_bias)
        )

    @property
    def forbids_end(self) -> bool:
        return self.n_answered < self.request.params.min_tokens

    def guesses(self) -> list[int]:
        """Tokens to try behind the last one."""
        if self.lookup is None or self.matcher is not None:
            return []
        room = min(self._max_len, self.n_prompt + self.request.params.max_tokens) - len(self.tokens) - 1
        return self.lookup.guess(self.tokens)[: max(0, room)]

    def next(self, logits_V: Tensor, greedy: int | None = None) -> Event:
        """Draws the next token from the logits behind the last one and says what came of it. `greedy` is the most probable
        token where that has been found already, for a `simple` sequence."""
        params = self.request.params
        logprobs = None
        if greedy is not None:
            token = greedy
        else:
            adjusted_V = penalised(logits_V, params, self._prompt, self._counts)
            if self.matcher is not None:
                adjusted_V = self.matcher.forbid(adjusted_V)
            if self.forbids_end and self._stop_ids:
                ids = torch.tensor(sorted(self._stop_ids), device=logits_V.device)
                if bool((adjusted_V > -torch.inf).sum() > (adjusted_V[ids] > -torch.inf).sum()):
                    adjusted_V = adjusted_V.index_fill(0, ids, -torch.inf)
            token = sample(adjusted_V, params, self._stream)
            if params.logprobs is not None:
                logprobs = logprobs_of(logits_V, token, params.logprobs)
        if token in self._stop_ids:
            return self._event(None, "stop", self._rest(), logprobs, token)
        looks = self.n_answered + 1 >= params.min_tokens
        self.tokens.append(token)
        self._counts[token] = self._counts.get(token, 0) + 1
        if self.matcher is not None:
            self.matcher.accept(token)
        text = self._text.push(token, looks) if self._text else ""
        finished: Finish | None = None
        reason: str | None = None
        if self._text and self._text.stopped is not None:
            finished, reason = "stop", self._text.stopped
        elif self.matcher is not None and self.matcher.complete:
            finished = "stop"
        elif self.n_answered == params.max_tokens or len(self.tokens) == self._max_len:
            finished = "length"
        if finished:
            text += self._rest()
        return self._event(token, finished, text, logprobs, reason)

    def _rest(self) -> str:
        return self._text.finish() if self._text else ""

    def _event(
        self,
        token: int | None,
        finished: Finish | None,
        text: str,
        logprobs: Logprobs | None,
        reason: int | str | None,
    ) -> Event:
        prompt, self.prompt_logprobs = self.prompt_logprobs, None
        self._ended = finished is not None
        return Event(
            self.request.id,
            token,
            finished,
            text,
            self.index,
            logprobs,
            None if prompt is None else tuple(prompt),
            reason,
        )

    @property
    def ended(self) -> bool:
        return self._ended
