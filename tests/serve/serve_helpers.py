"""A stand-in engine that does as it is told, and a real HTTP server in a thread: httpx's ASGI transport cannot stream."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from moxin.infer.detokenize import Detokenizer
from moxin.infer.request import Event, Request, Stats
from moxin.tokens.tokenizer import Tokenizer
from serve import api
from serve.engine_loop import EngineLoop
from serve.guard import Rules
from serve.params import ModelInfo

TEXT = "The quick brown fox jumps over the lazy dog. Who owns the dog? Ada owns the lazy dog. "


def tiny_tokenizer() -> Tokenizer:
    return Tokenizer.train([TEXT] * 20, vocab_size=300)


class FakeEngine:
    """Says `reply`, one token a step for every request that has a slot.

    While `gate` is closed a step waits; the step after `fail_after` steps raises.
    """

    grammars = None
    pause_s = 0.0
    """Seconds of a step."""

    def __init__(self, tokenizer: Tokenizer, reply: str, fail_after: int = 10**9) -> None:
        self.reply = tokenizer.encode(reply)
        self.fail_after, self.n_steps = fail_after, 0
        self.gate = threading.Event()
        self.gate.set()
        self.requests: dict[str, Request] = {}
        self.said: dict[str, int] = {}
        self.decode = tokenizer.decode
        self.texts: dict[str, Detokenizer] = {}

    @property
    def stats(self) -> Stats:
        return Stats(len(self.requests), 0, (100,), (100,), 0.0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)

    @property
    def has_work(self) -> bool:
        return bool(self.requests)

    def add(self, request: Request) -> None:
        self.requests[request.id], self.said[request.id] = request, 0
        self.texts[request.id] = Detokenizer(self.decode, request.params.stop)

    def cancel(self, id: str) -> bool:
        return self.requests.pop(id, None) is not None

    def step(self) -> list[Event]:
        self.gate.wait()
        time.sleep(self.pause_s)
        if self.n_steps == self.fail_after:
            raise RuntimeError("the secret cause")
        self.n_steps += 1
        return [self._next(request) for request in list(self.requests.values())]

    def _next(self, request: Request) -> Event:
        said = self.said[request.id]
        self.said[request.id] += 1
        at_end, cut = said == len(self.reply), said + 1 == request.params.max_tokens
        if at_end or cut:
            self.requests.pop(request.id)
        text = self.texts[request.id]
        piece = "" if at_end else text.push(self.reply[said])
        piece += text.finish() if at_end or cut else ""
        finished = "stop" if at_end else "length" if cut else None
        return Event(request.id, None if at_end else self.reply[said], finished, piece)


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Waits for what another thread will bring about; the limit only ends a test that would hang."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


@contextmanager
def http_server(app: Any) -> Iterator[str]:
    """The base URL of an ASGI application on a free port."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_until(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def served(
    engine: Any,
    tokenizer: Tokenizer,
    limit: int = 8,
    keys: tuple[str, ...] = (),
    max_len: int = 128,
    interval_s: float = 0.0,
    **rules: Any,
) -> Iterator[tuple[str, EngineLoop]]:
    """The base URL of the application over an engine, on a free port, and the loop between them."""
    loop = EngineLoop(engine, limit, interval_s)
    model = api.ServedModel(ModelInfo("tiny", tokenizer, max_len, 1, 32), loop)
    try:
        with http_server(api.build([model], Rules(keys, **rules))) as url:
            yield url, loop
    finally:
        loop.close()
