"""One thread that steps the inference engine, and any number of coroutines that wait for its tokens.

The thread alone touches the engine: coroutines hand it calls through a queue, and once a step it hands events back to
their event loop. Closing a `generate` iterator, as a client's disconnect does, cancels the request in the engine.
"""

import asyncio
import itertools
import logging
import queue
import threading
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from functools import partial

from moxin.infer.embed import Embedding
from moxin.infer.engine import Engine
from moxin.infer.request import Event, Request, Stats
from moxin.infer.sampling import Logprobs, SamplingParams
from serve.errors import EngineError, InvalidRequestError, OverloadError, one_line
from serve.mailbox import Mailbox
from serve.metrics import Family, Metrics

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """Prompts that are answered alike, as token ids; each has `params.n` answers."""

    prompts: tuple[tuple[int, ...], ...]
    params: SamplingParams
    salt: str = ""

    @property
    def n_answers(self) -> int:
        return len(self.prompts) * self.params.n


@dataclass(frozen=True)
class Piece:
    """What has come of one answer since the last piece: whole characters, and with the last piece the reason."""

    index: int
    """Of the answer, among all of the job: the `n` of the first prompt first."""
    text: str
    tokens: tuple[int, ...]
    finish_reason: str | None = None
    """"stop" or "length"."""
    stop_reason: int | str | None = None
    logprobs: tuple[Logprobs, ...] = ()
    """One for each token, where they were asked for."""
    prompt_logprobs: tuple[Logprobs | None, ...] | None = None


