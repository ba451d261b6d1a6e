"""A decoder small enough for a test, whose logits are far enough apart that a slip shows."""

import torch

from moxin.model.decoder import Decoder
from moxin.recipe import ModelConfig


def small_decoder(vocab_size: int, max_seq_len: int, spread: float) -> Decoder:
    """Two layers of width 32 with a window of 24; matrices are `spread` times those of the usual initialisation."""
    torch.set_num_threads(1)
    config = ModelConfig(
        n_layers=2,
        d_model=32,
        n_heads=4,
        n_kv_heads=2,
        d_ff=48,
        vocab_size=vocab_size,
        max_seq_len=max_seq_len,
        sliding_window=24,
    )
    decoder = Decoder(config)
    decoder.reset(5)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(spread if parameter.ndim > 1 else 1.0)
    return decoder.eval()
