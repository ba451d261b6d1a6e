"""The HTTP side: OpenAI's routes as a FastAPI application over any engines that stream pieces of answers. No Ray in here.

The first pieces are awaited before a response is begun. So overload is an honest 429 and a dead engine an honest 500; behind
a response that has begun with 200 either could only tear the stream.
"""

import asyncio
import base64
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, TypeVar

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import ASGIApp

from moxin import __version__
from moxin.config import nearest
from serve import bodies, errors, page
from serve.engine_loop import Job, Piece
from serve.errors import ApiError
from serve.guard import Guard, Rules
from serve.metrics import Family, exposition
from serve.params import ModelInfo, chat_job, completion_job, prompts_of, refuse_unsupported
from serve.schemas import ChatRequest, CompletionRequest, DetokenizeRequest, EmbeddingRequest, TokenizeRequest
from serve.token_text import TokenText
from serve.tools import turn_of
from serve.wire import ChatReply, Reply, TextReply

T = TypeVar("T")

CLIENT_CLOSED_REQUEST = 499
"""nginx's status for the log; nobody receives it."""
SSE_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": bodies.ErrorBody} for status in (400, 401, 403, 404, 413, 415, 429, 500, 503)
}

EVENT = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The whole answer or, with `stream`, server-sent events with its parts.",
        "content": {"text/event-stream": {"schema": EVENT}},
    }
}
TEXT: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}


class Backend(Protocol):
    """What answers for one model: an engine loop in this process, or a handle to replicas elsewhere."""

    def generate(self, job: Job) -> AsyncGenerator[list[Piece]]:
        """The answers in pieces, each answer's last with a finish reason. Closing the iterator frees the engine's pages.

        Raises `OverloadError`, `InvalidRequestError` or `EngineError`, before the first pieces or between two.
        """

    async def embed(self, prompts: Sequence[Sequence[int]]) -> list[list[float]]:
        """An embedding for each prompt; raises the same."""

    async def check(self) -> None:
        """Raises `EngineError` where the engine has died."""

    async def ready(self) -> bool:
        """Whether a request would be answered now."""

    async def families(self) -> list[Family]:
        """What /metrics tells of the engines."""


@dataclass(frozen=True)
class ServedModel:
    info: ModelInfo
    backend: Backend

    @cached_property
    def token_text(self) -> TokenText:
        return TokenText(self.info.tokenizer)

    @property
    def card(self) -> bodies.ModelCard:
        return bodies.ModelCard(id=self.info.name, created=self.info.created, max_model_len=self.info.max_len)


class Models:
    """The models of a service by their names; the first is the one that requests without a name mean."""

    def __init__(self, models: Sequence[ServedModel]) -> None:
        self._by_name: Mapping[str, ServedModel] = {model.info.name: model for model in models}

    def __iter__(self) -> Any:
        return iter(self._by_name.values())

    def find(self, name: str | None) -> ServedModel:
        if name is None:
            return next(iter(self._by_name.values()))
        if (found := self._by_name.get(name)) is None:
            served = ", ".join(repr(name) for name in self._by_name)
            hint = nearest(name[:100], self._by_name) if len(self._by_name) > 1 else f"{served} is"
            raise ApiError(
                404, f"the model {name!a:.120} is not served here; {hint}", "model_not_found", "model"
            )
        return found


def build(models: Sequence[ServedModel], rules: Rules | None = None) -> ASGIApp:
    """The application behind its guard."""
    return Guard(routes(Models(models)), rules or Rules())


