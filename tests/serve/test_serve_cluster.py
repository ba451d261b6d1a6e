"""Several models and replicas on a real Ray Serve: routing, metrics, scaling to none and back, a rolling update."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families
from ray import serve
from serve_helpers import tiny_tokenizer, wait_until

from moxin.model import huggingface
from moxin.model.decoder import Decoder
from moxin.recipe import ModelConfig
from serve.app import app
from serve.autoscale import engines, wanted_replicas
from serve.router import BLOCK, IMBALANCE, Affinity, prefix_of
from serve.run import serving_app

LONG = "The quick brown fox jumps over the lazy dog. " * 30


def release(folder: Path, d_model: int) -> str:
    config = ModelConfig(n_layers=1, d_model=d_model, n_heads=4, n_kv_heads=2, d_ff=64, vocab_size=300, max_seq_len=4096,
                         sliding_window=None)  # fmt: skip
    model = Decoder(config)
    model.reset(seed=5)
    tiny_tokenizer().save(str(folder / "tokenizer"))
    huggingface.export(model, str(folder / "tokenizer"), str(folder / "release"), dtype="float32")
    return str(folder / "release")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    models = [
        {
            "name": "wide",
            "model": release(tmp_path_factory.mktemp("wide"), 48),
            "replicas": 2,
            "max_batch": 4,
        },
        {
            "name": "rare",
            "model": release(tmp_path_factory.mktemp("rare"), 32),
            "min_replicas": 0,
            "idle_s": 2,
        },
    ]
    return {"models": models, "stream_interval_ms": 50}


@pytest.fixture(scope="module")
def base_url(ray_session: None, settings: dict[str, Any]) -> Iterator[str]:
    with serving_app(settings) as url:
        yield url


def complete(base_url: str, model: str, **options: Any) -> Any:
    client = openai.OpenAI(base_url=f"{base_url}/v1", api_key="none", max_retries=0, timeout=120)
    return client.completions.create(**{"model": model, "prompt": "dog", "max_tokens": 4, **options})


def replicas_of(deployment: str) -> int:
    names = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]
    return sum(f"#{deployment}#" in name for name in names)


def samples(base_url: str) -> dict[tuple[str, str, str], float]:
    """By name, model and replica."""
    text = httpx.get(f"{base_url}/metrics", timeout=30).text
    return {
        (sample.name, sample.labels["model_name"], sample.labels["engine"]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.mark.slow
def test_requests_go_to_the_model_that_they_name(base_url: str) -> None:
    client = openai.OpenAI(base_url=f"{base_url}/v1", api_key="none", max_retries=0)
    assert [model.id for model in client.models.list()] == ["wide", "rare"]
    assert (
        len(client.embeddings.create(model="wide", input="x", encoding_format="float").data[0].embedding)
        == 48
    )
    with pytest.raises(openai.NotFoundError, match="did you mean 'wide'"):
        complete(base_url, "wild")
    assert httpx.get(f"{base_url}/health").status_code == 200


@pytest.mark.slow
def test_a_model_that_nobody_uses_goes_and_comes_back(base_url: str) -> None:
    wait_until(lambda: replicas_of("engine-1") == 0, 60)
    assert httpx.get(f"{base_url}/ready").status_code == 200
    assert complete(base_url, "rare").model == "rare"
    assert replicas_of("engine-1") == 1
    wait_until(lambda: replicas_of("engine-1") == 0, 60)


@pytest.mark.slow
def test_a_prompt_goes_where_its_beginning_was_read(base_url: str) -> None:
    for turn in range(8):
        complete(base_url, "wide", prompt=LONG + f"Turn {turn}.", max_tokens=2)
    hits = [value for (name, model, _), value in samples(base_url).items()
            if (name, model) == ("vllm:prefix_cache_hits_total", "wide")]  # fmt: skip
    assert len(hits) == 2
    assert min(hits) == 0
    assert max(hits) > 7 * 100


@pytest.mark.slow
def test_ray_exports_the_metrics_too(base_url: str) -> None:
    complete(base_url, "wide")
    (node,) = ray.nodes()
    url = f"http://127.0.0.1:{node['MetricsExportPort']}/metrics"

    def exported() -> bool:
        text = httpx.get(url, timeout=30).text
        names = ("num_requests_running", "kv_cache_usage_perc", "time_to_first_token_seconds_bucket")
        return all(f"ray_vllm_{name}" in text for name in names)

    wait_until(exported, 60)


@pytest.mark.slow
def test_an_update_while_requests_run_loses_none(base_url: str, settings: dict[str, Any]) -> None:
    """Every engine and the ingress are replaced; streams that were begun end well, others are answered all the time."""
    done = threading.Event()
    stream = complete(base_url, "wide", stream=True, max_tokens=4000, extra_body={"ignore_eos": True})
    next(stream)

    async def one(client: openai.AsyncOpenAI) -> int:
        n = 0
        while not done.is_set():
            events = await client.completions.create(model="wide", prompt="dog", max_tokens=20, stream=True,
                                                     extra_body={"ignore_eos": True})  # fmt: skip
            assert [event.choices[0].finish_reason async for event in events][-1] == "length"
            n += 1
        return n

    async def crowd() -> list[int]:
        async with openai.AsyncOpenAI(base_url=f"{base_url}/v1", api_key="none", max_retries=0) as client:
            return list(await asyncio.gather(*(one(client) for _ in range(3))))

    before = {engine for name, model, engine in samples(base_url) if model == "wide"}
    answered: list[int] = []
    crowding = threading.Thread(target=lambda: answered.extend(asyncio.run(crowd())))
    crowding.start()
    changed = {**settings, "models": [{**settings["models"][0], "max_waiting": 31}, settings["models"][1]]}
    serve.run(app(changed))
    reasons = [event.choices[0].finish_reason for event in stream]
    done.set()
    crowding.join()
    assert reasons[-1] == "length"
    assert len(answered) == 3
    assert min(answered) >= 1
    assert not before & {engine for name, model, engine in samples(base_url) if model == "wide"}


def test_beginnings_have_names() -> None:
    tokens = list(range(3 * BLOCK + 5))
    names = prefix_of(tokens)
    assert len(names) == 3
    assert prefix_of(tokens[: 2 * BLOCK]) == names[:2]
    assert prefix_of([*tokens[:BLOCK], *tokens[: 2 * BLOCK]])[1] != names[1]
    assert not set(names) & set(prefix_of(tokens, salt="mine"))
    assert prefix_of(tokens[: BLOCK - 1]) == ()


def test_the_longest_beginning_decides_unless_its_reader_is_busy() -> None:
    affinity = Affinity(max_known=5)
    affinity.read(("a", "ab"), "one")
    affinity.read(("a", "ac"), "two")
    assert affinity.best(("a", "ab", "abc"), {"one": 0, "two": 0}) == "one"
    assert affinity.best(("a", "ad"), {"one": 0, "two": 0}) == "two"
    assert affinity.best(("a", "ab"), {"one": IMBALANCE + 1, "two": 0}) is None
    assert affinity.best(("a", "ab"), {"two": 0}) == "two"
    assert affinity.best((), {"one": 0}) is None
    affinity.read(tuple("vwxyz"), "three")
    assert affinity.best(("a", "ab"), {"one": 0, "two": 0}) is None


def test_streams_that_are_shared_are_no_requests() -> None:
    """Ray counts a channel as one: eight answers and their channel are no reason for a second engine of eight places."""
    context = SimpleNamespace(
        config=SimpleNamespace(target_ongoing_requests=8),
        total_num_requests=9,
        running_replicas=["a"],
        aggregated_metrics={"num_channels": {"a": 1.0}},
    )
    assert engines(context)[0] == 1  # type: ignore[arg-type]
    context.aggregated_metrics = {}
    assert engines(context)[0] == 2  # type: ignore[arg-type]


def test_engines_are_wanted_by_queue_and_by_cache() -> None:
    assert wanted_replicas(0, 8, 1, [0.0], 0) == 0
    assert wanted_replicas(17, 8, 1, [0.2], 0) == 3
    assert wanted_replicas(4, 8, 2, [0.95, 0.99], 3) == 3
    assert wanted_replicas(4, 8, 2, [0.95, 0.1], 3) == 1
    assert wanted_replicas(4, 8, 2, [0.95, 0.99], 0) == 1
