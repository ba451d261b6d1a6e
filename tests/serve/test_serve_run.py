"""The service on a real Ray Serve, and what it refuses before Ray is started."""

import asyncio
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
import ray
from serve_helpers import tiny_tokenizer, wait_until

from moxin.model import huggingface
from moxin.model.decoder import Decoder
from moxin.recipe import ModelConfig
from serve.app import app
from serve.interview import ask
from serve.run import check_port, deploy, serving

QUESTION = [{"role": "user", "content": "Who owns the dog?"}]
FOREVER = {"max_tokens": 10**6, "extra_body": {"ignore_eos": True}, "stream": True}


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A release folder of a tiny model with random weights and an endless context, thanks to its window."""
    folder = tmp_path_factory.mktemp("serve")
    config = ModelConfig(n_layers=1, d_model=32, n_heads=4, n_kv_heads=2, d_ff=64, vocab_size=300,
                         max_seq_len=2 * 10**6, sliding_window=32)  # fmt: skip
    model = Decoder(config)
    model.reset(seed=5)
    tiny_tokenizer().save(str(folder / "tokenizer"))
    huggingface.export(model, str(folder / "tokenizer"), str(folder / "release"), dtype="float32")
    return str(folder / "release")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_a_taken_port_is_told_with_the_way_out() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ValueError, match=rf"port {port} on 127.0.0.1 is taken .* --port N"):
            check_port("127.0.0.1", port)
    check_port("127.0.0.1", port)
    with pytest.raises(ValueError, match="from 1 to 65535"):
        check_port("127.0.0.1", 70_000)
    with pytest.raises(ValueError, match="cannot be listened on"):
        check_port("no.such.host", 8000)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"max_bach": "4"}, "did you mean 'max_batch'"),
        ({"max_batch": "many"}, "max_batch = 'many'"),
        ({"replicas": "0"}, "replicas = '0'"),
        ({"model": "/nowhere"}, "/nowhere has no config.json"),
    ],
)
def test_wrong_settings_are_told_before_anything_starts(
    release: str, change: dict[str, str], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        app({"model": release, **change})


@pytest.fixture(scope="module")
def base_url(ray_session: None, release: str) -> Iterator[str]:
    """The second service of this Ray: the first was shut down and its port is free again."""
    settings = {"name": "tiny", "max_batch": 1, "max_waiting": 1}
    with serving(release, **settings) as url:
        port = int(url.rpartition(":")[2])
        with pytest.raises(ValueError, match="is taken"):
            check_port("127.0.0.1", port)
        with pytest.raises(ValueError, match="serves default already"):
            deploy(release, free_port())
    with serving(release, port, **settings) as url:
        yield url


def answer_of(base_url: str, **options: Any) -> Any:
    client = openai.OpenAI(base_url=f"{base_url}/v1", api_key="none", max_retries=0, timeout=60)
    return client.chat.completions.create(model="tiny", messages=QUESTION, **options)


@pytest.mark.slow
def test_the_openai_client_is_answered(base_url: str) -> None:
    options = {"temperature": 0, "max_tokens": 20, "extra_body": {"ignore_eos": True}}
    whole = answer_of(base_url, **options)
    assert whole.usage.completion_tokens == 20
    events = list(answer_of(base_url, stream=True, **options))
    assert "".join(event.choices[0].delta.content for event in events) == whole.choices[0].message.content
    assert events[-1].choices[0].finish_reason == "length"
    assert httpx.get(f"{base_url}/health").status_code == 200
    with pytest.raises(openai.BadRequestError, match="takes 2 at once"):
        answer_of(base_url, n=3)


@pytest.mark.slow
def test_the_interview_asks_and_judges(base_url: str) -> None:
    rows = ask([{"question": "Who owns the dog?", "answer": "Ada Lovelace"}] * 2, base_url, max_tokens=8)
    assert rows[0] == rows[1]
    assert rows[0]["expected"] == "Ada Lovelace"
    assert rows[0]["right"] is False


@pytest.mark.slow
def test_overload_is_429_and_never_a_torn_stream(base_url: str) -> None:
    async def one(client: openai.AsyncOpenAI) -> str:
        try:
            events = await client.chat.completions.create(
                model="tiny", messages=QUESTION, stream=True, max_tokens=300, extra_body={"ignore_eos": True}
            )
            return [event.choices[0].finish_reason async for event in events][-1]
        except openai.RateLimitError as error:
            return f"{error.code}, retry after {error.response.headers['retry-after']}: {error.message}"

    async def crowd() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{base_url}/v1", api_key="none", max_retries=0) as client:
            return list(await asyncio.gather(*(one(client) for _ in range(16))))

    answers = asyncio.run(crowd())
    refused = [answer for answer in answers if answer.startswith("rate_limit_exceeded, retry after 1: ")]
    assert answers.count("length") + len(refused) == 16
    assert 1 <= len(refused) <= 15
    assert all("\n" not in answer for answer in refused)  # no traceback of Ray's


def answers(base_url: str) -> bool:
    try:
        return answer_of(base_url, max_tokens=1).usage.total_tokens > 0
    except (openai.RateLimitError, openai.InternalServerError):
        return False


@pytest.mark.slow
def test_clients_that_leave_free_their_places(base_url: str) -> None:
    """An endless stream holds the engine's one slot and an endless wait the one place behind it."""
    stream = answer_of(base_url, **FOREVER)
    next(stream)
    body = {"messages": QUESTION, "max_tokens": 10**6, "ignore_eos": True}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{base_url}/v1/chat/completions", json=body, timeout=httpx.Timeout(60, read=1))
    stream.close()
    wait_until(lambda: answers(base_url), 60)


@pytest.mark.slow
def test_a_killed_replica_ends_its_stream_with_an_error_and_is_replaced(base_url: str) -> None:
    stream = answer_of(base_url, **FOREVER)
    next(stream)
    names = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]
    (replica,) = (name for name in names if "#engine#" in name)
    ray.kill(ray.get_actor(replica, namespace="serve"))
    with pytest.raises(openai.APIError, match="engine failed"):
        list(stream)
    wait_until(lambda: answers(base_url), 60)


@pytest.mark.slow
def test_health_tells_of_an_engine_that_is_gone_until_it_is_back(base_url: str) -> None:
    wait_until(lambda: httpx.get(f"{base_url}/ready", timeout=30).status_code == 200, 60)
    names = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]
    (replica,) = (name for name in names if "#engine#" in name)
    ray.kill(ray.get_actor(replica, namespace="serve"))
    seen = set()

    def status(code: int) -> bool:
        health = httpx.get(f"{base_url}/health", timeout=30)
        seen.add(health.json().get("error", {}).get("code"))
        return health.status_code == code

    wait_until(lambda: status(503), 60)
    wait_until(lambda: status(200), 90)
    assert seen == {None, "engine_failed"}
