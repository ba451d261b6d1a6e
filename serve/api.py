"""The HTTP side: OpenAI's routes as a FastAPI application over any engine that streams chunks of text. No Ray in here.

The first chunk is awaited before a response is begun. So overload is an honest 429 and a dead engine an honest 500; behind a
response that has begun with 200 either could only tear the stream.
"""

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated, Protocol, TypeVar, cast

from fastapi import APIRouter, Depends, FastAPI, Header, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from moxin import __version__
from moxin.infer.sampling import SamplingParams
from moxin.tokens.tokenizer import Tokenizer
from serve import errors
from serve.engine_loop import Chunk
from serve.errors import ApiError
from serve.schemas import (
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
    ModelCard,
    ModelList,
    unsupported,
)
from serve.wire import ChatReply, Reply, TextReply, sse

T = TypeVar("T")

CLIENT_CLOSED_REQUEST = 499
"""nginx's status for the log; nobody receives it."""
SSE_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class Backend(Protocol):
    """What answers: an engine loop in this process, or a handle to replicas elsewhere."""

    def generate(self, tokens: Sequence[int], params: SamplingParams) -> AsyncGenerator[Chunk]:
        """The answer in chunks, the last with a finish reason. Closing the iterator frees the engine's slot.

        Raises `OverloadError` or `EngineError`, before the first chunk or between two.
        """

    async def check(self) -> None:
        """Raises `EngineError` where the engine has died."""


@dataclass(frozen=True)
class ServedModel:
    name: str
    tokenizer: Tokenizer
    max_len: int
    """Longest prompt and answer together, in tokens."""
    created: int
    """Seconds since 1970."""

    @property
    def card(self) -> ModelCard:
        return ModelCard(id=self.name, created=self.created, max_model_len=self.max_len)


def build(model: ServedModel, backend: Backend, api_key: str = "") -> FastAPI:
    """The application. With an `api_key`, every route but /health asks for it as a bearer token."""

    async def authorize(authorization: Annotated[str, Header()] = "") -> None:
        scheme, _, key = authorization.partition(" ")
        if api_key and not (
            scheme.lower() == "bearer" and secrets.compare_digest(key.encode("latin-1"), api_key.encode())
        ):
            raise ApiError(401, "missing or wrong API key; send it as a bearer token", "invalid_api_key")

    app = FastAPI(title="Moxin", version=__version__, docs_url=None, redoc_url=None)
    errors.install(app)
    routes = APIRouter(dependencies=[Depends(authorize)])

    @app.get("/health")
    async def health() -> dict[str, str]:
        try:
            await backend.check()
        except errors.EngineError as error:
            raise ApiError(503, "the engine does not answer", "engine_failed") from error
        return {"status": "ok"}

    @routes.get("/version")
    async def version() -> dict[str, str]:
        return {"version": __version__}

    @routes.get("/v1/models")
    async def models() -> ModelList:
        return ModelList(data=[model.card])

    @routes.get("/v1/models/{name:path}")
    async def one_model(name: str) -> ModelCard:
        _check_name(name, model)
        return model.card

    @routes.post("/v1/chat/completions")
    async def chat(body: ChatRequest, http: Request) -> Response:
        _check(body, model)
        turns = [message.as_turn() for message in body.messages]
        tokens, _ = model.tokenizer.render(turns, add_generation_prompt=True)
        max_tokens = body.max_completion_tokens or body.max_tokens
        params = _params(body, tokens, max_tokens, model, "messages")
        reply = ChatReply(model.name, len(tokens), body.include_usage)
        return await _respond(http, bool(body.stream), reply, backend.generate(tokens, params))

    @routes.post("/v1/completions")
    async def complete(body: CompletionRequest, http: Request) -> Response:
        _check(body, model)
        tokens = _prompt_tokens(body, model.tokenizer)
        params = _params(body, tokens, body.max_tokens, model, "prompt")
        reply = TextReply(model.name, len(tokens), body.include_usage)
        return await _respond(http, bool(body.stream), reply, backend.generate(tokens, params))

    app.include_router(routes)
    return app


