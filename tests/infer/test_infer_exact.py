"""Greedy answers, token by token, against `transformers.generate` and against our decoder without a cache."""

import dataclasses
import os
import random
import subprocess
import sys
from pathlib import Path

import llvmlite.binding
import pytest
import torch
from infer_helpers import (
    ALL,
    CONFIG,
    MODELS,
    MPT,
    PROMPTS,
    Letters,
    V,
    answer_all,
    decoder,
    drain,
    idle,
    their_answers,
    tokens_of,
    uncached,
)

from kernels.linear_digits import has_byte_products
from moxin.infer.engine import FEW, Engine
from moxin.infer.generate import generate
from moxin.infer.load import converted
from moxin.infer.model import InferenceModel
from moxin.infer.request import Request
from moxin.infer.sampling import SamplingParams
from moxin.model.decoder import Decoder

GREEDY = SamplingParams(max_tokens=20)


@pytest.mark.parametrize("chunk", [17, 256])
@pytest.mark.parametrize("name", ALL)
def test_greedy_is_uncached_and_transformers_to_the_token(name: str, chunk: int) -> None:
    """Ragged prompts in a batch smaller than their number, over the window's border, prompts read in chunks."""
    model = decoder(ALL[name])
    completions = generate(model, Letters(), PROMPTS, GREEDY, max_batch=4, prefill_chunk=chunk)
    assert len({tuple(completion.tokens) for completion in completions}) == len(PROMPTS)
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        assert completion.tokens == uncached(model, prompt, 20)
        assert completion.finish_reason == "length"
        assert completion.text == Letters().decode(completion.tokens)
    if name in MODELS:
        assert [completion.tokens for completion in completions] == their_answers(model, PROMPTS, 20)


@pytest.mark.parametrize("name", ["mistral, window", "mpt"])
def test_sixty_four_at_once(name: str) -> None:
    draw = random.Random(1)
    model = decoder(MODELS[name])
    prompts = [[draw.randrange(V) for _ in range(draw.randint(1, 60))] for _ in range(64)]
    engine = Engine(model, max_batch=64)
    assert answer_all(engine, prompts, SamplingParams(max_tokens=12)) == their_answers(model, prompts, 12)
    assert idle(engine)


@pytest.mark.parametrize("name", ["mistral", "mpt", "windows by layer, one full"])
def test_pre_emption_changes_no_token(name: str) -> None:
    """Pages for hardly more than one sequence at its longest: the others are thrown out and computed again."""
    model = decoder(ALL[name])
    prompts = [[(3 * i + k) % V for i in range(10 + 5 * k)] for k in range(6)]
    engine = Engine(model, max_batch=6, max_len=80, cache_tokens=112, prefill_chunk=17)
    answers = answer_all(engine, prompts, SamplingParams(max_tokens=30))
    assert engine.stats.num_preemptions > 0
    for prompt, answer in zip(prompts, answers, strict=True):
        assert answer == uncached(model, prompt, 30)
    assert idle(engine)


@pytest.mark.parametrize("name", ["mistral", "mistral, window", "mpt", "windows by layer, one full"])
def test_a_prefix_that_is_remembered_changes_no_token(name: str) -> None:
    model = decoder(ALL[name])
    shared = [(5 * i) % V for i in range(50)]
    prompts = [[*shared, 1, 2], [*shared, 3], shared, shared[:33], [*shared[:20], *shared]]
    engine = Engine(model, max_batch=8)
    params = SamplingParams(max_tokens=10)
    for prompt in [*prompts, *prompts]:
        assert answer_all(engine, [prompt], params) == [uncached(model, prompt, 10)]
    stats = engine.stats
    assert stats.prefix_cache_hits == 48 + 48 + 32 + 16 + 48 + 48 + 48 + 32 + 64
    assert stats.prefix_cache_hits < stats.prefix_cache_queries
    assert idle(engine)
    turn = [
        *prompts[0],
        *uncached(model, prompts[0], 10),
        7,
        8,
        9,
    ]  # a second turn, after the first one's answer
    assert answer_all(engine, [turn], params) == [uncached(model, turn, 10)]
    assert engine.stats.prefix_cache_hits == stats.prefix_cache_hits + 48
    engine.add(Request("other", prompts[0], params, salt="another tenant"))
    assert tokens_of(drain(engine)["other", 0]) == uncached(model, prompts[0], 10)
    assert engine.stats.prefix_cache_hits == stats.prefix_cache_hits + 48


