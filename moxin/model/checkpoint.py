"""Checkpoints: a folder with `config.json` and safetensors that `transformers` loads, and back.

The folder is the only format. Where `transformers` has no class for a model (`layouts.family`), it has the same form with
our own names.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from moxin import storage
from moxin.model import weights
from moxin.model.decoder import Decoder
from moxin.model.layouts import Piece, from_hf_config, pieces, to_hf_config
from moxin.model.weights import DTYPES, Reader
from moxin.recipe import ModelConfig


def save(
    model: nn.Module | Mapping[str, Tensor],
    config: ModelConfig,
    url: str,
    dtype: str = "float32",
    max_shard_bytes: int | None = None,
) -> None:
    """Writes the folder; `config.json` last. Parameters, by our names, are converted to `dtype` one at a time.

    With `max_shard_bytes` the tensors are spread over files of at most that size with an index, as Hugging Face does. Raises
    `ValueError` where a parameter is missing, unknown or of a wrong shape.
    """
    state = dict(model.state_dict() if isinstance(model, nn.Module) else model)
    if config.tie_embeddings:
        state.pop("head.weight", None)
    with torch.device("meta"):
        expected = {name: tuple(p.shape) for name, p in Decoder(config).named_parameters()}
    _check({name: tensor.shape for name, tensor in state.items()}, expected, url)
    write(
        config, url, lambda piece: state[piece.ours][piece.first :][: piece.shape[0]], dtype, max_shard_bytes
    )


def write(
    config: ModelConfig,
    url: str,
    tensor_of: Callable[[Piece], Tensor],
    dtype: str = "float32",
    max_shard_bytes: int | None = None,
) -> None:
    """Writes a folder whose tensors are asked for one at a time, so that a model never has to be in memory."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    parts = pieces(config)
    shapes = {piece.theirs: piece.shape for piece in parts}
    weights.write(url, shapes, (tensor_of(piece) for piece in parts), DTYPES[dtype], max_shard_bytes)
    storage.write_json(storage.join(url, "config.json"), to_hf_config(config, dtype))


def load_config(url: str) -> ModelConfig:
    if not storage.exists(storage.join(url, "config.json")):
        raise ValueError(f"{url}: no config.json; expected a model folder in Hugging Face's format")
    return from_hf_config(storage.read_json(storage.join(url, "config.json")))


def empty(config: ModelConfig, dtype: torch.dtype, device: torch.device | str = "cpu") -> Decoder:
    """A model whose weights hold nothing yet."""
    with torch.device("meta"):
        model = Decoder(config)
    model = model.to(dtype).to_empty(device=device)
    if config.tie_embeddings:
        model.head.weight = model.embedding.weight
    return model


def load(url: str, dtype: str | None = None, device: torch.device | str = "cpu") -> Decoder:
    """The model in a folder, one file or sharded, in `dtype` or as stored. Beside the model one tensor is held at a time.

    Raises `ValueError` naming every tensor that is missing, unknown or of a wrong shape, before any weight is read.
    """
    config = load_config(url)
    with open_checked(url, config) as reader:
        model = empty(config, DTYPES[dtype] if dtype else _widest(reader), device)
        with torch.no_grad():
            for piece in pieces(config):
                rows = model.get_parameter(piece.ours)[piece.first :][: piece.shape[0]]
                rows.copy_(reader.read(piece.theirs))
    return model


def open_checked(url: str, config: ModelConfig) -> Reader:
    """The folder's tensors, held against what a model of this configuration has; a `ValueError` names each that is wrong."""
    reader = Reader(url)
    found = {name: entry.shape for name, entry in reader.entries.items()}
    if config.tie_embeddings:  # some exporters write the shared table twice
        found.pop("lm_head.weight", None)
    _check(found, {piece.theirs: piece.shape for piece in pieces(config)}, url)
    return reader


def _widest(reader: Reader) -> torch.dtype:
    """The type to load a folder in whose tensors may have several: one that holds them all."""
    wanted = next(iter(reader.entries.values())).dtype
    for entry in reader.entries.values():
        wanted = torch.promote_types(wanted, entry.dtype)
    return wanted


def _check(found: Mapping[str, Sequence[int]], expected: Mapping[str, Sequence[int]], url: str) -> None:
    wrong = [f"{name} is missing" for name in expected if name not in found]
    wrong += [f"{name} is not part of this model" for name in found if name not in expected]
    wrong += [
        f"{name} has shape {list(found[name])}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in found and list(found[name]) != list(shape)
    ]
    if wrong:
        more = f" and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise ValueError(f"{url}: {'; '.join(wrong[:8])}{more}. Does config.json belong to these weights?")