class EngineLoop:
    """Answers jobs with one engine that has a `decode`; at most `limit` answers are in work or waiting.

    `interval_s` is the least time between two pieces of one job after the first: tokens that come faster travel together.
    """

    def __init__(
        self, engine: Engine, limit: int, interval_s: float = 0.0, metrics: Metrics | None = None
    ) -> None:
        self.engine, self.limit, self.interval_s = engine, limit, interval_s
        self.metrics = metrics or Metrics("model")
        self._mailboxes: dict[str, Mailbox[Event]] = {}
        self._embedded: dict[Embedding, asyncio.Future[list[float]]] = {}
        self._calls: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        """What the thread is to do between two steps; None ends it."""
        self._ids = itertools.count()
        self._n_answers = 0
        self._failure: Exception | None = None
        self._thread: threading.Thread | None = None
        self._embeddings: list[Embedding] = []
        """The thread's own: texts to embed, of which the first is read."""

    @property
    def n_answers(self) -> int:
        """Answers in work or waiting."""
        return self._n_answers

    async def check(self) -> None:
        """Raises `EngineError` where the engine has died."""
        if self._failure is not None:
            raise EngineError(f"the engine died: {self._failure!r}")

    async def ready(self) -> bool:
        return self._failure is None

    async def families(self) -> list[Family]:
        """What /metrics tells of this engine."""
        self.metrics.gauge(self.stats)
        return self.metrics.families()

    @property
    def stats(self) -> Stats:
        return self.engine.stats

    async def generate(self, job: Job) -> AsyncGenerator[list[Piece]]:
        """The answers in pieces: all that has come since the last ones, so a slow reader gets fewer.

        Raises `OverloadError` at the limit, `EngineError` where the engine dies, `InvalidRequestError` for what it cannot
        answer.
        """
        await self.check()
        self._admit(job.n_answers)
        arrived, n = time.monotonic(), job.params.n
        numbers: dict[str, int] = {}
        reasons: list[str | None] = [None] * job.n_answers
        mailbox = Mailbox[Event](self.interval_s)
        try:
            if job.params.constrained and self.engine.grammars is not None:
                await asyncio.to_thread(
                    _compile, self.engine, job.params
                )  # answers in work need not wait for it
            for number, prompt in enumerate(job.prompts):
                request = Request(str(next(self._ids)), list(prompt), job.params, job.salt)
                numbers[request.id] = number
                self._mailboxes[request.id] = mailbox
                self._call(partial(self._add, request))
            self._start()
            timing = self.metrics.begin(arrived, [len(prompt) for prompt in job.prompts], job.n_answers)
            while None in reasons:
                pieces = _pieces(await mailbox.take(), numbers, n)
                for piece in pieces:
                    reasons[piece.index] = piece.finish_reason
                    timing.came(piece.index, len(piece.tokens), piece.finish_reason)
                yield pieces
        finally:
            for id, number in numbers.items():
                del self._mailboxes[id]
                if None in reasons[number * n : (number + 1) * n]:
                    self._call(partial(self.engine.cancel, id))
            mailbox.close()
            self._n_answers -= job.n_answers

    async def embed(self, prompts: Sequence[Sequence[int]]) -> list[list[float]]:
        """The embeddings of texts; raises as `generate`."""
        await self.check()
        self._admit(1)
        try:
            try:
                embeddings = [Embedding(self.engine, prompt) for prompt in prompts]
            except ValueError as error:
                raise InvalidRequestError(str(error)) from None
            loop = asyncio.get_running_loop()
            found = {embedding: loop.create_future() for embedding in embeddings}
            self._embedded |= found
            self._call(lambda: self._embeddings.extend(embeddings))
            self._start()
            try:
                return list(await asyncio.gather(*found.values()))
            finally:
                for embedding in embeddings:
                    del self._embedded[embedding]
                self._call(partial(self._forget, embeddings))
        finally:
            self._n_answers -= 1

    def close(self) -> None:
        """Ends the thread; requests in work are left alone."""
        if self._thread is not None:
            self._calls.put(None)
            self._thread.join()

    def _admit(self, n: int) -> None:
        if n > self.limit:
            raise InvalidRequestError(
                f"n: {n} answers in one request; this server takes {self.limit} at once"
            )
        if self._n_answers + n > self.limit:
            self.metrics.refused()
            raise OverloadError(f"{self._n_answers} requests are in work or waiting, of {self.limit} at most")
        self._n_answers += n

    def _call(self, call: Callable[[], object]) -> None:
        self._calls.put(call)

    def _start(self) -> None:
        if self._thread is None:
            work = (asyncio.get_running_loop(),)
            self._thread = threading.Thread(target=self._run, args=work, name="engine", daemon=True)
            self._thread.start()

    # The thread's side.

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        """The thread: calls, then a step, and sleep while there is nothing to do. It ends where the engine fails."""
        self._loop = loop
        try:
            while self._obey():
                self._embed_on()
                if self.engine.has_work and (events := self.engine.step()):
                    loop.call_soon_threadsafe(self._deliver, events)
        except Exception as error:
            logger.error("the engine died: %s", one_line(error))
            loop.call_soon_threadsafe(self._fail, error)

    def _obey(self) -> bool:
        """Does all calls that have come, and waits for one while there is no work; False at the end."""
        while not ((self.engine.has_work or self._embeddings) and self._calls.empty()):
            call = self._calls.get()
            if call is None:
                return False
            call()
        return True

    def _add(self, request: Request) -> None:
        try:
            self.engine.add(request)
        except ValueError as error:  # this request cannot be answered; the others can
            told = InvalidRequestError(str(error))
            self._loop.call_soon_threadsafe(self._deliver_to, request.id, told)

    def _embed_on(self) -> None:
        if self._embeddings and (values := self._embeddings[0].step()) is not None:
            self._loop.call_soon_threadsafe(self._embedded_to, self._embeddings.pop(0), values)

    def _forget(self, embeddings: Sequence[Embedding]) -> None:
        for embedding in embeddings:
            embedding.close()
        self._embeddings = [embedding for embedding in self._embeddings if embedding not in embeddings]

    # Called in the event loop by the thread.

    def _deliver(self, events: Sequence[Event]) -> None:
        for event in events:
            self._deliver_to(event.id, event)

    def _deliver_to(self, id: str, event: Event | Exception) -> None:
        if (
            mailbox := self._mailboxes.get(id)
        ) is not None:  # else cancelled, and the engine did not know yet
            mailbox.put(event, urgent=isinstance(event, Exception) or event.finished is not None)

    def _embedded_to(self, embedding: Embedding, values: list[float]) -> None:
        future = self._embedded.get(embedding)
        if future is not None and not future.done():
            future.set_result(values)

    def _fail(self, error: Exception) -> None:
        self._failure = error
        told = EngineError(f"the engine died: {error!r}")
        for mailbox in self._mailboxes.values():
            mailbox.put(told, urgent=True)
        for future in self._embedded.values():
            if not future.done():
                future.set_exception(told)


def _compile(engine: Engine, params: SamplingParams) -> None:
    try:
        params.validate(engine.model.config.vocab_size)
        assert engine.grammars is not None
        engine.grammars.matcher(params)
    except ValueError as error:
        raise InvalidRequestError(str(error)) from None


def _pieces(events: Sequence[Event], numbers: dict[str, int], n: int) -> list[Piece]:
    """Events as one piece for each answer that they belong to, in the order in which the answers first come."""
    of: dict[int, list[Event]] = {}
    for event in events:
        of.setdefault(numbers[event.id] * n + event.index, []).append(event)
    return [
        Piece(
            index,
            "".join(event.text for event in own),
            tuple(event.token for event in own if event.token is not None),
            own[-1].finished,
            own[-1].stop_reason,
            tuple(event.logprobs for event in own if event.logprobs is not None and event.token is not None),
            own[0].prompt_logprobs,
        )
        for index, own in of.items()
    ]
