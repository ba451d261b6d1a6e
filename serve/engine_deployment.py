"""The two deployments of the service: replicas around the engine, and the HTTP ingress that tokenizes and streams."""

import asyncio
import itertools
import os
import time
import uuid
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, cast

from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator
from starlette.types import ASGIApp

from moxin.infer.engine import Engine
from moxin.infer.grammar import Grammars
from moxin.infer.load import load
from moxin.model import checkpoint
from moxin.tokens.tokenizer import Tokenizer
from serve import api
from serve.channel import Outboxes, Parcel
from serve.engine_loop import EngineLoop, Job, Piece
from serve.errors import EngineError, OverloadError
from serve.guard import Rules, keys_from
from serve.mailbox import Mailbox
from serve.metrics import Family, Metrics
from serve.params import ModelInfo
from serve.ray_metrics import RayMetrics
from serve.router import prefix_of

CHECK_TIMEOUT_S = 5.0
"""How long /health waits for a replica: one that is being replaced does not answer."""
GAUGES_PERIOD_S = 2.0
"""How often a replica tells Ray what its engine counts."""


@dataclass(frozen=True)
class EngineSettings:
    """How one engine is made; names as of `Engine`, `weights` as of `moxin.infer.load`."""

    url: str
    name: str
    device: str
    limit: int
    """Answers in work or waiting."""
    interval_s: float
    weights: str | None = None
    max_batch: int = 8
    max_len: int | None = None
    cache_tokens: int | None = None
    cache_dtype: str | None = None
    speculate: int = 0


def engine_of(settings: EngineSettings) -> Engine:
    """Raises `ValueError` for a folder that is incomplete or of an unknown architecture, and for what does not fit it."""
    tokenizer = Tokenizer.load(settings.url)
    model = load(settings.url, settings.weights, settings.device)
    ends = list(dict.fromkeys((tokenizer.eos_id, tokenizer.end_id)))
    return Engine(
        model,
        max_batch=settings.max_batch,
        max_len=settings.max_len,
        cache_tokens=settings.cache_tokens,
        cache_dtype=settings.cache_dtype,
        decode=tokenizer.decode,
        grammars=Grammars(tokenizer.spec, model.config.vocab_size, ends),
        speculate=settings.speculate,
    )


@dataclass(frozen=True)
class Begun:
    """The first pieces of an answer, and where the others will come from."""

    replica: str
    outbox: int
    pieces: list[Piece]


