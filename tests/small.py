"""Decoders small enough for a test, whose logits are far enough apart that a slip shows, and the same in `transformers`."""

import torch
from torch import Tensor
from transformers import MistralConfig, MistralForCausalLM, MptConfig, MptForCausalLM, PreTrainedModel

from moxin.model.decoder import Decoder
from moxin.model.layouts import family, pieces, to_hf_config
from moxin.recipe import ModelConfig

_CLASSES = {"mistral": (MistralConfig, MistralForCausalLM), "mpt": (MptConfig, MptForCausalLM)}


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


def noisy(config: ModelConfig, seed: int = 0, spread: float = 4.0, recompute: str = "none") -> Decoder:
    """Matrices `spread` times Mistral's initialisation, or as large as MPT's are already; norms not 1."""
    model = Decoder(config, seed, recompute)
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.3 * torch.randn(parameter.shape, generator=noise)
            elif config.init == "normal":
                parameter *= spread
    return model


def by_their_names(model: Decoder, of_gradients: bool = False) -> dict[str, Tensor]:
    """The parameters, or their gradients, cut into the tensors of a Hugging Face folder."""
    found = {}
    for piece in pieces(model.config):
        whole = model.get_parameter(piece.ours)
        source = whole.grad if of_gradients else whole.detach()
        assert source is not None, piece.ours
        found[piece.theirs] = source[piece.first :][: piece.shape[0]]
    return found


def as_transformers(model: Decoder, attention: str = "eager") -> PreTrainedModel:
    """The same model computed by `transformers`, with the type of our weights."""
    config_class, model_class = _CLASSES[family(model.config)]
    config = config_class(**to_hf_config(model.config), attn_implementation=attention)
    theirs = model_class(config).eval()
    state = by_their_names(model)
    if model.config.tie_embeddings:
        state["lm_head.weight"] = model.embedding.weight.detach()
    theirs.load_state_dict(state)
    return theirs.to(model.embedding.weight.dtype)