def test_alibi_far_beyond_the_trained_length() -> None:
    model = decoder(dataclasses.replace(MPT, max_seq_len=16))
    prompt = [(11 * i) % V for i in range(70)]
    answers = answer_all(Engine(model, max_batch=1, max_len=120), [prompt], SamplingParams(max_tokens=40))
    model.config = dataclasses.replace(
        MPT, max_seq_len=128
    )  # transformers makes its biases for no more than max_seq_len tokens; they do not depend on it
    assert answers == their_answers(model, [prompt], 40) == [uncached(model, prompt, 40)]


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("name", ["mistral, window", "mpt"])
def test_quantised_is_its_dequantised_self(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same integers as float32 numbers in transformers give the same tokens."""
    monkeypatch.setenv("MOXIN_MATMUL_DTYPE", "float32")
    small = decoder(dataclasses.replace(MODELS[name], d_model=96, d_ff=384 if name == "mpt" else 96))
    quantised = converted(InferenceModel.of(small), kind)
    reference = _dequantised(small, quantised)
    answers = answer_all(Engine(quantised, max_batch=4), PROMPTS, SamplingParams(max_tokens=16))
    assert answers == their_answers(reference, PROMPTS, 16)
    if kind == "int8":
        close = torch.nn.functional.cosine_similarity(small.head.weight, reference.head.weight, dim=1)
        assert close.min() > 0.999


def _dequantised(model: Decoder, quantised: InferenceModel) -> Decoder:
    other = Decoder(model.config)
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        other.embedding.weight.copy_(quantised.embedding.dequantised(torch.float32))
        other.head.weight.copy_(quantised.head.dequantised(torch.float32))
        for block, layer in zip(other.blocks, quantised.layers, strict=True):
            block.attention.qkv.weight.copy_(layer.qkv.dequantised(torch.float32))
            block.attention.out.weight.copy_(layer.out.dequantised(torch.float32))
            block.mlp.up.weight.copy_(layer.up.dequantised(torch.float32))
            block.mlp.down.weight.copy_(layer.down.dequantised(torch.float32))
    return other.eval()


IN_DIGITS = dataclasses.replace(CONFIG, d_model=64, n_heads=4, n_kv_heads=2, d_ff=192)
"""Its int8 products are of integers."""
STACKED = {
    "windows by layer": dataclasses.replace(
        IN_DIGITS, n_layers=3, sliding_window=None, layer_windows=(24, 0, 24)
    ),
    "mpt, clipped": dataclasses.replace(MPT, d_model=64, n_heads=4, n_kv_heads=4, d_ff=256, clip_qkv=0.5),
    "learned positions": dataclasses.replace(IN_DIGITS, position="learned"),
}


@pytest.mark.parametrize(
    ("kind", "cache"),
    [
        ("float32", "float32"),
        ("bfloat16", "bfloat16"),
        ("float16", "float32"),
        ("int8", "int8"),
        ("int4", "float32"),
    ],
)
@pytest.mark.parametrize("name", list(STACKED))
def test_all_layers_as_one_call_are_the_layers_one_by_one(name: str, kind: str, cache: str) -> None:
    """Tokens and log-probabilities of six answers, prompts read in parts, against the same engine without the stack."""
    model = InferenceModel.of(decoder(STACKED[name]))
    model = model if kind == "float32" else converted(model, kind)
    found = []
    for stacked in (True, False):
        engine = Engine(model, max_batch=6, max_len=90, cache_dtype=cache, prefill_chunk=FEW + 1)
        assert engine.stack is not None
        if not stacked:
            engine.stack = None
        for number in range(6):
            prompt = [(7 * number + 13 * i) % V for i in range(3 + 8 * number)]
            engine.add(Request(str(number), prompt, SamplingParams(max_tokens=30, logprobs=1)))
        found.append(drain(engine))
    one_call, one_by_one = found
    for key, events in one_by_one.items():
        assert tokens_of(one_call[key]) == tokens_of(events)
        theirs = [event.logprobs.logprob for event in events if event.logprobs]
        ours = [event.logprobs.logprob for event in one_call[key] if event.logprobs]
        assert ours == pytest.approx(theirs, abs=1e-4 if cache == "float32" else 0.05)


def test_a_stack_sees_weights_that_change() -> None:
    """The model's own parameters, norms in 16 bits too: what a training step leaves is what the next token is made with."""
    small = decoder(IN_DIGITS).bfloat16()
    engine = Engine(small, max_batch=2, max_len=64, prefix_caching=False)
    assert engine.stack is not None
    before = answer_all(engine, PROMPTS[:2], SamplingParams(max_tokens=8))
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.mul_(-1 if parameter.ndim == 1 else 1)
    after = answer_all(engine, PROMPTS[:2], SamplingParams(max_tokens=8))
    assert before != after
    assert after == answer_all(
        Engine(small, max_batch=2, max_len=64), PROMPTS[:2], SamplingParams(max_tokens=8)
    )


@pytest.mark.slow
@pytest.mark.parametrize("without", ["everything", "amx"])
def test_a_cpu_with_fewer_instructions_gives_the_same_answers(without: str) -> None:
    """In a process whose kernels are compiled for another CPU: nothing that it has not is emitted, tokens are the same."""
    script = (
        "import infer_helpers as h, test_infer_exact as t\n"
        "engine = t.Engine(t.converted(t.InferenceModel.of(h.decoder(t.IN_DIGITS)), 'int8'), max_batch=8)\n"
        "print(engine.stack.in_digits, h.answer_all(engine, h.PROMPTS, t.SamplingParams(max_tokens=12)))"
    )
    features = llvmlite.binding.get_host_cpu_features()
    if without == "amx" and not (features.get("amx-int8") and has_byte_products()):
        pytest.skip("this CPU has no matrix units for bytes")
    named = ",".join(f"{'+' if on and 'amx' not in name else '-'}{name}" for name, on in features.items())
    environment = {"NUMBA_CPU_NAME": "generic"} if without == "everything" else {"NUMBA_CPU_FEATURES": named}
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parent.parent), *sys.path])
    command = [sys.executable, "-c", script]
    found = subprocess.run(
        command, env={**os.environ, **environment, "PYTHONPATH": paths}, capture_output=True, text=True
    )
    model = converted(InferenceModel.of(decoder(IN_DIGITS)), "int8")
    answers = answer_all(Engine(model, max_batch=8), PROMPTS, SamplingParams(max_tokens=12))
    assert found.stdout.strip() == f"{without == 'amx'} {answers}", found.stderr


