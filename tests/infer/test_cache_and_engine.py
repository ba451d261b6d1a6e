"""Cached generation against uncached and against `transformers.generate`; continuous batching."""

import dataclasses

import pytest
import torch
from small import as_transformers

from moxin.infer import engine as engine_module
from moxin.infer.cache import RollingCache
from moxin.infer.engine import Engine, Event, Request
from moxin.infer.generate import generate
from moxin.infer.sampling import SamplingParams
from moxin.model.decoder import Decoder
from moxin.recipe import ModelConfig

V = 97
CONFIG = ModelConfig(
    n_layers=2, d_model=48, n_heads=6, n_kv_heads=2, d_ff=80, vocab_size=V, max_seq_len=96, sliding_window=8
)
MPT = dataclasses.replace(
    CONFIG,
    n_kv_heads=6,
    d_ff=192,
    sliding_window=None,
    norm="layer",
    activation="gelu",
    position="alibi",
    tie_embeddings=True,
)
MODELS = {
    "mistral": dataclasses.replace(CONFIG, sliding_window=None),
    "mistral, window": CONFIG,
    "mpt": MPT,
    "mpt, clipped": dataclasses.replace(MPT, clip_qkv=1.0),
}
OURS = {
    "windows by layer": dataclasses.replace(CONFIG, sliding_window=None, layer_windows=(3, 8)),
    "windows by layer, one full": dataclasses.replace(
        CONFIG, n_layers=3, sliding_window=None, layer_windows=(4, 0)
    ),
    "alibi, window, grouped": dataclasses.replace(MPT, n_kv_heads=2, sliding_window=8),
    "qk_norm": dataclasses.replace(CONFIG, qk_norm=True),
    "learned positions": dataclasses.replace(CONFIG, position="learned"),
    "no positions": dataclasses.replace(CONFIG, position="none"),
}
"""What transformers has no class for."""
PROMPTS = [[5], [1, 2, 3], list(range(7)), list(range(8)), list(range(9)), [(7 * i) % V for i in range(40)]]
"""Shorter than the window of 8, at its border, and much longer."""


class Letters:
    """A tokenizer of one printable character per id."""

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(32 + token) for token in ids)


