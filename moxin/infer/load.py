"""A model folder as inference wants it: dense or quantised, one tensor at a time, so that memory never holds more than the
result and one tensor of the folder."""

from dataclasses import replace

import torch
from torch import Tensor

from kernels.linear import GROUP, Weight, int4_weight, int8_weight
from moxin.infer.model import InferenceModel, Layer, activation_dtype
from moxin.model import checkpoint
from moxin.model.layouts import pieces
from moxin.model.weights import DTYPES, Reader
from moxin.recipe import ModelConfig

QUANTISED = {"int8": int8_weight, "int4": int4_weight}
KINDS = (*DTYPES, *QUANTISED)


def load(url: str, weights: str | None = None, device: torch.device | str = "cpu") -> InferenceModel:
    """The model in a folder with `weights` float32, bfloat16, float16, int8, int4, or as stored.

    Quantised models have all matrices quantised, the embedding too; norms and activations keep the stored type, on a GPU
    bfloat16 where that is float32. Every matrix is quantised before the next is read.

    Raises `ValueError` for an unknown kind, a folder that is incomplete or of an unknown architecture, and for 4 bits where
    a matrix has rows that are no multiple of 32.
    """
    config = checkpoint.load_config(url)
    check_kind(config, weights)
    device = torch.device(device)
    with checkpoint.open_checked(url, config) as reader:
        stored = max((entry.dtype for entry in reader.entries.values()), key=lambda dtype: dtype.itemsize)
        dense = DTYPES.get(weights or "", stored)
        if weights in QUANTISED and device.type != "cpu" and dense == torch.float32:
            dense = torch.bfloat16
        found = _Parameters(config, reader, weights if weights in QUANTISED else None, dense, device)
        return found.model()


def check_kind(config: ModelConfig, weights: str | None) -> None:
    """Raises `ValueError` for an unknown kind of weights, and for 4 bits where they do not fit."""
    if weights is not None and weights not in KINDS:
        raise ValueError(f"weights = {weights!r}: one of {', '.join(KINDS)}, or None for those stored")
    if weights == "int4" and (config.d_model % GROUP or config.d_ff % GROUP):
        raise ValueError(
            f"weights = int4: model.d_model = {config.d_model} and model.d_ff = {config.d_ff} must be multiples of {GROUP}; "
            "take int8"
        )


def converted(model: InferenceModel, weights: str) -> InferenceModel:
    """The same model with other weights, in memory."""
    check_kind(model.config, weights)

    def other(weight: Weight) -> Weight:
        if weights in QUANTISED:
            return QUANTISED[weights](weight.dequantised(torch.float32))
        return Weight(weight.dequantised(DTYPES[weights]))

    embedding = other(model.embedding)
    layers = tuple(
        replace(layer, qkv=other(layer.qkv), out=other(layer.out), up=other(layer.up), down=other(layer.down))
        for layer in model.layers
    )
    head = embedding if model.head is model.embedding else other(model.head)
    dtype = model.dtype if weights in QUANTISED else activation_dtype(DTYPES[weights], model.device)
    return replace(model, embedding=embedding, layers=layers, head=head, dtype=dtype)


class _Parameters:
    """The parameters of a decoder by our names, read when they are asked for."""

    def __init__(
        self,
        config: ModelConfig,
        reader: Reader,
        quantised: str | None,
        dense: torch.dtype,
        device: torch.device,
    ) -> None:
        self.config, self.reader, self.quantised, self.dense, self.device = (
            config,
            reader,
            quantised,
            dense,
            device,
        )
        self.pieces: dict[str, list[str]] = {}
        for piece in pieces(config):
            self.pieces.setdefault(piece.ours, []).append(piece.theirs)

    def matrix(self, name: str) -> Weight:
        """Quantised by pieces, since scales belong to rows; nothing is there twice but the numbers of one piece."""
        parts = [self._weight(theirs) for theirs in self.pieces[name]]
        if len(parts) == 1:
            return parts[0]
        scales = None
        if all(part.scales is not None for part in parts):
            scales = torch.cat([part.scales for part in parts if part.scales is not None])
        return Weight(torch.cat([part.values for part in parts]), scales)

    def _weight(self, theirs: str) -> Weight:
        tensor = self.reader.read(theirs)
        if self.quantised is None:
            return Weight(tensor.to(self.device, self.dense))
        try:
            return QUANTISED[self.quantised](tensor.to(self.device))
        except ValueError as error:
            raise ValueError(f"{self.reader.url}: {theirs}: {error}") from error

    def vector(self, name: str) -> Tensor:
        [theirs] = self.pieces[name]
        return self.reader.read(theirs).to(self.device, self.dense)

    def model(self) -> InferenceModel:
        config = self.config
        embedding = self.matrix("embedding.weight")
        layers = []
        for i in range(config.n_layers):
            at = f"blocks.{i}."
            norms = [
                self.vector(f"{at}attention.{name}_norm.weight") for name in ("q", "k") if config.qk_norm
            ]
            layers.append(
                Layer(
                    self.vector(f"{at}attention_norm.weight"),
                    self.matrix(f"{at}attention.qkv.weight"),
                    self.matrix(f"{at}attention.out.weight"),
                    self.vector(f"{at}mlp_norm.weight"),
                    self.matrix(f"{at}mlp.up.weight"),
                    self.matrix(f"{at}mlp.down.weight"),
                    *norms,
                )
            )
        head = embedding if config.tie_embeddings else self.matrix("head.weight")
        positions = None
        if config.position == "learned":
            [theirs] = self.pieces["position.weight"]
            positions = self.reader.read(theirs).to(self.device, self.dense)
        dtype = activation_dtype(self.dense, self.device)
        return InferenceModel(
            config, embedding, tuple(layers), self.vector("norm.weight"), head, dtype, positions
        )
