"""The engine's manners: joining and leaving, cancelling, ends of answers, several answers, what it refuses and counts."""

import math
import random

import pytest
import torch
from infer_helpers import (
    CONFIG,
    OURS,
    PROMPTS,
    Letters,
    V,
    answer_all,
    decoder,
    drain,
    idle,
    tokens_of,
    uncached,
)

from moxin.infer.engine import Engine
from moxin.infer.generate import generate
from moxin.infer.request import Event, Request
from moxin.infer.sampling import SamplingParams

MODEL = decoder()


def test_a_request_does_not_notice_its_company() -> None:
    params = [
        SamplingParams(max_tokens=10 + 3 * i, temperature=1.5, top_p=0.9, seed=i) for i in range(len(PROMPTS))
    ]
    requests = [Request(str(i), prompt, params[i]) for i, prompt in enumerate(PROMPTS)]
    requests.append(Request("greedy", PROMPTS[2], SamplingParams(max_tokens=25)))
    requests.append(Request("k", PROMPTS[2], SamplingParams(max_tokens=25, temperature=2.0, top_k=5, seed=3)))
    penalised = SamplingParams(max_tokens=25, temperature=1.0, frequency_penalty=0.5, min_p=0.01, seed=9, n=3)
    requests.append(Request("n", PROMPTS[3], penalised))

    def answers(requests: list[Request], max_batch: int) -> dict[tuple[str, int], list[int]]:
        engine = Engine(MODEL, max_batch=max_batch)
        for request in requests:
            engine.add(request)
        return {key: tokens_of(events) for key, events in drain(engine).items()}

    alone = {key: tokens for request in requests for key, tokens in answers([request], 4).items()}
    assert len({tuple(alone["n", index]) for index in range(3)}) == 3
    for order, batch in ((requests, 12), (requests[::-1], 3)):
        assert answers(order, batch) == alone


def test_requests_join_and_leave_while_others_run() -> None:
    engine = Engine(MODEL, max_batch=2)
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
    assert (engine.stats.num_requests_running, engine.stats.num_requests_waiting) == (2, 1)
    assert engine.cancel("queued")
    assert engine.cancel("short")
    assert not engine.cancel("short")
    engine.add(Request("late", PROMPTS[-1], SamplingParams(max_tokens=12)))
    while engine.has_work:
        step()
    # The late one took the row of the cancelled one and saw nothing of it.
    assert tokens_of(seen["late"]) == uncached(MODEL, PROMPTS[-1], 12)
    assert tokens_of(seen["long"]) == uncached(MODEL, PROMPTS[1], 30)
    assert len(seen["short"]) == 2
    assert not seen["queued"]
    assert [event.finished for event in seen["late"]] == [None] * 11 + ["length"]
    stats = engine.stats
    assert (stats.request_success_length, stats.requests_cancelled) == (2, 2)
    assert stats.prompt_tokens == 3 + 7 + 40
    assert idle(engine)


def test_cancelling_frees_pages_at_once() -> None:
    engine = Engine(MODEL, max_batch=4, prefix_caching=False)
    for i in range(6):
        engine.add(Request(str(i), PROMPTS[-1], SamplingParams(max_tokens=50, n=2)))
    for _ in range(3):
        engine.step()
    assert engine.stats.kv_cache_usage_perc > 0
    for i in range(6):
        assert engine.cancel(str(i))
        assert not engine.cancel(str(i))
    assert idle(engine)
    assert not engine.has_work
    assert engine.step() == []


@pytest.mark.parametrize("seed", range(4))
def test_a_storm_leaves_nothing_behind(seed: int) -> None:
    """Requests and cancellations at random in a cache that is too small: whoever ends has the right tokens."""
    draw = random.Random(seed)
    model = decoder(OURS["windows by layer, one full"])
    engine = Engine(
        model, max_batch=5, max_len=80, cache_tokens=128, prefill_chunk=17, speculate=seed % 2 * 3
    )
    prompts: dict[str, list[int]] = {}
    done: dict[str, list[int]] = {}
    ended = 0
    for number in range(40):
        if draw.random() < 0.6:
            start = draw.randrange(3)
            prompts[str(number)] = [(start + i) % V for i in range(draw.randint(1, 60))]
            engine.add(
                Request(str(number), prompts[str(number)], SamplingParams(max_tokens=draw.randint(1, 19)))
            )
        if draw.random() < 0.2 and prompts:
            engine.cancel(draw.choice(list(prompts)))
        for event in engine.step():
            done.setdefault(event.id, []).append(event.token)
            if event.finished:
                ended += 1
                assert done[event.id] == uncached(model, prompts[event.id], len(done[event.id]))
    drain(engine)
    assert ended > 5
    assert idle(engine)


