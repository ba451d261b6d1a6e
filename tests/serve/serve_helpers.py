"""A stand-in engine that does as it is told, and a real HTTP server in a thread: httpx's ASGI transport cannot stream."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn

from moxin.infer.detokenize import Detokenizer
from moxin.infer.request import Event, Request
from moxin.tokens.tokenizer import Tokenizer
from serve import api
from serve.engine_loop import Engine, EngineLoop

TEXT = "The quick brown fox jumps over the lazy dog. Who owns the dog? Ada owns the lazy dog. "


def tiny_tokenizer() -> Tokenizer:
    return Tokenizer.train([TEXT] * 20, vocab_size=300)


class FakeEngine:
    """Says `reply`, one token a step for every request that has a slot.

    While `gate` is closed a step waits; the step after `fail_after` steps raises.
    """

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
    def has_work(self) -> bool:
        return bool(self.requests)

    def add(self, request: Request) -> None:
        self.requests[request.id], self.said[request.id] = request, 0
        self.texts[request.id] = Detokenizer(self.decode, request.params.stop)

    def cancel(self, id: str) -> bool:
        return self.requests.pop(id, None) is not None

    def step(self) -> list[Event]:
        self.gate.wait()
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
def served(
    engine: Engine, tokenizer: Tokenizer, limit: int = 8, api_key: str = "", max_len: int = 128
) -> Iterator[tuple[str, EngineLoop]]:
    """The base URL of the application over an engine, on a free port, and the loop between them."""
    loop = EngineLoop(engine, limit)
    model = api.ServedModel("tiny", tokenizer, max_len, created=1)
    app = api.build(model, loop, api_key)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}", loop
    finally:
        server.should_exit = True
        thread.join()
        loop.close()