class EngineReplica:
    """One engine with one model. Ray replaces the replica when `check_health` says that the engine died."""

    def __init__(self, settings: EngineSettings) -> None:
        replica = serve.get_replica_context().replica_id.unique_id
        metrics = Metrics(settings.name, replica, RayMetrics())
        engine = engine_of(settings)
        engine.warm_up()
        self.loop = EngineLoop(engine, settings.limit, settings.interval_s, metrics)
        self.replica, self.outboxes = replica, Outboxes()
        self._telling: asyncio.Task[None] | None = None

    async def generate(
        self, job: Job, prefix: tuple[str, ...], ingress: str, key: int
    ) -> AsyncGenerator[Begun]:
        """As `EngineLoop.generate`, but only the first pieces: the others go into the outbox of the ingress under its key.
        `prefix` is for the router."""
        if self._telling is None:
            self._telling = asyncio.ensure_future(self._tell())
        with self.outboxes.sending(ingress) as outbox:
            async with aclosing(self.loop.generate(job)) as answers:
                yield Begun(self.replica, outbox.number, await anext(answers))
                async for pieces in answers:
                    outbox.put(key, pieces)

    async def channel(self, replica: str, ingress: str, number: int) -> AsyncGenerator[list[Parcel]]:
        """As `Outboxes.channel`; `replica` is for the router."""
        async with aclosing(self.outboxes.channel(ingress, number)) as parcels:
            async for some in parcels:
                yield some

    async def embed(self, prompts: Sequence[Sequence[int]]) -> list[list[float]]:
        return await self.loop.embed(prompts)

    async def families(self) -> list[Family]:
        return await self.loop.families()

    async def check_health(self) -> None:
        await self.loop.check()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What `serve.autoscale` decides by, beside the requests that Ray counts."""
        stats = self.loop.stats
        return {
            "kv_cache_usage_perc": stats.kv_cache_usage_perc,
            "num_requests_waiting": float(stats.num_requests_waiting),
            "num_channels": float(self.outboxes.n_taken),
        }

    async def _tell(self) -> None:
        while True:
            self.loop.metrics.gauge(self.loop.stats)
            await asyncio.sleep(GAUGES_PERIOD_S)


@dataclass
class Awaited:
    """An answer that an ingress waits for."""

    mailbox: Mailbox[Piece]
    channel: tuple[str, int] | None = None


class RemoteEngine:
    """`serve.api.Backend` over the replicas of a model."""

    def __init__(self, handle: DeploymentHandle, may_be_idle: bool) -> None:
        """`may_be_idle`: there may be no replica while nobody asks for one."""
        self.handle, self.may_be_idle = handle, may_be_idle
        self.streaming = handle.options(method_name="generate", stream=True)
        self.channels = handle.options(method_name="channel", stream=True)
        self.embedding = handle.options(method_name="embed")
        self._name, self._keys = uuid.uuid4().hex, itertools.count()
        self._awaited: dict[int, Awaited] = {}
        self._receiving: dict[tuple[str, int], asyncio.Task[None]] = {}

    async def generate(self, job: Job) -> AsyncGenerator[list[Piece]]:
        key, mailbox = next(self._keys), Mailbox[Piece]()
        answer = self._awaited[key] = Awaited(mailbox)
        with _our_errors():
            sent = self.streaming.remote(job, prefix_of(job.prompts[0], job.salt), self._name, key)
            begun = cast(DeploymentResponseGenerator[Begun], sent)
            ending: asyncio.Future[None] | None = None
            try:
                first = await anext(begun)
                left = job.n_answers - _n_finished(first.pieces)
                if left:
                    answer.channel = first.replica, first.outbox
                    self._open(answer.channel)
                    ending = asyncio.ensure_future(_await_end(begun, mailbox))
                yield first.pieces
                while left:
                    pieces = await mailbox.take()
                    left -= _n_finished(pieces)
                    yield pieces
            finally:
                del self._awaited[key]
                mailbox.close()
                if ending is not None:
                    ending.cancel()
                begun.cancel()

    def _open(self, channel: tuple[str, int]) -> None:
        if channel not in self._receiving:
            self._receiving[channel] = asyncio.ensure_future(self._receive(channel))

    async def _receive(self, channel: tuple[str, int]) -> None:
        replica, number = channel
        error: Exception = EngineError("the engine ended before its answers")
        try:
            sent = self.channels.remote(replica, self._name, number)
            async for parcels in cast(DeploymentResponseGenerator[list[Parcel]], sent):
                for key, pieces in parcels:
                    if (answer := self._awaited.get(key)) is not None:  # else its client has left
                        for piece in pieces:
                            answer.mailbox.put(piece)
        except Exception as failure:
            error = failure
        finally:
            del self._receiving[channel]
        for answer in self._awaited.values():
            if answer.channel == channel:
                answer.mailbox.put(error)

    async def embed(self, prompts: Sequence[Sequence[int]]) -> list[list[float]]:
        with _our_errors():
            answer = self.embedding.remote(prompts)
            try:
                return cast(list[list[float]], await answer)
            except asyncio.CancelledError:
                answer.cancel()  # the client left
                raise

    async def check(self) -> None:
        with suppress(OverloadError):  # busy is not dead
            if not await self._all("check_health") and not self.may_be_idle:
                raise EngineError("no replica runs")

    async def ready(self) -> bool:
        try:
            await self.check()
        except EngineError:
            return False
        return True

    async def families(self) -> list[Family]:
        return [family for families in await self._all("families") for family in families]

    async def _all(self, method: str) -> list[Any]:
        """What a method of every replica returns; nothing where none runs."""
        with _our_errors():
            try:
                responses = self.handle.broadcast(method)
                return list(await asyncio.wait_for(responses.results_async(), CHECK_TIMEOUT_S))
            except DeploymentUnavailableError:
                return []


def _n_finished(pieces: Sequence[Piece]) -> int:
    return sum(piece.finish_reason is not None for piece in pieces)


async def _await_end(begun: DeploymentResponseGenerator[Begun], mailbox: Mailbox[Piece]) -> None:
    """Tells the reader of a mailbox where an answer's stream ends with an error."""
    try:
        async for _ in begun:
            pass
    except Exception as error:
        mailbox.put(error)


@contextmanager
def _our_errors() -> Iterator[None]:
    """What went wrong in a replica or on the way to it, as the exceptions of `serve.errors`."""
    try:
        yield
    except RayTaskError as error:
        raise error.cause from None  # what the replica raised; Ray adds its traceback to the message
    except BackPressureError as error:
        raise OverloadError("too many requests wait for this model") from error
    except (RayActorError, RayServeException, TimeoutError) as error:
        raise EngineError(f"no engine answers: {error}") from error


@serve.ingress()
class Ingress:
    """The HTTP side, which tokenizes away from the engines' processes."""

    def __init__(
        self,
        engines: Mapping[str, EngineSettings],
        handles: Mapping[str, DeploymentHandle],
        may_be_idle: Mapping[str, bool],
        keys_file: str,
        keys: tuple[str, ...],
        rules: Rules,
    ) -> None:
        keys = tuple(dict.fromkeys((*keys, *keys_from(os.environ, keys_file))))
        self.rules = Rules(keys, rules.allowed_hosts, rules.max_body_bytes)
        self.models = []
        for name, settings in engines.items():
            config = checkpoint.load_config(settings.url)
            max_len = settings.max_len or config.max_seq_len
            info = ModelInfo(name, Tokenizer.load(settings.url), max_len, int(time.time()), config.d_model)
            self.models.append(api.ServedModel(info, RemoteEngine(handles[name], may_be_idle[name])))

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return api.build(self.models, self.rules)