def _check_name(name: str, model: ServedModel) -> None:
    if name != model.name:
        message = f"the model {name!r} is not served here; {model.name!r} is"
        raise ApiError(404, message, "model_not_found", "model")


def _check(body: GenerationRequest, model: ServedModel) -> None:
    if body.model is not None:
        _check_name(body.model, model)
    if name := unsupported(body):
        raise ApiError(400, f"{name} is not supported by this server; leave it out", "unsupported", name)


def _prompt_tokens(body: CompletionRequest, tokenizer: Tokenizer) -> list[int]:
    """Token ids of the one prompt of a request; a text begins as every training document did."""
    prompt: object = body.prompt
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        if len(prompt) > 1:
            raise ApiError(400, f"prompt: {len(prompt)} prompts; send one in a request", param="prompt")
        prompt = prompt[0]
    if isinstance(prompt, str):
        return tokenizer.begin(prompt)
    tokens = cast(list[int], prompt)
    if not tokens or min(tokens) < 0 or max(tokens) >= tokenizer.vocab_size:
        told = f"prompt: needs at least one token id, each from 0 to {tokenizer.vocab_size - 1}"
        raise ApiError(400, told, param="prompt")
    return tokens


def _params(
    body: GenerationRequest, tokens: Sequence[int], max_tokens: int | None, model: ServedModel, field: str
) -> SamplingParams:
    """Sampling as the engine takes it; `max_tokens` is cut to what the context has left."""
    room = model.max_len - len(tokens)
    if room < 1:
        message = (
            f"{field}: {len(tokens)} tokens, but the model's context holds {model.max_len} and the answer needs at "
            f"least 1; shorten {field} by {1 - room}"
        )
        raise ApiError(400, message, "context_length_exceeded", field)
    tokenizer = model.tokenizer
    return SamplingParams(
        max_tokens=min(max_tokens or room, room),
        temperature=1.0 if body.temperature is None else body.temperature,
        top_k=body.top_k or 0,
        top_p=1.0 if body.top_p is None else body.top_p,
        seed=body.seed,
        stop_ids=() if body.ignore_eos else (tokenizer.eos_id, tokenizer.end_id),
        stop=body.stop_strings,
    )


async def _respond(http: Request, stream: bool, reply: Reply, chunks: AsyncGenerator[Chunk]) -> Response:
    if not stream:
        answer = await _while_connected(http, _collect(chunks))
        return JSONResponse(reply.whole(answer).model_dump())
    first = await _while_connected(http, anext(chunks))
    return StreamingResponse(
        _events(reply, first, chunks), media_type="text/event-stream", headers=SSE_HEADERS
    )


async def _collect(chunks: AsyncGenerator[Chunk]) -> Chunk:
    parts = [chunk async for chunk in chunks]
    text = "".join(part.text for part in parts)
    return Chunk(text, sum(part.n_tokens for part in parts), parts[-1].finish_reason)


async def _events(reply: Reply, first: Chunk, chunks: AsyncGenerator[Chunk]) -> AsyncIterator[str]:
    """Server-sent events. A failure on the way is an event too, after which the stream ends without `[DONE]`."""
    n_tokens = first.n_tokens
    try:
        async with aclosing(chunks):
            yield sse(reply.part(first, first=True))
            async for chunk in chunks:
                n_tokens += chunk.n_tokens
                if chunk.text or chunk.finish_reason:
                    yield sse(reply.part(chunk, first=False))
        if reply.include_usage:
            yield sse(reply.counts(n_tokens))
        yield "data: [DONE]\n\n"
    except Exception as error:
        yield sse(errors.as_api_error(error).body)


async def _while_connected(http: Request, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled when the client goes away first: nobody would read it."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnected(http))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ApiError(CLIENT_CLOSED_REQUEST, "the client went away", "client_closed_request")
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _disconnected(http: Request) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass
