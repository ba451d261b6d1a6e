"""Model folders into model folders, tensor by tensor: another type, other shards, more layers. No model is in memory."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from moxin import storage
from moxin.artifact import MANIFEST, seal
from moxin.config import digest
from moxin.model.checkpoint import load_config, open_checked, write
from moxin.model.decoder import RESIDUAL, init_std_of
from moxin.model.layouts import Piece
from moxin.recipe import ModelConfig

How = Literal["zero", "copy", "random"]
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".index.json")


def convert(source: str, target: str, dtype: str = "bfloat16", max_shard_bytes: int | None = None) -> None:
    """Writes the model at `source` anew, as `dtype` and in shards of at most `max_shard_bytes`, with its tokenizer and
    whatever else lies beside the weights. Raises `ValueError` where the source is no model or the target is not empty."""
    _refuse_full(target)
    started = time.monotonic()
    config = load_config(source)
    with open_checked(source, config) as reader:
        write(config, target, lambda piece: reader.read(piece.theirs), dtype, max_shard_bytes)
    _copy_companions(source, target)
    made = {"source": source, "dtype": dtype, "max_shard_bytes": max_shard_bytes}
    seal(target, "convert", digest(made), made, {}, {}, time.monotonic() - started)


@dataclass(frozen=True)
class Layer:
    """A layer of the deeper model: which layer of the shallow one it is a copy of, and whether it was added."""

    source: int
    added: bool


def expansion(n_layers: int, n_new: int) -> list[Layer]:
    """Where a model of `n_layers` grows to `n_new`: the added layers stand evenly apart, each after the one it copies.

    32 to 36 adds copies of layers 7, 15, 23 and 31 behind them (block expansion, arXiv 2401.02415). Raises `ValueError`
    where nothing would be added, or more than one for each layer.
    """
    n_added = n_new - n_layers
    if not 0 < n_added <= n_layers:
        raise ValueError(
            f"--layers {n_new}: a model of {n_layers} layers grows to between {n_layers + 1} and {2 * n_layers}"
        )
    copied = [(j + 1) * n_layers // n_added - 1 for j in range(n_added)]
    return [
        Layer(i, added) for i in range(n_layers) for added in ((False, True) if i in copied else (False,))
    ]


def expand_depth(
    source: str,
    target: str,
    n_layers: int,
    how: How = "zero",
    seed: int = 0,
    dtype: str = "bfloat16",
    max_shard_bytes: int | None = None,
) -> list[Layer]:
    """Writes a deeper model. How Moxin grew from 32 to 36 layers is not published; these are the ways that there are:

    - `zero`: an added layer is a copy whose two output projections are 0. It adds nothing to the residual stream, so the
      deeper model computes the shallow one to the bit, and learns from there.
    - `copy`: the layer again, as it is. The function changes; training has to recover it.
    - `random`: a fresh layer, drawn from `seed` as `Decoder.reset` draws.

    The manifest records the choice, the seed and every layer's origin. Raises `ValueError` as `expansion` and `convert` do.
    """
    if how not in get_args(How):
        raise ValueError(f"how = {how!r}: expected one of {', '.join(get_args(How))}")
    _refuse_full(target)
    started = time.monotonic()
    shallow = load_config(source)
    plan = expansion(shallow.n_layers, n_layers)
    if shallow.layer_windows:  # the pattern goes by position, and the copies shift it
        windows = tuple(shallow.windows[layer.source] or 0 for layer in plan)
        deep = replace(shallow, n_layers=n_layers, layer_windows=windows)
    else:
        deep = replace(shallow, n_layers=n_layers)
    with open_checked(source, shallow) as reader:
        write(deep, target, _expanded(plan, how, seed, deep, reader.read), dtype, max_shard_bytes)
    _copy_companions(source, target)
    made = {"source": source, "how": how, "seed": seed, "n_layers": n_layers, "dtype": dtype}
    made["max_shard_bytes"] = max_shard_bytes
    counts = {"layers": [{"source": layer.source, "added": layer.added} for layer in plan]}
    seal(target, "expand", digest(made), made, {}, counts, time.monotonic() - started)
    return plan


def _expanded(
    plan: list[Layer], how: str, seed: int, config: ModelConfig, read: Callable[[str], Tensor]
) -> Callable[[Piece], Tensor]:
    def tensor_of(piece: Piece) -> Tensor:
        if not piece.ours.startswith("blocks."):
            return read(piece.theirs)
        _, number, part = piece.ours.split(".", 2)
        layer = plan[int(number)]
        # `blocks.7.` or `layers.7.`: the first number in either name is the layer's
        theirs = piece.theirs.replace(f".{number}.", f".{layer.source}.", 1)
        if not layer.added or how == "copy":
            return read(theirs)
        if how == "zero":
            return torch.zeros(piece.shape) if part in RESIDUAL else read(theirs)
        if len(piece.shape) == 1:
            return torch.ones(piece.shape)
        # a stream of its own for every tensor: shards and order do not matter
        stream = torch.Generator().manual_seed(int(digest([seed, piece.theirs])[:15], 16))
        return torch.empty(piece.shape).normal_(
            0.0, init_std_of(config, piece.ours, piece.shape[1]), generator=stream
        )

    return tensor_of


def _refuse_full(target: str) -> None:
    if found := [name for name in storage.files_under(target) if not name.startswith(".")]:
        raise ValueError(f"{target} is not empty ({found[0]}); name a folder that does not exist yet")


def _copy_companions(source: str, target: str) -> None:
    """Tokenizer, chat template, generation settings, licence and card go along; other weights (pickles) do not. Of the
    configuration, what it says of special tokens."""
    ids = storage.read_json(storage.join(source, "config.json"))
    ids = {name: value for name, value in ids.items() if name.endswith("_token_id")}
    written = storage.join(target, "config.json")
    storage.write_json(written, storage.read_json(written) | ids)
    for name in storage.files_under(source):
        if "/" not in name and not name.endswith(_WEIGHTS) and name not in ("config.json", MANIFEST):
            storage.write_bytes(storage.join(target, name), storage.read_bytes(storage.join(source, name)))
