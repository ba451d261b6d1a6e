"""The two deployments of the service: replicas around the engine, and the HTTP ingress that tokenizes and streams."""

import time
from collections.abc import AsyncIterator, Sequence
from typing import cast

import torch
from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from moxin.infer.engine import Engine
from moxin.infer.sampling import SamplingParams
from moxin.model import checkpoint
from moxin.tokens.tokenizer import Tokenizer
from serve import api
from serve.engine_loop import Chunk, EngineLoop
from serve.errors import EngineError, OverloadError


class EngineReplica:
    """One engine with one model. Ray replaces the replica when `check_health` says that the engine died."""

    def __init__(self, model_url: str, max_batch: int, limit: int) -> None:
        cuda = torch.cuda.is_available()
        # On a CPU 32-bit numbers are the faster ones.
        model = checkpoint.load(model_url, None if cuda else "float32").to("cuda" if cuda else "cpu")
        decode = Tokenizer.load(model_url).decode
        engine = Engine(model, max_batch=max_batch, decode=decode)
        self.loop = EngineLoop(engine, decode, limit)

    async def generate(self, tokens: Sequence[int], params: SamplingParams) -> AsyncIterator[Chunk]:
        async for chunk in self.loop.generate(tokens, params):
            yield chunk

    async def check_health(self) -> None:
        await self.loop.check()


class RemoteEngine:
    """`serve.api.Backend` over the engine's replicas: Ray's exceptions become ours."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self.streaming = handle.options(method_name="generate", stream=True)
        self.checking = handle.options(method_name="check_health")

    async def generate(self, tokens: Sequence[int], params: SamplingParams) -> AsyncIterator[Chunk]:
        try:
            chunks = cast(AsyncIterator[Chunk], self.streaming.remote(tokens, params))
            async for chunk in chunks:
                yield chunk
        except BackPressureError as error:
            raise OverloadError(str(error)) from error
        except (RayActorError, RayServeException) as error:
            raise EngineError(f"the engine's replica is gone: {error}") from error

    async def check(self) -> None:
        try:
            await self.checking.remote()
        except BackPressureError:
            return  # busy, not dead


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
