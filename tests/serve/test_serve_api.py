"""The HTTP service as the official `openai` client and raw HTTP see it, without Ray."""

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from serve_helpers import FakeEngine, served, tiny_tokenizer, wait_until

from moxin.infer.engine import Engine
from moxin.infer.grammar import Grammars
from moxin.model.decoder import Decoder
from moxin.recipe import ModelConfig

TOKENIZER = tiny_tokenizer()
QUESTION = [{"role": "user", "content": "Who owns the dog?"}]
UNICODE = "naïve 漢字 and 🎉🧑‍🚀 in bytes"


def client_of(base_url: str, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{base_url}/v1", api_key=key, max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    """A server with a real engine around a model with random weights, which says any byte at all."""
    config = ModelConfig(n_layers=2, d_model=32, n_heads=4, n_kv_heads=2, d_ff=64, vocab_size=300, max_seq_len=128,
                         sliding_window=48)  # fmt: skip
    model = Decoder(config)
    model.reset(seed=5)
    grammars = Grammars(TOKENIZER.spec, 300, [TOKENIZER.eos_id, TOKENIZER.end_id])
    engine = Engine(model, max_batch=4, decode=TOKENIZER.decode, grammars=grammars)
    with served(engine, TOKENIZER) as (url, _):
        yield url


@pytest.fixture(scope="module")
def client(base_url: str) -> openai.OpenAI:
    return client_of(base_url)


def say(client: openai.OpenAI, **options: Any) -> str:
    options = {"temperature": 1.0, "max_tokens": 24, **options}
    answer = client.chat.completions.create(model="tiny", messages=QUESTION, **options)
    return answer.choices[0].message.content


def stream(client: openai.OpenAI, **options: Any) -> tuple[list[str], Any]:
    """The deltas of a streamed answer, and its last event."""
    events = list(client.chat.completions.create(model="tiny", messages=QUESTION, stream=True, **options))
    return [event.choices[0].delta.content or "" for event in events if event.choices], events[-1]


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").max_model_len == 128


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_a_stream_says_what_the_whole_answer_says(client: openai.OpenAI, temperature: float) -> None:
    options = {"temperature": temperature, "seed": 7, "max_tokens": 60}
    whole = client.chat.completions.create(model="tiny", messages=QUESTION, **options)
    deltas, last = stream(client, stream_options={"include_usage": True}, **options)
    assert "".join(deltas) == whole.choices[0].message.content
    assert last.usage == whole.usage
    prompt, _ = TOKENIZER.render(QUESTION, add_generation_prompt=True)
    assert last.usage.prompt_tokens == len(prompt)
    assert last.usage.completion_tokens <= 60


def test_text_completions_take_strings_and_token_ids(client: openai.OpenAI) -> None:
    options = {"model": "tiny", "temperature": 0, "max_tokens": 12}
    text = client.completions.create(prompt="The quick", **options).choices[0]
    ids = [TOKENIZER.bos_id, *TOKENIZER.encode("The quick")]
    assert client.completions.create(prompt=[ids], **options).choices[0].text == text.text
    events = list(client.completions.create(prompt=ids, stream=True, **options))
    assert "".join(event.choices[0].text for event in events) == text.text
    assert events[-1].choices[0].finish_reason == text.finish_reason


def test_a_seed_gives_the_same_answer_in_any_company(client: openai.OpenAI) -> None:
    alone = say(client, seed=11)

    async def crowd() -> list[str]:
        async with openai.AsyncOpenAI(base_url=client.base_url, api_key="none", max_retries=0) as many:
            answers = [
                many.chat.completions.create(model="tiny", messages=QUESTION, max_tokens=24, seed=seed)
                for seed in (11, 12, 13, 11)
            ]
            return [answer.choices[0].message.content for answer in await asyncio.gather(*answers)]

    together = asyncio.run(crowd())
    assert together[0] == together[3] == alone
    assert len(set(together)) == 3


def test_an_answer_ends_where_the_context_ends(client: openai.OpenAI) -> None:
    options = {"max_tokens": 10_000, "extra_body": {"ignore_eos": True}}
    answer = client.chat.completions.create(model="tiny", messages=QUESTION, **options)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.total_tokens == 128


@pytest.mark.parametrize(
    ("change", "param", "told"),
    [
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"n": 10**9}, "n", "less than or equal to 128"),
        ({"n": 100}, "n", "takes 8 at once"),
        ({"temperature": "hot"}, "temperature", "'hot'"),
        ({"temperature": -1}, "temperature", "greater than or equal to 0"),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"max_tokens": True}, "max_tokens", "integer"),
        ({"seed": 2**70}, "seed", "less than"),
        ({"stop": [""]}, "stop", "empty"),
        ({"stream": "yes"}, "stream", "boolean"),
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages", "'wizard'"),
        ({"messages": [{"role": "user", "content": None}]}, "messages", "None"),
        ({"messages": [{"role": "user", "content": "dog " * 500}]}, "messages", "context holds 128"),
        ({"frequency_penalty": -2.5}, "frequency_penalty", "greater than or equal to -2"),
        ({"top_logprobs": 3}, "top_logprobs", "needs logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "less than or equal to 20"),
        ({"logit_bias": {"cat": 1}}, "logit_bias", "token ids"),
        ({"logit_bias": {"300": 1}}, "logit_bias", "outside the vocabulary"),
        ({"min_tokens": 10, "max_tokens": 5}, "min_tokens", "5 tokens at most"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools", "pattern"),
        ({"tool_choice": "required"}, "tool_choice", "no tools"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice", "not among tools"),
        ({"functions": [{"name": "f"}]}, "functions", "not supported"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "needs a field json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "wizard"}}}},
            "response_format",
            "cannot be compiled",
        ),
        ({"response_format": {"type": "regex", "regex": "(["}}, "response_format", "cannot be compiled"),
    ],
)
def test_wrong_requests_are_told_which_field(
    client: openai.OpenAI, change: dict[str, Any], param: str, told: str
) -> None:
    body = {"model": "tiny", "messages": QUESTION, **change}
    with pytest.raises(openai.BadRequestError) as caught:
        client.post("/chat/completions", body=body, cast_to=object)
    assert caught.value.param == param
    assert told in caught.value.message
    assert caught.value.type == "invalid_request_error"


@pytest.mark.parametrize("prompt", [[], [[]], [[1], []], [10**6], [-1], [[1], "a"], 3, None])
def test_wrong_prompts(client: openai.OpenAI, prompt: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.post("/completions", body={"prompt": prompt}, cast_to=object)
    assert caught.value.param == "prompt"


@pytest.mark.parametrize(
    "content",
    [
        b'{"messages": [',
        b"\xff\xfe",
        b'{"temperature": NaN}',
        b"[]",
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
    ],
)
@pytest.mark.parametrize("kind", ["application/json", "text/plain"])
def test_bodies_that_are_no_request(base_url: str, content: bytes, kind: str) -> None:
    headers = {"Content-Type": kind}
    answer = httpx.post(f"{base_url}/v1/chat/completions", content=content, headers=headers)
    assert answer.status_code == (400 if kind == "application/json" else 415)
    assert answer.json()["error"]["message"]


def test_unknown_models_and_routes(base_url: str, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-4", messages=QUESTION)
    assert caught.value.code == "model_not_found"
    assert "'tiny' is" in caught.value.message
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("a/b")
    assert httpx.get(f"{base_url}/v2/nothing").json()["error"]["type"] == "not_found_error"
    assert httpx.get(f"{base_url}/v1/completions").status_code == 405


def test_fields_that_clients_send_and_we_do_not_know_are_tolerated(client: openai.OpenAI) -> None:
    extra = {
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        "frequency_penalty": 0,
        "logprobs": False,
        "user": "u",
        "store": False,
        "something_new": {"a": 1},
    }
    assert stream(client, max_tokens=3, extra_body=extra)[1].usage.completion_tokens <= 3


def test_a_key_is_asked_for_everywhere_but_at_health() -> None:
    with served(FakeEngine(TOKENIZER, "yes"), TOKENIZER, keys=("other-one", "secret")) as (base_url, _):
        assert say(client_of(base_url, "secret")) == "yes"
        foreign = {"Authorization": "Bearer schlüssel".encode()}
        assert httpx.get(f"{base_url}/v1/models", headers=foreign).status_code == 401
        with pytest.raises(openai.AuthenticationError) as caught:
            say(client_of(base_url, "other"))
        assert caught.value.code == "invalid_api_key"
        assert httpx.get(f"{base_url}/version").status_code == 401
        assert httpx.get(f"{base_url}/health").json() == {"status": "ok"}


@pytest.mark.parametrize("kind", ["chat", "text"])
def test_no_character_is_split(kind: str) -> None:
    """The tokenizer spells these characters in bytes, one token each."""
    assert len(TOKENIZER.encode("🎉")) == 4
    with served(FakeEngine(TOKENIZER, UNICODE), TOKENIZER) as (base_url, _):
        client = client_of(base_url)
        if kind == "chat":
            deltas, _ = stream(client)
        else:
            events = client.completions.create(model="tiny", prompt="x", max_tokens=99, stream=True)
            deltas = [event.choices[0].text for event in events]
    assert "".join(deltas) == UNICODE
    assert not any("\N{REPLACEMENT CHARACTER}" in delta for delta in deltas)


def test_a_stop_string_ends_the_answer_before_it() -> None:
    engine = FakeEngine(TOKENIZER, "the lazy dog jumps over the lazy fox")
    with served(engine, TOKENIZER) as (base_url, _):
        client = client_of(base_url)
        assert say(client, stop=" dog ju") == "the lazy"
        deltas, last = stream(client, stop=["never", " dog ju"])
    assert "".join(deltas) == "the lazy"
    assert last.choices[0].finish_reason == "stop"


def test_overload_is_429_and_never_a_torn_stream() -> None:
    engine = FakeEngine(TOKENIZER, "the lazy dog")
    engine.gate.clear()

    async def one(client: openai.AsyncOpenAI) -> str:
        try:
            events = await client.chat.completions.create(model="tiny", messages=QUESTION, stream=True)
            return "".join([event.choices[0].delta.content async for event in events])
        except openai.RateLimitError as error:
            return f"{error.code}, retry after {error.response.headers['retry-after']}"

    async def crowd(base_url: str) -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{base_url}/v1", api_key="none", max_retries=0) as client:
            tasks = [asyncio.create_task(one(client)) for _ in range(16)]
            while sum(task.done() for task in tasks) < 11:  # the engine stands until all others are refused
                await asyncio.sleep(0.01)
            engine.gate.set()
            return list(await asyncio.gather(*tasks))

    with served(engine, TOKENIZER, limit=5) as (base_url, _):
        answers = asyncio.run(asyncio.wait_for(crowd(base_url), 60))
        assert answers.count("the lazy dog") == 5
        assert answers.count("rate_limit_exceeded, retry after 1") == 11
        assert say(client_of(base_url)) == "the lazy dog"


@pytest.mark.parametrize("streamed", [True, False])
def test_a_client_that_leaves_frees_its_slot(streamed: bool) -> None:
    engine = FakeEngine(TOKENIZER, "on and on " * 10_000)
    engine.pause_s = 0.001  # it must not be done before the client reads
    body = {"messages": QUESTION, "stream": streamed}
    with served(engine, TOKENIZER, limit=1, max_len=10**6) as (base_url, loop):
        if streamed:
            with httpx.stream("POST", f"{base_url}/v1/chat/completions", json=body) as response:
                next(response.iter_lines())
                assert engine.has_work
        else:
            engine.gate.clear()
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{base_url}/v1/chat/completions", json=body, timeout=httpx.Timeout(30, read=0.5))
            engine.gate.set()
        wait_until(lambda: not engine.has_work and not loop.n_answers)
        assert say(client_of(base_url), max_tokens=2) == "on"


def test_an_engine_that_dies_fails_those_who_wait_and_says_so() -> None:
    engine = FakeEngine(TOKENIZER, "the lazy dog", fail_after=0)
    with served(engine, TOKENIZER) as (base_url, _):
        for _ in range(2):
            with pytest.raises(openai.InternalServerError) as caught:
                say(client_of(base_url))
            assert caught.value.code == "engine_failed"
            assert "secret" not in caught.value.message
        health = httpx.get(f"{base_url}/health")
        assert health.status_code == 503
        assert "secret" not in health.text


def test_an_engine_that_dies_on_the_way_ends_the_stream_with_an_error() -> None:
    engine = FakeEngine(TOKENIZER, "the lazy dog", fail_after=2)
    with served(engine, TOKENIZER) as (base_url, _):
        with pytest.raises(openai.APIError, match="engine failed"):
            stream(client_of(base_url))
        body = {"messages": QUESTION, "stream": True}
        assert httpx.post(f"{base_url}/v1/chat/completions", json=body).status_code == 500
