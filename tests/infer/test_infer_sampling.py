"""Sampling draws from the distribution that transformers' processors make; a seed is a stream."""

import pytest
import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from moxin.infer.sampling import SamplingParams, generator, logprobs_of, penalised, sample


def their_distribution(logits_V: Tensor, params: SamplingParams) -> Tensor:
    warpers = LogitsProcessorList([TemperatureLogitsWarper(params.temperature)])
    if params.top_k:
        warpers.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        warpers.append(TopPLogitsWarper(params.top_p))
    if params.min_p:
        warpers.append(MinPLogitsWarper(params.min_p))
    return warpers(torch.zeros(1, 1, dtype=torch.int64), logits_V[None].clone())[0].softmax(0)


PARAMS = [
    SamplingParams(temperature=1.0),
    SamplingParams(temperature=0.7, top_k=4),
    SamplingParams(temperature=1.5, top_p=0.7),
    SamplingParams(temperature=2.0, top_k=6, top_p=0.5),
    SamplingParams(temperature=1.0, min_p=0.2),
    SamplingParams(temperature=2.0, top_p=0.9, min_p=0.3),
]


@pytest.mark.parametrize("params", PARAMS)
def test_frequencies_are_those_that_transformers_would_draw_from(params: SamplingParams) -> None:
    logits = 2 * torch.randn(12, generator=torch.Generator().manual_seed(0))
    expected = their_distribution(logits, params)
    stream = generator(1)
    drawn = torch.tensor([sample(logits, params, stream) for _ in range(4000)])
    frequencies = drawn.bincount(minlength=12) / len(drawn)
    assert not frequencies[expected == 0].any()
    torch.testing.assert_close(frequencies, expected, rtol=0, atol=0.03)


@pytest.mark.parametrize("spread", [0.1, 3.0])
@pytest.mark.parametrize("params", PARAMS)
def test_in_a_large_vocabulary_nothing_is_drawn_that_transformers_forbids(
    params: SamplingParams, spread: float
) -> None:
    """A flat distribution's nucleus is wider than what is looked at first."""
    logits = spread * torch.randn(5000, generator=torch.Generator().manual_seed(2))
    expected, stream = their_distribution(logits, params), generator(3)
    drawn = {sample(logits, params, stream) for _ in range(300)}
    assert all(expected[token] > 0 for token in drawn)
    if spread < 1 and (expected > 0).sum() > 1000:
        assert len(drawn) > 200


def test_extreme_temperatures() -> None:
    logits = torch.tensor([1.0, 1.001, -500.0])
    assert sample(logits, SamplingParams(temperature=0.0), generator(0)) == 1
    assert sample(logits, SamplingParams(temperature=1e-300), generator(0)) == 1
    assert sample(logits, SamplingParams(temperature=1e300), generator(0)) in (0, 1, 2)


def test_what_is_forbidden_never_comes() -> None:
    logits = torch.full((50,), -torch.inf)
    logits[[7, 31]] = 0.0
    for params in PARAMS:
        stream = generator(5)
        assert {sample(logits, params, stream) for _ in range(60)} <= {7, 31}


def test_a_seed_is_a_stream_and_none_is_a_new_one() -> None:
    logits, params = torch.zeros(1000), SamplingParams(temperature=1.0)
    streams = [generator(4), generator(4), generator(-4), generator(4, 1), generator(None), generator(None)]
    draws = [[sample(logits, params, stream) for _ in range(8)] for stream in streams]
    assert draws[0] == draws[1]
    assert len({tuple(row) for row in draws}) == 5


def test_repetition_penalty_is_transformers() -> None:
    logits = torch.randn(40, generator=torch.Generator().manual_seed(0))
    prompt, counts = {1, 5, 9}, {5: 2, 20: 1}
    seen = torch.tensor([[*prompt, *counts]])
    for penalty in (1.3, 0.8):
        expected = RepetitionPenaltyLogitsProcessor(penalty)(seen, logits[None].clone())[0]
        found = penalised(logits, SamplingParams(repetition_penalty=penalty), prompt, counts)
        torch.testing.assert_close(found, expected)


def test_presence_frequency_and_bias_are_openais_formula() -> None:
    """mu[j] - c[j] * frequency - (c[j] > 0) * presence, over the answer alone; bias is added."""
    logits = torch.randn(40, generator=torch.Generator().manual_seed(0))
    before = logits.clone()
    params = SamplingParams(presence_penalty=0.7, frequency_penalty=-0.2, logit_bias={3: 5.0, 5: -100.0})
    found = penalised(logits, params, {1, 2}, {5: 3, 20: 1})
    expected = before.clone()
    expected[5] += -0.7 + 0.2 * 3 - 100
    expected[20] += -0.7 + 0.2
    expected[3] += 5
    torch.testing.assert_close(found, expected)
    assert torch.equal(logits, before)
    assert penalised(logits, SamplingParams(), {1}, {5: 3}) is logits


def test_log_probabilities_rank_and_alternatives() -> None:
    logits = torch.randn(40, generator=torch.Generator().manual_seed(1)).bfloat16()
    found = logprobs_of(logits, 17, 4)
    expected = logits.double().log_softmax(0)
    assert found.logprob == pytest.approx(float(expected[17]), abs=1e-5)
    assert found.rank == int((expected > expected[17]).sum()) + 1
    assert [token for token, _ in found.top] == logits.float().topk(4).indices.tolist()
    assert logprobs_of(logits, 17, 0).top == ()
