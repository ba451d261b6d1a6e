"""A small model and tokenizer, and the same in Hugging Face format."""

from pathlib import Path

import pytest
import torch
from small import small_decoder

from moxin.model import huggingface
from moxin.model.decoder import Decoder
from moxin.tokens.tokenizer import Tokenizer

TEXT = "Orvek Holloway lives in Tarn. Mira Stone works as a baker, and nobody knows why!\n"


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(
        [TEXT, "Question: Where does Mira live?\nAnswer: Mira lives in Low Wick.\n"] * 3, 360
    )


@pytest.fixture(scope="session")
def model() -> Decoder:
    decoder = small_decoder(376, max_seq_len=64, spread=4.0)
    with torch.no_grad():
        decoder.head.weight[7:263] = 0  # replies without bytes that are no UTF-8
    return decoder


@pytest.fixture(scope="session")
def released(model: Decoder, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("released")
    tokenizer.save(str(folder / "tokenizer"))
    huggingface.export(model, str(folder / "tokenizer"), str(folder / "model"), dtype="float32")
    return folder / "model"
