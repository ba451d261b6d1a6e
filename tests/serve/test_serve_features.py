"""What an answer can be asked for: log-probabilities, answers, forms, tools, embeddings; held against transformers."""

import base64
import json
import math
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import numpy as np
import openai
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families
from serve_helpers import FakeEngine, served, tiny_tokenizer
from small import as_transformers, noisy

from moxin.infer.engine import Engine
from moxin.infer.grammar import Grammars
from moxin.recipe import ModelConfig
from serve.engine_loop import EngineLoop

TOKENIZER = tiny_tokenizer()
QUESTION = [{"role": "user", "content": "Who owns the dog?"}]
CONFIG = ModelConfig(n_layers=2, d_model=32, n_heads=4, n_kv_heads=2, d_ff=64, vocab_size=300, max_seq_len=512,
                     sliding_window=48)  # fmt: skip
MODEL = noisy(CONFIG, seed=3)
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather at a place.",
        "parameters": {
            "type": "object",
            "properties": {
                "unit": {"enum": ["C", "F"]},
                "days": {"type": "integer", "minimum": 1, "maximum": 9},
            },
            "required": ["unit", "days"],
            "additionalProperties": False,
        },
    },
}
TIME = {"type": "function", "function": {"name": "now"}}


@pytest.fixture(scope="module")
def service() -> Iterator[tuple[str, EngineLoop]]:
    torch.set_num_threads(1)
    grammars = Grammars(TOKENIZER.spec, 300, [TOKENIZER.eos_id, TOKENIZER.end_id])
    engine = Engine(MODEL, max_batch=4, decode=TOKENIZER.decode, grammars=grammars, prefill_chunk=64)
    with served(engine, TOKENIZER, limit=16, max_len=512) as (url, loop):
        yield url, loop


@pytest.fixture(scope="module")
def client(service: tuple[str, EngineLoop]) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{service[0]}/v1", api_key="none", max_retries=0, timeout=60)


def transformers_logprobs(tokens: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return as_transformers(MODEL)(torch.tensor([tokens])).logits[0].double().log_softmax(-1)


def test_echoed_log_probabilities_are_those_of_transformers(client: openai.OpenAI) -> None:
    prompts = [TOKENIZER.begin("The quick brown fox " * 8), TOKENIZER.begin("Ada owns the lazy dog.")]
    answer = client.completions.create(
        model="tiny", prompt=prompts, echo=True, logprobs=3, max_tokens=1, temperature=0
    )
    for prompt, choice in zip(prompts, answer.choices, strict=True):
        logprobs = choice.logprobs
        assert logprobs.token_logprobs[0] is None
        assert logprobs.top_logprobs[0] is None
        assert len(logprobs.tokens) == len(prompt) + 1
        theirs = transformers_logprobs(prompt)
        for at in range(1, len(prompt)):
            assert logprobs.token_logprobs[at] == pytest.approx(float(theirs[at - 1, prompt[at]]), abs=1e-5)
            best = max(logprobs.top_logprobs[at].values())
            assert best == pytest.approx(float(theirs[at - 1].max()), abs=1e-5)
        assert logprobs.text_offset == [
            len("".join(logprobs.tokens[:i])) for i in range(len(logprobs.tokens))
        ]
    assert answer.choices[0].text.startswith("The quick brown fox ")


def test_a_prompt_can_be_scored_without_an_answer(client: openai.OpenAI) -> None:
    scored = client.completions.create(model="tiny", prompt="Ada owns", echo=True, logprobs=0, max_tokens=0)
    assert scored.choices[0].text == "Ada owns"
    assert len(scored.choices[0].logprobs.tokens) == len(TOKENIZER.begin("Ada owns"))
    assert scored.usage.completion_tokens == 0


def test_a_chat_s_log_probabilities_whole_and_streamed(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "tiny", "messages": QUESTION, "temperature": 0, "max_tokens": 12, "logprobs": True,
                             "top_logprobs": 4}  # fmt: skip
    content = client.chat.completions.create(**asked).choices[0].logprobs.content
    prompt, _ = TOKENIZER.render(QUESTION, add_generation_prompt=True)
    theirs = transformers_logprobs(prompt)[-1]
    assert [one.logprob for one in content[0].top_logprobs] == pytest.approx(
        theirs.topk(4).values.tolist(), abs=1e-5
    )
    assert content[0].logprob == content[0].top_logprobs[0].logprob
    streamed = []
    for event in client.chat.completions.create(**asked, stream=True):
        if event.choices[0].logprobs:
            streamed += event.choices[0].logprobs.content
    assert streamed == content
    # The bytes of all tokens are the text, whatever single tokens look like.
    said = client.chat.completions.create(**asked).choices[0].message.content
    assert b"".join(bytes(one.bytes) for one in content).decode(errors="replace") == said


def test_n_answers_have_streams_of_their_own(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "tiny",
        "prompt": ["Ada", "The dog"],
        "n": 3,
        "seed": 5,
        "max_tokens": 10,
        "logprobs": 0,
    }
    whole = client.completions.create(**asked)
    assert [choice.index for choice in whole.choices] == list(range(6))
    texts = [choice.text for choice in whole.choices]
    assert len({tuple(choice.logprobs.tokens) for choice in whole.choices}) == 6
    streamed = [""] * 6
    for event in client.completions.create(**asked, stream=True):
        streamed[event.choices[0].index] += event.choices[0].text
    assert streamed == texts


def test_sampling_settings_reach_the_engine(client: openai.OpenAI) -> None:
    def say(**options: Any) -> str:
        asked = {"model": "tiny", "prompt": "Ada", "temperature": 0, "max_tokens": 8, **options}
        return client.completions.create(**asked).choices[0].text

    token = TOKENIZER.encode("dog")[-1]
    assert say(logit_bias={str(token): 100}) == TOKENIZER.decode([token] * 8)
    assert say(extra_body={"top_k": 1}, temperature=2) == say()
    assert say(extra_body={"min_p": 1.0}, temperature=2) == say()
    greedy = int(transformers_logprobs(TOKENIZER.begin("Ada"))[-1].argmax())
    stopped = client.completions.create(
        model="tiny", prompt="Ada", temperature=0, max_tokens=8, extra_body={"stop_token_ids": [greedy]}
    )
    assert stopped.choices[0].text == ""
    assert stopped.choices[0].stop_reason == greedy


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"enum": ["Ada", "Bob"]},
        "ages": {"type": "array", "items": {"type": "integer"}, "maxItems": 3},
    },
    "required": ["name", "ages"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("seed", range(4))
def test_json_of_a_schema(client: openai.OpenAI, seed: int) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}
    answer = client.chat.completions.create(
        model="tiny", messages=QUESTION, response_format=form, seed=seed, max_tokens=400, temperature=0.7,
        logit_bias={str(i): -100 for i in range(300) if TOKENIZER.decode([i]).isdecimal()},
    )  # fmt: skip
    if answer.choices[0].finish_reason == "stop":
        jsonschema.validate(json.loads(answer.choices[0].message.content), SCHEMA)
    else:
        assert answer.usage.completion_tokens >= 300


