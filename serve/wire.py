"""Chunks of text as OpenAI's response objects: whole answers and the events of a stream."""

import uuid
from abc import ABC, abstractmethod
from time import time
from typing import Any

from pydantic import BaseModel

from serve import schemas
from serve.engine_loop import Chunk


def usage(n_prompt: int, n_answer: int) -> schemas.Usage:
    return schemas.Usage(prompt_tokens=n_prompt, completion_tokens=n_answer, total_tokens=n_prompt + n_answer)


def sse(body: BaseModel) -> str:
    """One server-sent event. Unset fields are left out; a null that was set is written, as OpenAI does."""
    return f"data: {body.model_dump_json(exclude_unset=True)}\n\n"


class Reply(ABC):
    """The response to one request, whole or in parts."""

    def __init__(self, model: str, n_prompt: int, include_usage: bool) -> None:
        self.id, self.created = f"{self.prefix}-{uuid.uuid4().hex}", int(time())
        self.model, self.n_prompt, self.include_usage = model, n_prompt, include_usage

    prefix: str

    @property
    def head(self) -> dict[str, Any]:
        return {"id": self.id, "created": self.created, "model": self.model}

    @property
    def part_head(self) -> dict[str, Any]:
        """OpenAI writes `usage: null` into every event of a stream whose last event has it."""
        return {**self.head, **({"usage": None} if self.include_usage else {})}

    @abstractmethod
    def whole(self, answer: Chunk) -> BaseModel: ...

    @abstractmethod
    def part(self, chunk: Chunk, first: bool) -> BaseModel: ...

    @abstractmethod
    def counts(self, n_answer: int) -> BaseModel:
        """The event with the token counts, after all parts."""


class ChatReply(Reply):
    prefix = "chatcmpl"

    def whole(self, answer: Chunk) -> schemas.ChatCompletion:
        message = schemas.ChatMessage(content=answer.text)
        choice = schemas.ChatChoice(message=message, finish_reason=answer.finish_reason or "stop")
        return schemas.ChatCompletion(
            **self.head, choices=[choice], usage=usage(self.n_prompt, answer.n_tokens)
        )

    def part(self, chunk: Chunk, first: bool) -> schemas.ChatChunk:
        text = chunk.text
        delta = schemas.Delta(role="assistant", content=text) if first else schemas.Delta(content=text)
        choice = schemas.ChatChunkChoice(index=0, delta=delta, finish_reason=chunk.finish_reason)
        return schemas.ChatChunk(**self.part_head, object="chat.completion.chunk", choices=[choice])

    def counts(self, n_answer: int) -> schemas.ChatChunk:
        counts = usage(self.n_prompt, n_answer)
        return schemas.ChatChunk(**self.head, object="chat.completion.chunk", choices=[], usage=counts)


class TextReply(Reply):
    prefix = "cmpl"

    def whole(self, answer: Chunk) -> schemas.Completion:
        choice = schemas.TextChoice(
            index=0, text=answer.text, logprobs=None, finish_reason=answer.finish_reason
        )
        counts = usage(self.n_prompt, answer.n_tokens)
        return schemas.Completion(**self.head, object="text_completion", choices=[choice], usage=counts)

    def part(self, chunk: Chunk, first: bool) -> schemas.Completion:
        choice = schemas.TextChoice(
            index=0, text=chunk.text, logprobs=None, finish_reason=chunk.finish_reason
        )
        return schemas.Completion(**self.part_head, object="text_completion", choices=[choice])

    def counts(self, n_answer: int) -> schemas.Completion:
        counts = usage(self.n_prompt, n_answer)
        return schemas.Completion(**self.head, object="text_completion", choices=[], usage=counts)
