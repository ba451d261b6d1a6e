"""Crowds: clients that all leave, and a thousand connections at once, kept up for MOXIN_LOAD_SECONDS."""

import asyncio
import json
import os
import threading
from collections import Counter
from collections.abc import Iterator

import httpx
import psutil
import pytest
import torch
from serve_helpers import served, tiny_tokenizer, wait_until

from moxin.infer.engine import Engine
from moxin.model.decoder import Decoder
from moxin.recipe import ModelConfig
from serve.engine_loop import EngineLoop

TOKENIZER = tiny_tokenizer()
SECONDS = float(os.environ.get("MOXIN_LOAD_SECONDS", "20"))
CONNECTIONS = 1000
LIMIT = 600
"""Answers that the engine takes on; the other connections are refused at first and come again."""
GROWTH = 24 * 2**20
"""Bytes that memory may grow after the first rounds; a leak of a kilobyte a request is more within a minute."""


@pytest.fixture(scope="module")
def service() -> Iterator[tuple[str, EngineLoop]]:
    torch.set_num_threads(1)
    config = ModelConfig(n_layers=1, d_model=32, n_heads=4, n_kv_heads=2, d_ff=64, vocab_size=300, max_seq_len=20_000,
                         sliding_window=64)  # fmt: skip
    model = Decoder(config)
    model.reset(seed=5)
    engine = Engine(model, max_batch=64, decode=TOKENIZER.decode)
    with served(engine, TOKENIZER, limit=LIMIT, max_len=20_000) as (url, loop):
        yield url, loop


async def ask(url: str, n_tokens: int) -> str:
    """One streamed request on a connection of its own, over a plain socket: "whole", "refused", or what went wrong."""
    host, _, port = url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        body = json.dumps(
            {"prompt": "dog", "max_tokens": n_tokens, "ignore_eos": True, "stream": True}
        ).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
        writer.write(
            head.encode() + f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body
        )
        answer = await reader.read(-1)
    finally:
        writer.close()
    if answer.startswith(b"HTTP/1.1 429 "):
        return (
            "refused" if b"retry-after: 1" in answer and b"rate_limit_exceeded" in answer else "a bad refusal"
        )
    whole = (
        answer.startswith(b"HTTP/1.1 200 ")
        and b'"finish_reason":"length"' in answer
        and b"data: [DONE]" in answer
    )
    return "whole" if whole and answer.endswith(b"0\r\n\r\n") else f"torn: {answer[-80:]!r}"


@pytest.mark.slow
def test_a_storm_of_cancellations_leaves_nothing_behind(service: tuple[str, EngineLoop]) -> None:
    """200 requests of 10,000 tokens are dropped after half a second; then one of 10 tokens is answered within 5 s."""
    url, loop = service
    free = loop.stats.num_free_pages

    async def storm() -> None:
        asking = [asyncio.ensure_future(ask(url, 10_000)) for _ in range(200)]
        await asyncio.sleep(0.5)
        assert not any(one.done() for one in asking)
        for one in asking:
            one.cancel()
        await asyncio.gather(*asking, return_exceptions=True)

    asyncio.run(storm())
    answer = httpx.post(
        f"{url}/v1/completions", json={"prompt": "dog", "max_tokens": 10, "ignore_eos": True}, timeout=5
    )
    assert answer.json()["usage"]["completion_tokens"] == 10
    wait_until(lambda: loop.n_answers == 0 and loop.stats.num_free_pages == free, 5)


@pytest.mark.slow
def test_a_thousand_connections_lose_nothing_and_tear_nothing(service: tuple[str, EngineLoop]) -> None:
    url, loop = service
    ended = threading.Event()
    results: Counter[str] = Counter()

    async def one() -> None:
        while not ended.is_set():
            result = await ask(url, 8)
            results[result] += 1
            if result == "refused":
                await asyncio.sleep(1)

    async def crowd() -> tuple[int, int]:
        asking = [asyncio.ensure_future(one()) for _ in range(CONNECTIONS)]
        await asyncio.sleep(SECONDS / 2)
        before = psutil.Process().memory_info().rss
        await asyncio.sleep(SECONDS / 2)
        after = psutil.Process().memory_info().rss
        ended.set()
        await asyncio.gather(*asking)
        return before, after

    before, after = asyncio.run(crowd())
    assert set(results) <= {"whole", "refused"}, results
    assert results["whole"] > CONNECTIONS
    assert results["refused"] > 0
    assert after - before < GROWTH, f"memory grew by {(after - before) / 2**20:.1f} MiB in {SECONDS / 2} s"
    wait_until(lambda: loop.n_answers == 0)
    assert httpx.get(f"{url}/health").status_code == 200