def decoder(config: ModelConfig = CONFIG) -> Decoder:
    model = Decoder(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter *= 8  # spreads the logits: greedy choices are clear, yet differ from token to token
    return model


@torch.no_grad()
def uncached(model: Decoder, prompt: list[int], n: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(n):
        tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    return tokens[len(prompt) :]


def answers(model: Decoder, requests: list[Request], max_batch: int = 4) -> dict[str, list[int]]:
    engine = Engine(model, max_batch=max_batch, decode=Letters().decode)
    for request in requests:
        engine.add(request)
    found: dict[str, list[int]] = {request.id: [] for request in requests}
    while engine.has_work:
        for event in engine.step():
            if event.token is not None:
                found[event.id].append(event.token)
    return found


@pytest.mark.parametrize("chunk", [3, 256])
@pytest.mark.parametrize("name", [*MODELS, *OURS])
def test_greedy_is_uncached_and_transformers_to_the_token(
    name: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ragged prompts in a batch smaller than their number, over the window's border, prompts read in chunks."""
    monkeypatch.setattr(engine_module, "PREFILL_CHUNK", chunk)
    model = decoder({**MODELS, **OURS}[name])
    completions = generate(model, Letters(), PROMPTS, SamplingParams(max_tokens=20), max_batch=4)
    assert len({tuple(completion.tokens) for completion in completions}) == len(PROMPTS)
    theirs = as_transformers(model) if name in MODELS else None
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        assert completion.tokens == uncached(model, prompt, 20)
        assert completion.finish_reason == "length"
        assert completion.text == Letters().decode(completion.tokens)
        if theirs is not None:
            ids = torch.tensor([prompt])
            options = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
            hf = theirs.generate(ids, attention_mask=torch.ones_like(ids), **options)
            assert completion.tokens == hf[0, len(prompt) :].tolist()


@pytest.mark.parametrize(
    ("config", "size"),
    [
        (CONFIG, 8),
        (MPT, 96),
        (OURS["windows by layer"], 8),
        (OURS["windows by layer, one full"], 96),
        (OURS["alibi, window, grouped"], 8),
    ],
)
def test_the_cache_is_as_long_as_the_widest_window(config: ModelConfig, size: int) -> None:
    cache = RollingCache(config, 3, 96)
    assert cache.k.shape == (config.n_layers, 3, 1 + size, config.n_kv_heads, 8)


@pytest.mark.parametrize("sizes", [(40,), (1,) * 40, (5, 20, 1, 14), (8, 8, 9, 15), (7, 1, 32)])
@pytest.mark.parametrize("name", ["mistral, window", "mpt", "windows by layer", "alibi, window, grouped"])
def test_logits_do_not_depend_on_how_the_prompt_is_cut(name: str, sizes: tuple[int, ...]) -> None:
    model = decoder({**MODELS, **OURS}[name])
    tokens = torch.tensor([PROMPTS[-1], PROMPTS[-1][::-1]])
    cache = RollingCache(model.config, 3, 96)
    parts, start = [], 0
    with torch.no_grad():
        for size in sizes:
            positions = torch.arange(start, start + size).expand(2, size)
            part = tokens[:, start : start + size]
            parts.append(model(part, cache=cache.rows([2, 0]), positions_BT=positions))
            start += size
        torch.testing.assert_close(torch.cat(parts, 1), model(tokens), rtol=1e-4, atol=1e-4)


def test_a_request_does_not_notice_its_company() -> None:
    model = decoder()
    requests = [
        Request(str(i), prompt, SamplingParams(max_tokens=10 + 3 * i, temperature=1.5, top_p=0.9, seed=i))
        for i, prompt in enumerate(PROMPTS)
    ]
    requests += [Request("greedy", PROMPTS[2], SamplingParams(max_tokens=25))]
    requests += [
        Request("top-k", PROMPTS[2], SamplingParams(max_tokens=25, temperature=2.0, top_k=5, seed=3))
    ]
    alone = {request.id: answers(model, [request])[request.id] for request in requests}
    for order, batch in ((requests, 8), (requests[::-1], 3)):
        assert answers(model, order, batch) == alone


def test_requests_join_and_leave_while_others_run() -> None:
    model = decoder()
    engine = Engine(model, max_batch=2)
    engine.add(Request("long", PROMPTS[1], SamplingParams(max_tokens=30)))
    seen: dict[str, list[Event]] = {"long": [], "short": [], "queued": [], "late": []}

    def step() -> None:
        for event in engine.step():
            seen[event.id].append(event)

    step()
    step()
    engine.add(Request("short", PROMPTS[2], SamplingParams(max_tokens=40)))
    engine.add(Request("queued", PROMPTS[3], SamplingParams(max_tokens=40)))
    step()
    step()
    assert [len(seen[name]) for name in ("long", "short", "queued")] == [4, 2, 0]
    assert engine.cancel("queued")
    assert engine.cancel("short")
    assert not engine.cancel("short")
    engine.add(Request("late", PROMPTS[-1], SamplingParams(max_tokens=12)))
    while engine.has_work:
        step()
    # The late one took the row of the cancelled one and saw nothing of it.
    assert [event.token for event in seen["late"]] == uncached(model, PROMPTS[-1], 12)
    assert [event.token for event in seen["long"]] == uncached(model, PROMPTS[1], 30)
    assert len(seen["short"]) == 2
    assert not seen["queued"]
    assert [event.finished for event in seen["late"]] == [None] * 11 + ["length"]
    assert sorted(engine.free_rows) == [0, 1]


def test_stop_ids_stop_strings_and_the_end_of_the_context() -> None:
    model = decoder()
    tokens = uncached(model, PROMPTS[2], 12)
    plain = Letters().decode(tokens)
    first = next(i for i, token in enumerate(tokens) if token not in tokens[:i] and i >= 3)
    stop = SamplingParams(max_tokens=12, stop_ids=(tokens[first],))
    [by_id] = generate(model, Letters(), [PROMPTS[2]], stop)
    assert (by_id.tokens, by_id.finish_reason) == (tokens[:first], "stop")
    across = plain[first - 1 : first + 1]  # begins in one token and ends in the next
    [by_text] = generate(model, Letters(), [PROMPTS[2]], SamplingParams(max_tokens=12, stop=("~~", across)))
    assert by_text.text == plain[: plain.index(across)]
    assert by_text.finish_reason == "stop"
    assert by_text.tokens == tokens[: plain.index(across) + 2]
    [to_the_end] = generate(model, Letters(), [PROMPTS[-1]], SamplingParams(max_tokens=1000))
    assert len(to_the_end.tokens) == 96 - 40
    assert to_the_end.finish_reason == "length"


def test_what_cannot_be_answered_is_refused() -> None:
    with pytest.raises(ValueError, match=r"max_len = 97 exceeds model\.max_seq_len = 96: learned"):
        Engine(decoder(OURS["learned positions"]), max_len=97)
    Engine(decoder(), max_len=200)
    engine = Engine(decoder(), max_batch=1)
    for tokens, params, message in [
        ([], SamplingParams(), "the prompt has 0 tokens"),
        ([1] * 96, SamplingParams(), "the prompt has 96 tokens"),
        ([1, V], SamplingParams(), "prompt token 97 is outside the vocabulary of 97"),
        ([-1], SamplingParams(), "prompt token -1"),
        ([1], SamplingParams(stop=("x",)), "stop strings need text"),
        ([1], SamplingParams(temperature=float("nan")), "temperature = nan"),
        ([1], SamplingParams(top_p=0.0), r"top_p = 0\.0"),
        ([1], SamplingParams(top_k=-1), "top_k = -1"),
        ([1], SamplingParams(max_tokens=0), "max_tokens = 0"),
        ([1], SamplingParams(stop=("",)), "empty string"),
    ]:
        with pytest.raises(ValueError, match=message):
            engine.add(Request("a", tokens, params))
    assert not engine.has_work
    engine.add(Request("a", [1]))
    with pytest.raises(ValueError, match="'a' is in use"):
        engine.add(Request("a", [1]))