def test_regular_expressions_and_grammars(client: openai.OpenAI) -> None:
    for form in (
        {"type": "regex", "regex": "(yes|no){3}"},
        {"type": "grammar", "grammar": 'start: ("yes" | "no")~3'},
    ):
        body = {"response_format": form}
        answer = client.completions.create(model="tiny", prompt="Is it?", max_tokens=60, extra_body=body)
        text = answer.choices[0].text
        assert text.replace("yes", "").replace("no", "") == ""
        assert len(text.replace("yes", "no")) == 6


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
@pytest.mark.parametrize("streamed", [False, True])
def test_calls_that_are_asked_for_come_and_follow_their_schema(
    client: openai.OpenAI, choice: Any, streamed: bool
) -> None:
    asked: dict[str, Any] = {"model": "tiny", "messages": QUESTION, "tools": [WEATHER, TIME], "tool_choice": choice,
                             "seed": 2, "max_tokens": 300, "parallel_tool_calls": False}  # fmt: skip
    if streamed:
        events = list(client.chat.completions.create(**asked, stream=True))
        calls = [call for event in events for call in event.choices[0].delta.tool_calls or ()]
        assert [call.index for call in calls] == [0]
        assert "".join(event.choices[0].delta.content or "" for event in events) == ""
        reason = events[-1].choices[0].finish_reason
    else:
        choices = client.chat.completions.create(**asked).choices[0]
        calls, reason = choices.message.tool_calls, choices.finish_reason
        assert choices.message.content is None
    assert reason == "tool_calls"
    (call,) = calls
    assert call.id.startswith("call_")
    arguments = json.loads(call.function.arguments)
    named = {"weather": WEATHER["function"].get("parameters"), "now": {"maxProperties": 0}}  # type: ignore[attr-defined]
    jsonschema.validate(arguments, named[call.function.name])
    if isinstance(choice, dict):
        assert call.function.name == "weather"


def test_a_model_that_may_call_can_also_talk(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "tiny",
        "messages": QUESTION,
        "tools": [WEATHER],
        "max_tokens": 20,
        "seed": 1,
    }
    free = client.chat.completions.create(**asked)
    assert free.choices[0].message.tool_calls is None
    assert free.choices[0].message.content


TALK = 'Let me <look>. <tool_call>{"name": "weather", "arguments": {"unit": "C", "days": 2}}</tool_call>' \
       '<tool_call>{"name": "now", "arguments": {}}</tool_call>'  # fmt: skip


@pytest.mark.parametrize("streamed", [False, True])
def test_text_and_calls_are_told_apart(streamed: bool) -> None:
    with served(FakeEngine(TOKENIZER, TALK), TOKENIZER, max_len=2000) as (url, _):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        asked: dict[str, Any] = {"model": "tiny", "messages": QUESTION, "tools": [WEATHER, TIME]}
        if streamed:
            deltas = [
                event.choices[0].delta for event in client.chat.completions.create(**asked, stream=True)
            ]
            text = "".join(delta.content or "" for delta in deltas)
            calls = [call for delta in deltas for call in delta.tool_calls or ()]
        else:
            message = client.chat.completions.create(**asked).choices[0].message
            text, calls = message.content, message.tool_calls
        plain = client.chat.completions.create(**{**asked, "tool_choice": "none"}).choices[0].message
    assert text == "Let me <look>. "
    assert [call.function.name for call in calls] == ["weather", "now"]
    assert json.loads(calls[0].function.arguments) == {"unit": "C", "days": 2}
    assert plain.content == TALK