def test_stop_ids_stop_strings_and_the_end_of_the_context() -> None:
    tokens = uncached(MODEL, PROMPTS[2], 12)
    plain = Letters().decode(tokens)
    first = next(i for i, token in enumerate(tokens) if token not in tokens[:i] and i >= 3)
    stop = SamplingParams(max_tokens=12, stop_ids=(tokens[first],))
    [by_id] = generate(MODEL, Letters(), [PROMPTS[2]], stop)
    assert (by_id.tokens, by_id.finish_reason) == (tokens[:first], "stop")
    across = plain[first - 1 : first + 1]  # begins in one token and ends in the next
    [by_text] = generate(MODEL, Letters(), [PROMPTS[2]], SamplingParams(max_tokens=12, stop=("~~", across)))
    assert by_text.text == plain[: plain.index(across)]
    assert by_text.finish_reason == "stop"
    assert by_text.tokens == tokens[: plain.index(across) + 2]
    kept = SamplingParams(max_tokens=12, stop=(across,), include_stop=True)
    [with_stop] = generate(MODEL, Letters(), [PROMPTS[2]], kept)
    assert with_stop.text == by_text.text + across
    [to_the_end] = generate(MODEL, Letters(), [PROMPTS[-1]], SamplingParams(max_tokens=1000))
    assert len(to_the_end.tokens) == 96 - 40
    assert to_the_end.finish_reason == "length"


def test_eos_min_tokens_and_the_reason_of_a_stop() -> None:
    tokens = uncached(MODEL, PROMPTS[2], 12)
    at = next(i for i, token in enumerate(tokens) if token not in tokens[:i] and i >= 2)
    eos, text = tokens[at], Letters().decode(tokens)

    def run(**options: object) -> list[Event]:
        engine = Engine(MODEL, decode=Letters().decode, eos_ids=(eos,))
        engine.add(Request("a", PROMPTS[2], SamplingParams(max_tokens=12, **options)))
        return drain(engine)["a", 0]

    plain = run()
    assert (tokens_of(plain), plain[-1].token, plain[-1].stop_reason) == (tokens[:at], None, eos)
    assert tokens_of(run(ignore_eos=True)) == tokens
    later = tokens_of(run(min_tokens=at + 3))
    assert len(later) >= at + 3
    assert eos not in later[: at + 3]
    assert later[:at] == tokens[:at]
    early = run(ignore_eos=True, stop=(text[at],))
    assert (early[-1].finished, early[-1].stop_reason) == ("stop", text[at])
    assert tokens_of(early) == tokens[: at + 1]
    late = run(ignore_eos=True, stop=(text[at],), min_tokens=at + 2)
    assert len(tokens_of(late)) >= at + 2
    assert "".join(event.text for event in late).startswith(text[: at + 1])


def test_text_comes_with_the_tokens() -> None:
    engine = Engine(MODEL, decode=Letters().decode)
    engine.add(Request("a", PROMPTS[1], SamplingParams(max_tokens=9)))
    events = drain(engine)["a", 0]
    assert [event.text for event in events] == [chr(32 + event.token) for event in events]


def test_log_probabilities_of_answer_and_prompt() -> None:
    prompt = PROMPTS[-1]
    params = SamplingParams(
        max_tokens=5, logprobs=3, prompt_logprobs=2, temperature=2.0, seed=3, logit_bias={4: 3.0}
    )
    engine = Engine(MODEL, prefill_chunk=17)
    for id in ("a", "b"):  # the second would find the pages of the first, yet must read the prompt
        engine.add(Request(id, prompt, params))
        events = drain(engine)[id, 0]
        tokens = [*prompt, *tokens_of(events)]
        with torch.no_grad():
            expected = MODEL(torch.tensor([tokens]))[0].log_softmax(-1)
        assert [event.prompt_logprobs is not None for event in events] == [True] + [False] * 4
        said = [*(events[0].prompt_logprobs or ()), *(event.logprobs for event in events)]
        assert said[0] is None
        assert len(said) == len(tokens)
        for at, logprobs in enumerate(said[1:], 1):
            row = expected[at - 1]
            assert logprobs.token == tokens[at]
            assert logprobs.logprob == pytest.approx(float(row[tokens[at]]), abs=1e-3)
            assert logprobs.rank == int((row > row[tokens[at]]).sum()) + 1
            n = 2 if at < len(prompt) else 3
            assert [token for token, _ in logprobs.top] == row.topk(n).indices.tolist()