def routes(models: Models) -> FastAPI:
    app = FastAPI(title="Moxin", version=__version__, docs_url=None, redoc_url=None, responses=ERRORS)
    errors.install(app)

    @app.get("/health")
    async def health() -> bodies.Status:
        """Whether every engine lives. Asks for no key."""
        try:
            for model in models:
                await model.backend.check()
        except errors.EngineError as error:
            raise ApiError(503, "an engine does not answer", "engine_failed") from error
        return bodies.Status(status="ok")

    @app.get("/ready")
    async def ready() -> bodies.Status:
        """Whether every model would be answered at once."""
        waited_for = [model.info.name for model in models if not await model.backend.ready()]
        if waited_for:
            raise ApiError(
                503, f"not ready: {', '.join(waited_for)}", "not_ready", headers={"Retry-After": "1"}
            )
        return bodies.Status(status="ready")

    @app.get("/version")
    async def version() -> bodies.Version:
        return bodies.Version(version=__version__)

    @app.get("/metrics", response_class=Response, responses=TEXT)
    async def metrics() -> Response:
        families = [family for model in models for family in await model.backend.families()]
        return Response(exposition(families), headers={"Content-Type": METRICS_TYPE})

    @app.get("/", response_class=Response, include_in_schema=False)
    async def chat_page() -> Response:
        return Response(page.HTML, media_type="text/html", headers=page.HEADERS)

    @app.get("/v1/models")
    async def list_models() -> bodies.ModelList:
        return bodies.ModelList(data=[model.card for model in models])

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> bodies.ModelCard:
        return models.find(name).card

    @app.post("/v1/chat/completions", response_model=bodies.ChatCompletion, responses=STREAM)
    async def chat(body: ChatRequest, http: Request) -> Response:
        model = models.find(body.model)
        job = await asyncio.to_thread(chat_job, body, model.info)
        reply = ChatReply(model.info.name, body, job, model.token_text)
        return await _respond(http, bool(body.stream), reply, model.backend.generate(job))

    @app.post("/v1/completions", response_model=bodies.Completion, responses=STREAM)
    async def complete(body: CompletionRequest, http: Request) -> Response:
        model = models.find(body.model)
        job = await asyncio.to_thread(completion_job, body, model.info)
        echoed = _echoed(body, job, model) if body.echo else []
        reply = TextReply(model.info.name, body, job, model.token_text, echoed)
        return await _respond(http, bool(body.stream), reply, model.backend.generate(job))

    @app.post("/v1/embeddings")
    async def embeddings(body: EmbeddingRequest, http: Request) -> bodies.Embeddings:
        """The mean of the last layer over the tokens of a text, scaled to length 1."""
        model = models.find(body.model)
        refuse_unsupported(body)
        if body.dimensions not in (None, model.info.d_model):
            told = f"dimensions: this model's embeddings have {model.info.d_model}; leave it out"
            raise ApiError(400, told, param="dimensions")
        prompts = await asyncio.to_thread(prompts_of, body.input, model.info, "input")
        if (longest := max(len(prompt) for prompt in prompts)) > model.info.max_len:
            told = f"input: {longest} tokens, but the model's context holds {model.info.max_len}"
            raise ApiError(400, told, "context_length_exceeded", "input")
        found = await _while_connected(http, model.backend.embed(prompts))
        n = sum(len(prompt) for prompt in prompts)
        return bodies.Embeddings(
            data=[
                bodies.EmbeddingItem(index=index, embedding=_encoded(values, body.encoding_format))
                for index, values in enumerate(found)
            ],
            model=model.info.name,
            usage=bodies.EmbeddingUsage(prompt_tokens=n, total_tokens=n),
        )

    @app.post("/tokenize", response_model_exclude_unset=True)
    async def tokenize(body: TokenizeRequest) -> bodies.Tokenized:
        model = models.find(body.model)
        tokenizer = model.info.tokenizer
        if body.messages is not None:
            turns = [turn_of(message) for message in body.messages]
            tokens, _ = tokenizer.render(turns, add_generation_prompt=body.add_generation_prompt)
        else:
            assert body.prompt is not None
            tokens = (
                tokenizer.begin(body.prompt) if body.add_special_tokens else tokenizer.encode(body.prompt)
            )
        names = (
            {"token_strs": [model.token_text.text_of(id) for id in tokens]} if body.return_token_strs else {}
        )
        return bodies.Tokenized(count=len(tokens), max_model_len=model.info.max_len, tokens=tokens, **names)

    @app.post("/detokenize")
    async def detokenize(body: DetokenizeRequest) -> bodies.Detokenized:
        model = models.find(body.model)
        if body.tokens:
            prompts_of(body.tokens, model.info, "tokens")
        return bodies.Detokenized(prompt=model.info.tokenizer.decode(body.tokens))

    return app


def _echoed(body: CompletionRequest, job: Job, model: ServedModel) -> list[str]:
    """The prompts as text: as they came or, where they came as ids, decoded."""
    if isinstance(body.prompt, str):
        return [body.prompt]
    if isinstance(body.prompt[0], str):
        return [str(prompt) for prompt in body.prompt]
    return model.info.tokenizer.decode_batch(job.prompts)


def _encoded(values: list[float], form: str | None) -> list[float] | str:
    return base64.b64encode(np.asarray(values, "<f4").tobytes()).decode() if form == "base64" else values


async def _respond(
    http: Request, stream: bool, reply: Reply, pieces: AsyncGenerator[list[Piece]]
) -> Response:
    if not stream:
        found = await _while_connected(http, _collect(pieces))
        return JSONResponse(reply.whole(found).model_dump(exclude_unset=True))
    first = await _while_connected(http, anext(pieces))
    return StreamingResponse(
        _events(reply, first, pieces), media_type="text/event-stream", headers=SSE_HEADERS
    )


async def _collect(pieces: AsyncGenerator[list[Piece]]) -> list[Piece]:
    async with aclosing(pieces):
        return [piece async for some in pieces for piece in some]


async def _events(
    reply: Reply, first: list[Piece], pieces: AsyncGenerator[list[Piece]]
) -> AsyncIterator[str]:
    """Server-sent events. A failure on the way is an event too, after which the stream ends without `[DONE]`."""
    try:
        async with aclosing(pieces):
            yield reply.parts(first)
            async for some in pieces:
                if events := reply.parts(some):
                    yield events
        yield reply.end()
    except Exception as error:
        yield f"data: {errors.as_api_error(error).body.model_dump_json()}\n\n"


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
