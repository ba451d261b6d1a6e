"""Pieces of answers as OpenAI's response objects: whole answers and the events of a stream."""

import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from time import time
from typing import Any

from pydantic import BaseModel

from serve import bodies
from serve.engine_loop import Job, Piece
from serve.schemas import ChatRequest, CompletionRequest, GenerationRequest
from serve.token_text import TokenText
from serve.tools import CallReader, functions


def sse(body: BaseModel) -> str:
    """One server-sent event. Unset fields are left out; a null that was set is written, as OpenAI does."""
    return f"data: {body.model_dump_json(exclude_unset=True)}\n\n"


class Reply(ABC):
    """The response to one request, whole or in parts. Pieces are given to either `whole` or, as they come, `parts`."""

    prefix: str

    def __init__(self, model: str, body: GenerationRequest, job: Job, token_text: TokenText) -> None:
        self.id, self.created = f"{self.prefix}-{uuid.uuid4().hex}", int(time())
        self.model, self.include_usage, self.continuous = model, body.include_usage, body.continuous_usage
        self.job, self.token_text = job, token_text
        self.n_prompt = sum(len(prompt) for prompt in job.prompts)
        self.n_answer = 0

    @property
    def head(self) -> dict[str, Any]:
        return {"id": self.id, "created": self.created, "model": self.model}

    @property
    def usage(self) -> bodies.Usage:
        n_prompt, n_answer = self.n_prompt, self.n_answer
        return bodies.Usage(
            prompt_tokens=n_prompt, completion_tokens=n_answer, total_tokens=n_prompt + n_answer
        )

    @property
    def part_head(self) -> dict[str, Any]:
        """OpenAI writes `usage: null` into every event of a stream whose last event has it."""
        if not self.include_usage:
            return self.head
        return {**self.head, "usage": self.usage if self.continuous else None}

    def parts(self, pieces: Iterable[Piece]) -> str:
        """The events for these pieces."""
        events = []
        for piece in pieces:
            self.n_answer += len(piece.tokens)
            if (part := self._part(piece)) is not None:
                events.append(sse(part))
        return "".join(events)

    def end(self) -> str:
        """The last events of a stream that came to its end."""
        return (sse(self._counts()) if self.include_usage else "") + "data: [DONE]\n\n"

    @abstractmethod
    def whole(self, pieces: Iterable[Piece]) -> BaseModel: ...

    @abstractmethod
    def _part(self, piece: Piece) -> BaseModel | None:
        """The event for a piece; None where there is nothing to tell yet."""

    @abstractmethod
    def _counts(self) -> BaseModel:
        """The event with the token counts, after all parts."""


class ChatReply(Reply):
    prefix = "chatcmpl"

    def __init__(self, model: str, body: ChatRequest, job: Job, token_text: TokenText) -> None:
        super().__init__(model, body, job, token_text)
        self._readers = [CallReader() for _ in range(job.n_answers)] if functions(body) else []
        self._begun: set[int] = set()

    def whole(self, pieces: Iterable[Piece]) -> bodies.ChatCompletion:
        choices = []
        for piece in _joined(pieces, self.job.n_answers):
            self.n_answer += len(piece.tokens)
            text, calls = self._read(piece)
            message = bodies.ChatMessage(role="assistant", content=text, refusal=None)
            if calls:
                made = [bodies.ToolCall(**call.model_dump(exclude={"index"})) for call in calls]
                message = bodies.ChatMessage(
                    role="assistant", content=text or None, refusal=None, tool_calls=made
                )
            choices.append(
                bodies.ChatChoice(
                    index=piece.index,
                    message=message,
                    logprobs=self._logprobs(piece),
                    finish_reason=self._reason(piece) or "stop",
                    stop_reason=piece.stop_reason,
                )
            )
        return bodies.ChatCompletion(**self.head, object="chat.completion", choices=choices, usage=self.usage)

    def _part(self, piece: Piece) -> bodies.ChatChunk | None:
        text, calls = self._read(piece)
        first = piece.index not in self._begun
        logprobs = self._logprobs(piece)
        if not (first or text or calls or piece.finish_reason or logprobs):
            return None
        self._begun.add(piece.index)
        said: dict[str, Any] = {"role": "assistant"} if first else {}
        if text or not calls:
            said["content"] = text
        if calls:
            said["tool_calls"] = calls
        choice = bodies.ChatChunkChoice(
            index=piece.index,
            delta=bodies.Delta(**said),
            finish_reason=self._reason(piece),
            **({} if logprobs is None else {"logprobs": logprobs}),
        )
        return bodies.ChatChunk(**self.part_head, object="chat.completion.chunk", choices=[choice])

    def _counts(self) -> bodies.ChatChunk:
        head = {**self.head, "usage": self.usage}
        return bodies.ChatChunk(**head, object="chat.completion.chunk", choices=[])

    def _read(self, piece: Piece) -> tuple[str, list[bodies.ToolCallDelta]]:
        if not self._readers:
            return piece.text, []
        return self._readers[piece.index].push(piece.text, piece.finish_reason is not None)

    def _reason(self, piece: Piece) -> Any:
        called = self._readers and self._readers[piece.index].n_calls
        return "tool_calls" if called and piece.finish_reason == "stop" else piece.finish_reason

    def _logprobs(self, piece: Piece) -> bodies.ChatLogprobs | None:
        if not piece.logprobs:
            return None
        content = [self.token_text.chat(found) for found in piece.logprobs]
        return bodies.ChatLogprobs(content=content, refusal=None)


class TextReply(Reply):
    prefix = "cmpl"

    def __init__(
        self, model: str, body: CompletionRequest, job: Job, token_text: TokenText, prompts: Sequence[str]
    ) -> None:
        """`prompts` are the texts to be echoed."""
        super().__init__(model, body, job, token_text)
        self.echo, self.wants_logprobs, self.prompts = bool(body.echo), body.logprobs is not None, prompts
        self.hides_answer = body.max_tokens == 0
        self._offsets: dict[int, int] = {}

    def whole(self, pieces: Iterable[Piece]) -> bodies.Completion:
        choices = []
        joined = _joined(pieces, self.job.n_answers)
        for piece in joined:
            if not self.hides_answer:
                self.n_answer += len(piece.tokens)
            prompt = joined[piece.index // self.job.params.n * self.job.params.n].prompt_logprobs
            choices.append(self._choice(piece, True, prompt))
        return bodies.Completion(**self.head, object="text_completion", choices=choices, usage=self.usage)

    def _part(self, piece: Piece) -> bodies.Completion | None:
        first = piece.index not in self._offsets
        if self.hides_answer:
            self.n_answer = 0
        if not (first or piece.text or piece.finish_reason or piece.logprobs):
            return None
        choice = self._choice(piece, first, piece.prompt_logprobs)
        return bodies.Completion(**self.part_head, object="text_completion", choices=[choice])

    def _counts(self) -> bodies.Completion:
        return bodies.Completion(**{**self.head, "usage": self.usage}, object="text_completion", choices=[])

    def _choice(self, piece: Piece, first: bool, prompt: Any) -> bodies.TextChoice:
        number = piece.index // self.job.params.n
        text = "" if self.hides_answer else piece.text
        logprobs = None
        if self.wants_logprobs:
            ids = [] if self.hides_answer else list(piece.tokens)
            found = [] if self.hides_answer else [*piece.logprobs]
            if self.echo and first and prompt is not None:
                ids, found = [*self.job.prompts[number], *ids], [*prompt, *found]
            logprobs = self.token_text.completion(ids, found, self._offsets.get(piece.index, 0))
            self._offsets[piece.index] = logprobs.text_offset[-1] if logprobs.text_offset else 0
            if logprobs.tokens:
                self._offsets[piece.index] += len(logprobs.tokens[-1])
        else:
            self._offsets[piece.index] = 0
        if self.echo and first:
            text = self.prompts[number] + text
        reason = "length" if self.hides_answer and piece.finish_reason else piece.finish_reason
        return bodies.TextChoice(
            index=piece.index,
            text=text,
            logprobs=logprobs,
            finish_reason=reason,  # type: ignore[arg-type]
            stop_reason=piece.stop_reason,
        )


def _joined(pieces: Iterable[Piece], n: int) -> list[Piece]:
    """One piece for each answer, in their order."""
    of: list[list[Piece]] = [[] for _ in range(n)]
    for piece in pieces:
        of[piece.index].append(piece)
    return [
        Piece(
            index,
            "".join(piece.text for piece in own),
            tuple(token for piece in own for token in piece.tokens),
            own[-1].finish_reason,
            own[-1].stop_reason,
            tuple(found for piece in own for found in piece.logprobs),
            own[0].prompt_logprobs,
        )
        for index, own in enumerate(of)
    ]