def test_calls_and_their_results_are_part_of_the_talk(
    client: openai.OpenAI, service: tuple[str, EngineLoop]
) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "now", "arguments": "{}"}}
    messages = [*QUESTION, {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "call_1", "content": "noon"}]  # fmt: skip
    read = httpx.post(f"{service[0]}/tokenize", json={"messages": messages}).json()
    text = TOKENIZER.decode(read["tokens"])
    assert '<tool_call>{"name": "now", "arguments": {}}</tool_call>' in text
    assert "<tool_response>noon</tool_response>" in text


@pytest.mark.parametrize("n_words", [1, 60])
def test_embeddings_are_the_mean_of_the_last_layer(client: openai.OpenAI, n_words: int) -> None:
    """The longer text takes several chunks and more than the model's window."""
    texts = ["dog " * n_words, "Ada owns the lazy dog."]
    found = client.embeddings.create(model="tiny", input=texts)
    for text, item in zip(texts, found.data, strict=True):
        with torch.inference_mode():
            hidden = as_transformers(MODEL).model(torch.tensor([TOKENIZER.begin(text)])).last_hidden_state[0]
        mean = hidden.double().mean(0)
        np.testing.assert_allclose(item.embedding, (mean / mean.norm()).numpy(), atol=1e-5)
    as_numbers = client.embeddings.create(model="tiny", input=texts, encoding_format="float")
    np.testing.assert_allclose(as_numbers.data[0].embedding, found.data[0].embedding, atol=1e-6)
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model="tiny", input="x", dimensions=5)
    assert caught.value.param == "dimensions"


def test_embeddings_come_beside_answers(client: openai.OpenAI, service: tuple[str, EngineLoop]) -> None:
    loop = service[1]
    free = sum(loop.stats.num_free_pages)
    endless = client.completions.create(
        model="tiny", prompt="dog", max_tokens=400, stream=True, extra_body={"ignore_eos": True}
    )
    next(endless)
    assert len(client.embeddings.create(model="tiny", input="Ada").data) == 1
    endless.close()
    client.completions.create(model="tiny", prompt="x", max_tokens=1)
    assert sum(loop.stats.num_free_pages) == free


def test_tokenize_and_back(service: tuple[str, EngineLoop]) -> None:
    url = service[0]
    text = "naïve 漢字 🎉"
    read = httpx.post(f"{url}/tokenize", json={"prompt": text, "return_token_strs": True}).json()
    assert read["tokens"] == TOKENIZER.begin(text)
    assert read["count"] == len(read["tokens"]) == len(read["token_strs"])
    assert httpx.post(f"{url}/detokenize", json={"tokens": read["tokens"]}).json() == {"prompt": text}
    wrong = httpx.post(f"{url}/detokenize", json={"tokens": [10**6]})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "tokens")


def test_metrics_have_the_names_of_vllm_and_count(
    client: openai.OpenAI, service: tuple[str, EngineLoop]
) -> None:
    def read() -> dict[str, float]:
        answer = httpx.get(f"{service[0]}/metrics")
        found = {}
        for family in text_string_to_metric_families(answer.text):
            for sample in family.samples:
                if not sample.name.endswith("_bucket"):
                    reason = sample.labels.get("finished_reason", "")
                    assert sample.labels["model_name"] == "model"
                    found[sample.name + reason] = sample.value
        return found

    before = read()
    client.completions.create(model="tiny", prompt="dog", max_tokens=7, extra_body={"ignore_eos": True})
    after = read()
    assert after["vllm:num_requests_running"] == 0
    assert 0 <= after["vllm:kv_cache_usage_perc"] <= 1
    for name, grown in {
        "vllm:generation_tokens_total": 7,
        "vllm:request_success_totallength": 1,
        "vllm:time_to_first_token_seconds_count": 1,
        "vllm:inter_token_latency_seconds_count": 6,
        "vllm:e2e_request_latency_seconds_count": 1,
        "vllm:request_generation_tokens_sum": 7,
    }.items():
        assert after[name] - before.get(name, 0) == grown, name
    assert math.isfinite(after["vllm:inter_token_latency_seconds_sum"])


def test_base64_is_little_endian_float32(service: tuple[str, EngineLoop]) -> None:
    asked = {"input": "Ada", "encoding_format": "base64"}
    coded = httpx.post(f"{service[0]}/v1/embeddings", json=asked).json()["data"][0]["embedding"]
    plain = httpx.post(f"{service[0]}/v1/embeddings", json={"input": "Ada"}).json()["data"][0]["embedding"]
    np.testing.assert_allclose(np.frombuffer(base64.b64decode(coded), "<f4"), plain, rtol=1e-6)