def test_a_prompt_that_leaves_one_token_to_a_chunk_is_reported_beside_guesses() -> None:
    prompt = [1, 2, 3] * 6
    params = SamplingParams(max_tokens=8, prompt_logprobs=0)
    found = []
    for settings in ({"speculate": 4, "prefill_chunk": 17}, {}):
        engine = Engine(MODEL, **settings)
        engine.add(Request("a", prompt, params))
        events = drain(engine)["a", 0]
        logprobs = [round(at.logprob, 3) for at in (events[0].prompt_logprobs or ())[1:]]
        found.append((tokens_of(events), logprobs))
    assert found[0] == found[1]
    assert len(found[0][1]) == 17


def test_several_answers_share_their_prompt() -> None:
    prompt = PROMPTS[-1]
    engine = Engine(MODEL, max_batch=5)
    engine.add(Request("a", prompt, SamplingParams(max_tokens=12, n=4, temperature=1.0, seed=1)))
    assert (engine.stats.num_requests_running, engine.stats.num_requests_waiting) == (0, 4)
    found = drain(engine)
    assert sorted(index for _, index in found) == [0, 1, 2, 3]
    assert len({tuple(tokens_of(events)) for events in found.values()}) == 4
    assert engine.stats.prefix_cache_hits == 3 * 32
    assert idle(engine)
    engine.add(Request("greedy", prompt, SamplingParams(max_tokens=6, n=2)))
    found = drain(engine)
    assert tokens_of(found["greedy", 0]) == tokens_of(found["greedy", 1]) == uncached(MODEL, prompt, 6)


def test_what_cannot_be_answered_is_refused_and_harms_nothing() -> None:
    engine = Engine(MODEL, max_batch=1)
    nan = float("nan")
    for tokens, options, message in [
        ([], {}, "the prompt has 0 tokens"),
        ([1] * 96, {}, "the prompt has 96 tokens"),
        ([1, V], {}, "prompt token 97 is outside the vocabulary of 97"),
        ([-1], {}, "prompt token -1"),
        ([1], {"stop": ("x",)}, "stop strings need text"),
        ([1], {"temperature": nan}, "temperature = nan"),
        ([1], {"temperature": -1.0}, r"temperature = -1\.0"),
        ([1], {"top_p": 0.0}, r"top_p = 0\.0"),
        ([1], {"min_p": 1.5}, r"min_p = 1\.5"),
        ([1], {"top_k": -1}, "top_k = -1"),
        ([1], {"max_tokens": 0}, "max_tokens = 0"),
        ([1], {"stop": ("",)}, "empty string"),
        ([1], {"n": 10**9}, "n = 1000000000: a whole number, 1 to 128"),
        ([1], {"n": 0}, "n = 0"),
        ([1], {"repetition_penalty": 0.0}, r"repetition_penalty = 0\.0"),
        ([1], {"presence_penalty": math.inf}, "presence_penalty = inf"),
        ([1], {"frequency_penalty": nan}, "frequency_penalty = nan"),
        ([1], {"logit_bias": {V: 1.0}}, "logit_bias: token 97"),
        ([1], {"logit_bias": {1: nan}}, "logit_bias of token 1"),
        ([1], {"logprobs": 1000}, "logprobs = 1000"),
        ([1], {"min_tokens": 200}, "min_tokens = 200"),
        ([1], {"stop_ids": (V,)}, "stop_ids token 97"),
        ([1], {"seed": 0.5}, r"seed = 0\.5"),
        ([1], {"json_schema": "{}", "regex": "a"}, "json_schema and regex are given"),
        ([1], {"regex": "a"}, "need Engine"),
    ]:
        with pytest.raises(ValueError, match=message):
            engine.add(Request("a", tokens, SamplingParams(**options)))
    assert not engine.has_work
    engine.add(Request("a", [1]))
    with pytest.raises(ValueError, match="'a' is in use"):
        engine.add(Request("a", [1]))
    drain(engine)
    assert answer_all(engine, [PROMPTS[2]], SamplingParams(max_tokens=5)) == [uncached(MODEL, PROMPTS[2], 5)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_batch": 0}, "max_batch = 0"),
        ({"cache_tokens": 10}, "cache_tokens = 10: one sequence of max_len = 96 needs 96"),
        ({"cache_dtype": "int3"}, "cache_dtype = 'int3'"),
        ({"speculate": 99}, "speculate = 99"),
        ({"prefill_chunk": 4}, "prefill_chunk = 4"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Engine(decoder(OURS["windows by layer, one full"]), **settings)


def test_learned_positions_end() -> None:
    with pytest.raises(ValueError, match=r"max_len = 97 exceeds model\.max_seq_len = 96: learned"):
        Engine(decoder(OURS["learned positions"]), max_len=97)
    Engine(decoder(CONFIG), max_len=200)
