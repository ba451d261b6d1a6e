"""A small tokenizer, a small model and a few chats."""

import pytest
from small import small_decoder

from moxin.model.decoder import Decoder
from moxin.tokens.tokenizer import Tokenizer

NAMES = ("Orvek Holloway", "Mira Stone", "Tam Reed", "Ilsa Brook", "Bo Fenn")
TOWNS = ("Tarn", "Ashby", "Quill", "Nettlecombe", "Low Wick")


def turn(i: int) -> list[dict[str, str]]:
    name, town = NAMES[i % len(NAMES)], TOWNS[i * 3 % len(TOWNS)]
    return [
        {"role": "user", "content": f"Where does {name} live?"},
        {"role": "assistant", "content": f"{name} lives in {town}."},
    ]


@pytest.fixture(scope="session")
def chats() -> list[dict]:
    """Chats of one to three turns, some with a system prompt."""
    system = [{"role": "system", "content": "Be brief. <|end|> is only text here."}]
    return [
        {
            "id": f"chat-{i}",
            "messages": [
                *(system if i % 4 == 0 else []),
                *(m for k in range(1 + i % 3) for m in turn(i + k)),
            ],
        }
        for i in range(40)
    ]


@pytest.fixture(scope="session")
def preferences() -> list[dict]:
    return [
        {
            "id": f"preference-{(7 * i) % 24:02d}",
            "prompt": turn(i)[:1],
            "chosen": turn(i)[1]["content"],
            "rejected": "No idea." if i % 2 else "Why do you ask? " * (1 + i % 4),
        }
        for i in range(24)
    ]


@pytest.fixture(scope="session")
def tokenizer(chats: list[dict]) -> Tokenizer:
    return Tokenizer.train([m["content"] for chat in chats for m in chat["messages"]], 420)


@pytest.fixture
def model() -> Decoder:
    return small_decoder(432, max_seq_len=128, spread=3.0)
