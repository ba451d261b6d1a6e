"""Sampling draws from the distribution it says; text comes in whole characters and stops where it must."""

import random

import pytest
import torch
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from moxin.infer.detokenize import Detokenizer
from moxin.infer.sampling import SamplingParams, generator, sample


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=1.0),
        SamplingParams(temperature=0.7, top_k=4),
        SamplingParams(temperature=1.5, top_p=0.7),
        SamplingParams(temperature=2.0, top_k=6, top_p=0.5),
    ],
)
def test_frequencies_are_those_that_transformers_would_draw_from(params: SamplingParams) -> None:
    torch.manual_seed(0)
    logits = 2 * torch.randn(12)
    warpers = LogitsProcessorList([TemperatureLogitsWarper(params.temperature)])
    if params.top_k:
        warpers.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        warpers.append(TopPLogitsWarper(params.top_p))
    expected = warpers(torch.zeros(1, 1, dtype=torch.int64), logits[None].clone())[0].softmax(0)
    stream = generator(1)
    drawn = torch.tensor([sample(logits, params, stream) for _ in range(4000)])
    frequencies = drawn.bincount(minlength=12) / len(drawn)
    assert not frequencies[expected == 0].any()
    torch.testing.assert_close(frequencies, expected, rtol=0, atol=0.03)


def test_extreme_temperatures() -> None:
    logits = torch.tensor([1.0, 1.001, -500.0])
    assert sample(logits, SamplingParams(temperature=0.0), generator(0)) == 1
    assert sample(logits, SamplingParams(temperature=1e-300), generator(0)) == 1
    assert sample(logits, SamplingParams(temperature=1e300), generator(0)) in (0, 1, 2)


def test_a_seed_is_a_stream_and_none_is_a_new_one() -> None:
    logits, params = torch.zeros(1000), SamplingParams(temperature=1.0)
    draws = [
        [sample(logits, params, stream) for _ in range(8)]
        for stream in map(generator, (4, 4, -4, None, None))
    ]
    assert draws[0] == draws[1]
    assert len({tuple(row) for row in draws}) == 4


def from_bytes(ids: list[int]) -> str:
    """A tokenizer whose tokens are bytes: as hard for a character as it gets."""
    return bytes(ids).decode("utf-8", errors="replace")


TEXT = "héllo, 🌍🌏! 日本語 \ufffd end"


def test_bytes_come_as_whole_characters() -> None:
    text = Detokenizer(from_bytes)
    pieces = [text.push(byte) for byte in TEXT.encode()] + [text.finish()]
    assert "".join(pieces) == TEXT
    shown = ""
    for piece, byte_count in zip(pieces, range(1, len(pieces) + 1), strict=True):
        shown += piece
        assert TEXT.startswith(shown), (piece, byte_count)
    assert pieces[:4] == ["h", "", "é", "l"]  # nothing is held longer than it must be


def test_half_a_character_at_the_end_is_marked() -> None:
    text = Detokenizer(from_bytes)
    assert [text.push(byte) for byte in "a🌍".encode()[:-1]] == ["a", "", "", ""]
    assert text.finish() == "\ufffd"


def test_a_decoder_that_strips_the_first_space_loses_no_other() -> None:
    words = ["▁The", "▁cat", "s", "▁sat"]

    def decode(ids: list[int]) -> str:
        return "".join(words[i] for i in ids).replace("▁", " ").removeprefix(" ")

    text = Detokenizer(decode)
    assert [text.push(i) for i in range(4)] == ["The", " cat", "s", " sat"]


def test_stop_strings_at_every_cut() -> None:
    """Whatever the cut into tokens: exactly what stands before the first stop string, and no more, is ever shown."""
    draw = random.Random(0)
    vocabulary = ["a", "b", "ab", "<|", "|>", "end", "<|e", "nd", "|", "<"]
    for _ in range(300):
        ids = [draw.randrange(len(vocabulary)) for _ in range(14)]
        whole = "".join(vocabulary[i] for i in ids)
        stops = ("<|end|>", "ba", "||")[: draw.randint(1, 3)]
        text = Detokenizer(lambda part: "".join(vocabulary[i] for i in part), stops)
        shown = ""
        for i in ids:
            shown += text.push(i)
            if text.stopped:
                break
        shown += text.finish()
        ends = [whole.index(stop) for stop in stops if stop in whole]
        assert text.stopped == bool(ends)
        assert shown == (whole[: min(ends)] if ends else whole)
