"""A small model and tokenizer, and the same in Hugging Face format."""

from pathlib import Path

import pytest
import torch

from moxin.model import huggingface
from moxin.model.decoder import Decoder
from moxin.recipe import ModelConfig
from moxin.tokens.tokenizer import Tokenizer

TEXT = "Orvek Holloway lives in Tarn. Mira Stone works as a baker, and nobody knows why!\n"


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(
        [TEXT, "Question: Where does Mira live?\nAnswer: Mira lives in Low Wick.\n"] * 3, 360
    )


@pytest.fixture(scope="session")
def model() -> Decoder:
    torch.set_num_threads(1)
    config = ModelConfig(
        n_layers=2,
        d_model=32,
        n_heads=4,
        n_kv_heads=2,
        d_ff=48,
        vocab_size=376,
        max_seq_len=64,
        sliding_window=24,
    )
    decoder = Decoder(config)
    decoder.reset(5)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(4.0 if parameter.ndim > 1 else 1.0)  # far from uniform, so that a slip shows
        decoder.lm_head.weight[7:263] = 0  # replies without bytes that are no UTF-8
    return decoder.eval()


@pytest.fixture(scope="session")
def released(model: Decoder, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("released")
    tokenizer.save(str(folder / "tokenizer"))
    huggingface.export(model, str(folder / "tokenizer"), str(folder / "model"), dtype="float32")
    return folder / "model"
