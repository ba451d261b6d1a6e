"""The two deployments of the service: replicas around the engine, and the HTTP ingress that tokenizes and streams."""

import asyncio
import os
import time
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
from serve.engine_loop import EngineLoop, Job, Piece
from serve.errors import EngineError, OverloadError
from serve.guard import Rules, keys_from
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


class EngineReplica:
    """One engine with one model. Ray replaces the replica when `check_health` says that the engine died."""

    def __init__(self, settings: EngineSettings) -> None:
        replica = serve.get_replica_context().replica_id.unique_id
        metrics = Metrics(settings.name, replica, RayMetrics())
        engine = engine_of(settings)
        engine.warm_up()
        self.loop = EngineLoop(engine, settings.limit, settings.interval_s, metrics)
        self._telling: asyncio.Task[None] | None = None

    async def generate(self, job: Job, prefix: tuple[str, ...] = ()) -> AsyncGenerator[list[Piece]]:
        """As `EngineLoop.generate`; `prefix` is for the router."""
        if self._telling is None:
            self._telling = asyncio.ensure_future(self._tell())
        async with aclosing(self.loop.generate(job)) as answers:
            async for pieces in answers:
                yield pieces

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
        }

    async def _tell(self) -> None:
        while True:
            self.loop.metrics.gauge(self.loop.stats)
            await asyncio.sleep(GAUGES_PERIOD_S)


class RemoteEngine:
    """`serve.api.Backend` over the replicas of a model."""

    def __init__(self, handle: DeploymentHandle, may_be_idle: bool) -> None:
        """`may_be_idle`: there may be no replica while nobody asks for one."""
        self.handle, self.may_be_idle = handle, may_be_idle
        self.streaming = handle.options(method_name="generate", stream=True)
        self.embedding = handle.options(method_name="embed")

    async def generate(self, job: Job) -> AsyncGenerator[list[Piece]]:
        with _our_errors():
            sent = self.streaming.remote(job, prefix_of(job.prompts[0], job.salt))
            answers = cast(DeploymentResponseGenerator[list[Piece]], sent)
            try:
                async for pieces in answers:
                    yield pieces
            finally:
                answers.cancel()

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
