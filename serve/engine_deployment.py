"""The two deployments of the service: replicas around the engine, and the HTTP ingress that tokenizes and streams."""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager, suppress
from typing import cast

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

from moxin.infer.engine import Engine
from moxin.infer.sampling import SamplingParams
from moxin.model import checkpoint
from moxin.tokens.tokenizer import Tokenizer
from serve import api
from serve.engine_loop import Chunk, EngineLoop
from serve.errors import EngineError, OverloadError

CHECK_TIMEOUT_S = 5.0
"""How long /health waits for a replica: one that is being replaced does not answer."""


class EngineReplica:
    """One engine with one model. Ray replaces the replica when `check_health` says that the engine died."""

    def __init__(self, model_url: str, device: str, max_batch: int, limit: int) -> None:
        # As stored on a GPU; on a CPU 32-bit numbers are the faster ones.
        model = checkpoint.load(model_url, "float32" if device == "cpu" else None).to(device)
        engine = Engine(model, max_batch=max_batch, decode=Tokenizer.load(model_url).decode)
        self.loop = EngineLoop(engine, limit)

    async def generate(self, tokens: Sequence[int], params: SamplingParams) -> AsyncGenerator[Chunk]:
        async with aclosing(self.loop.generate(tokens, params)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def check_health(self) -> None:
        await self.loop.check()


class RemoteEngine:
    """`serve.api.Backend` over the engine's replicas."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self.streaming = handle.options(method_name="generate", stream=True)
        self.checking = handle.options(method_name="check_health")

    async def generate(self, tokens: Sequence[int], params: SamplingParams) -> AsyncGenerator[Chunk]:
        with _our_errors():
            chunks = cast(DeploymentResponseGenerator[Chunk], self.streaming.remote(tokens, params))
            try:
                async for chunk in chunks:
                    yield chunk
            finally:
                chunks.cancel()

    async def check(self) -> None:
        with suppress(OverloadError), _our_errors():  # busy is not dead
            await asyncio.wait_for(self.checking.remote(), CHECK_TIMEOUT_S)


@contextmanager
def _our_errors() -> Iterator[None]:
    """What went wrong in a replica or on the way to it, as the exceptions of `serve.errors`."""
    try:
        yield
    except RayTaskError as error:
        raise error.cause from None  # what the replica raised; Ray adds its traceback to the message
    except BackPressureError as error:
        raise OverloadError(str(error)) from error
    except (RayActorError, RayServeException, TimeoutError) as error:
        raise EngineError(f"no engine answers: {error}") from error


@serve.ingress()
class Ingress:
    """The HTTP side, which tokenizes away from the engine's process."""

    def __init__(self, model_url: str, name: str, api_key: str, engine: DeploymentHandle) -> None:
        tokenizer = Tokenizer.load(model_url)
        max_len = checkpoint.load_config(model_url).max_seq_len
        self.model = api.ServedModel(name, tokenizer, max_len, int(time.time()))
        self.engine, self.api_key = RemoteEngine(engine), api_key

    def __serve_build_asgi_app__(self) -> FastAPI:
        return api.build(self.model, self.engine, self.api_key)
