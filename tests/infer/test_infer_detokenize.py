"""Text comes in whole characters and stops where it must; bytes that are no text do not hold it back for ever."""

import random

import pytest
import tokenizers

from moxin.infer.detokenize import MOST_PENDING, Detokenizer


def from_bytes(ids: list[int]) -> str:
    """A tokenizer whose tokens are bytes: as hard for a character as it gets."""
    return bytes(ids).decode("utf-8", errors="replace")


def byte_fallback() -> tokenizers.Tokenizer:
    """Byte tokens as in SentencePiece: a run of them that is not valid becomes one U+FFFD for each byte."""
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({**vocabulary, "a": 256}, [], byte_fallback=True))
    backend.decoder = tokenizers.decoders.Sequence(
        [tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()]
    )
    return backend


TEXT = "héllo, 🌍🌏! 日本語 \ufffd end"


def test_bytes_come_as_whole_characters() -> None:
    text = Detokenizer(from_bytes)
    pieces = [text.push(byte) for byte in TEXT.encode()] + [text.finish()]
    assert "".join(pieces) == TEXT
    shown = ""
    for piece in pieces:
        shown += piece
        assert TEXT.startswith(shown), piece
    assert pieces[:4] == ["h", "", "é", "l"]  # nothing is held longer than it must be


def test_half_a_character_at_the_end_is_marked() -> None:
    text = Detokenizer(from_bytes)
    assert [text.push(byte) for byte in "a🌍".encode()[:-1]] == ["a", "", "", ""]
    assert text.finish() == "\ufffd"


@pytest.mark.parametrize("decode", [from_bytes, lambda ids: byte_fallback().decode(ids)])
def test_endless_invalid_bytes_are_shown_at_most_three_tokens_late(decode: object) -> None:
    text = Detokenizer(decode)
    shown = ""
    for count in range(1, 41):
        shown += text.push(0xF0)
        assert len(shown) >= count - MOST_PENDING
        assert set(shown) <= {"\ufffd"}
    assert len(shown + text.finish()) == 40


@pytest.mark.parametrize("seed", range(3))
def test_all_pieces_are_what_all_tokens_are(seed: int) -> None:
    """Valid characters, their beginnings and stray bytes in any order."""
    draw = random.Random(seed)
    parts = ["a", "é", "日", "🌍", "b c"]
    for _ in range(200):
        data = b""
        for _ in range(draw.randint(1, 8)):
            whole = draw.choice(parts).encode()
            data += whole if draw.random() < 0.6 else whole[: draw.randint(1, len(whole))]
            data += bytes([draw.randrange(128, 256)]) * (draw.random() < 0.2)
        text = Detokenizer(from_bytes)
        pieces = [text.push(byte) for byte in data] + [text.finish()]
        assert "".join(pieces) == data.decode("utf-8", errors="replace")


def test_valid_text_through_byte_fallback() -> None:
    backend = byte_fallback()
    text = Detokenizer(lambda ids: backend.decode(ids))
    assert "".join([*(text.push(byte) for byte in TEXT.encode()), text.finish()]) == TEXT


def test_a_decoder_that_strips_the_first_space_loses_no_other() -> None:
    words = ["▁The", "▁cat", "s", "▁sat"]

    def decode(ids: list[int]) -> str:
        return "".join(words[i] for i in ids).replace("▁", " ").removeprefix(" ")

    text = Detokenizer(decode)
    assert [text.push(i) for i in range(4)] == ["The", " cat", "s", " sat"]


@pytest.mark.parametrize("include_stop", [False, True])
def test_stop_strings_at_every_cut(include_stop: bool) -> None:
    """Whatever the cut into tokens: exactly what stands before the first stop string, and no more, is ever shown."""
    draw = random.Random(0)
    vocabulary = ["a", "b", "ab", "<|", "|>", "end", "<|e", "nd", "|", "<"]
    for _ in range(300):
        ids = [draw.randrange(len(vocabulary)) for _ in range(14)]
        whole = "".join(vocabulary[i] for i in ids)
        stops = ("<|end|>", "ba", "||")[: draw.randint(1, 3)]
        text = Detokenizer(lambda part: "".join(vocabulary[i] for i in part), stops, include_stop)
        shown = ""
        for i in ids:
            shown += text.push(i)
            if text.stopped:
                break
        shown += text.finish()
        ends = [(whole.index(stop), stop) for stop in stops if stop in whole]
        assert text.stopped == (min(ends)[1] if ends else None)
        expected = whole[: min(ends)[0]] if ends else whole
        assert shown == expected + (min(ends)[1] if ends and include_stop else "")