def test_a_stack_gives_way_to_named_back_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    model = InferenceModel.of(decoder(IN_DIGITS))
    monkeypatch.setenv("MOXIN_NORM", "reference")
    assert Engine(model, max_batch=2).stack is None


def test_an_8_bit_cache_is_close() -> None:
    """Log-probabilities of a long prompt through int8 pages, read in chunks, against those through float32 ones."""
    model = InferenceModel.of(Decoder(MODELS["mistral"]))
    params = SamplingParams(max_tokens=1, prompt_logprobs=0)
    found = []
    for dtype in ("float32", "int8"):
        engine = Engine(model, max_batch=1, cache_dtype=dtype, prefill_chunk=17)
        engine.add(Request("a", [(7 * i) % V for i in range(80)], params))
        prompt = drain(engine)["a", 0][0].prompt_logprobs
        found.append(torch.tensor([at.logprob for at in prompt[1:]]))
    difference = (found[0] - found[1]).abs().max()
    assert 0 < difference < 1e-3


@pytest.mark.parametrize("speculate", [1, 5])
@pytest.mark.parametrize("name", ["mistral, window", "mpt", "windows by layer, one full"])
def test_guessing_ahead_changes_no_token(name: str, speculate: int) -> None:
    model = decoder(ALL[name])
    prompts = [[1, 2, 3, 4] * 8, [5, 6, 7] * 5, [(7 * i) % V for i in range(30)]]
    for params in (
        SamplingParams(max_tokens=40),
        SamplingParams(max_tokens=40, temperature=0.3, seed=4, top_p=0.9, repetition_penalty=0.9),
    ):
        plain = answer_all(Engine(model, max_batch=3), prompts, params)
        engine = Engine(model, max_batch=3, speculate=speculate)
        assert answer_all(engine, prompts, params) == plain
        assert engine.stats.spec_decode_num_draft_tokens > 0
        assert idle(engine)
    looping = Engine(_constant(model), max_batch=1, speculate=speculate)
    looping.add(Request("a", [1, 2, 3], SamplingParams(max_tokens=40)))
    steps = 0
    while looping.has_work:
        looping.step()
        steps += 1
    assert looping.stats.generation_tokens == 40
    assert steps < (25 if speculate == 1 else 13)


def _constant(model: Decoder) -> Decoder:
    """The same token for ever: every guess is right."""
    other = Decoder(dataclasses.replace(model.config, tie_embeddings=False))
    with torch.no_grad():
        other.head.weight.zero_()
    return other.eval()


@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_an_answer_has_the_same_bits_in_any_company(kind: str) -> None:
    """Log-probabilities of a request alone and among others, through sums of one order, or exact ones."""
    model = InferenceModel.of(decoder(CONFIG if kind == "float32" else IN_DIGITS))
    model = model if kind == "float32" else converted(model, kind)
    params = SamplingParams(max_tokens=12, logprobs=3, temperature=1.0, seed=1)

    def run(n_others: int) -> list[object]:
        engine = Engine(model, max_batch=8, max_len=64)
        for k in range(n_others):
            engine.add(
                Request(f"other {k}", [k + 1] * (5 + k), SamplingParams(max_tokens=20, temperature=1.0))
            )
        engine.add(Request("a", [(7 * i) % V for i in range(12)], params))
        return [event.logprobs for event in drain(engine)["a", 0]]

    assert run(0) == run(3) == run(7)
