"""Training state as named pieces, so that any number of workers, at any ZeRO stage, reads what any other number left.

An engine keeps weights and optimizer state in a few flat tensors, cut among the workers in its own way. A worker writes the
flat tensors that it has (`shard-RANK.safetensors`) and where the pieces of which parameter lie in them
(`shard-RANK.json`). A reader works out which bytes of which files belong into its own flat tensors, and reads only those:
there is no conversion, and nothing in a checkpoint is unpickled. DeepSpeed's own files bind a run to its number of workers,
and their universal form (arXiv 2406.18820), to which this is equivalent, has to be made first and knows AdamW only.
"""

import errno
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from moxin import storage

WEIGHT = "weight"
"""Name of the weights among the tensors of a `Flat`; the others are the optimizer's."""


class Piece(NamedTuple):
    """`numel` elements of a parameter from number `start` on, which lie at `offset` in a flat tensor."""

    parameter: str
    start: int
    offset: int
    numel: int


@dataclass
class Flat:
    """Tensors of one length that hold the same pieces of parameters: weights and, of each, the optimizer's state."""

    tensors: dict[str, Tensor]
    """By `WEIGHT` and the optimizer's names (`exp_avg`), each 1-D and of the same length; float32."""
    pieces: list[Piece]
    updates: int
    """How often the optimizer has changed these weights; what Adam corrects its bias by."""
    counted: bool = True
    """Whether this worker is the one that writes it: where all hold the same, one does."""


def write(flats: Sequence[dict[str, Tensor]], about: Sequence[Flat], folder: Path, rank: int) -> None:
    """Writes copies of this worker's flat tensors, `flats`, which `about` describes."""
    tensors = {f"{i}.{name}": tensor for i, flat in enumerate(flats) for name, tensor in flat.items()}
    try:
        save_file(tensors, folder / f"shard-{rank}.safetensors")
    except SafetensorError as error:
        if f"os error {errno.ENOSPC}" in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error
        raise
    told = [{"names": list(flat.tensors), "pieces": [list(piece) for piece in flat.pieces]} for flat in about]
    storage.write_json(str(folder / f"shard-{rank}.json"), told)


class Reader:
    """The state that `world` workers left in a folder. Use as a context manager."""

    def __init__(self, folder: Path, world: int) -> None:
        self.folder = folder
        self.found: dict[str, list[tuple[Piece, int, int]]] = defaultdict(list)
        """By parameter: pieces, and the number of the shard and of the flat tensor that hold them."""
        for rank in range(world):
            for number, shard in enumerate(storage.read_json(str(folder / f"shard-{rank}.json"))):
                for values in shard["pieces"]:
                    self.found[values[0]].append((Piece(*values), rank, number))
        self._open: dict[int, Any] = {}
        self._stack = ExitStack()

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self._open.clear()

    def fill(self, name: str, into: Tensor, pieces: Iterable[Piece]) -> None:
        """Reads what `name` (`WEIGHT`, `exp_avg`, …) is of these pieces into a flat tensor; what lies between stays.

        Raises `ValueError` where the state has none of it, or not all.
        """
        for piece in pieces:
            missing = piece.numel
            for other, rank, number in self.found.get(piece.parameter, ()):
                first = max(piece.start, other.start)
                last = min(piece.start + piece.numel, other.start + other.numel)
                if first >= last:
                    continue
                begin = other.offset + first - other.start
                source = self._file(rank).get_slice(f"{number}.{name}")[begin : begin + last - first]
                at = piece.offset + first - piece.start
                into[at : at + last - first].copy_(source)
                missing -= last - first
            if missing:
                raise ValueError(
                    f"{self.folder}: {name} of {piece.parameter!r} lacks {missing:,} of {piece.numel:,} elements; the "
                    "state is of another model or optimizer"
                )

    def _file(self, rank: int) -> Any:
        if rank not in self._open:
            path = str(self.folder / f"shard-{rank}.safetensors")
            self._open[rank] = self._stack.enter_context(safe_open(path, framework="pt"))
        return self._open[rank]


class Snapshot:
    """Copies of flat tensors in the CPU's memory, for a thread to write while training goes on.

    The memory is kept for the next one: fresh pages cost more than the copy.
    """

    def __init__(self) -> None:
        self._kept: list[dict[str, Tensor]] = []

    def take(self, flats: Sequence[Flat]) -> list[dict[str, Tensor]]:
        """The tensors as they are now; valid until the next call."""
        if len(self._kept) != len(flats):
            self._kept = [{} for _ in flats]
        waiting = False
        for kept, flat in zip(self._kept, flats, strict=True):
            for name in set(kept) - set(flat.tensors):
                del kept[name]
            for name, tensor in flat.tensors.items():
                on_gpu = tensor.device.type == "cuda"
                if name not in kept or kept[name].shape != tensor.shape:
                    kept[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=on_gpu)
                kept[name].copy_(tensor.detach(), non_blocking=on_gpu)
                waiting |= on_gpu
        if waiting:
            torch.cuda.current_stream().synchronize()
        return self._kept


def checksum(flats: Sequence[Flat], names: Sequence[str]) -> Tensor:
    """Sum and sum of magnitudes of each of these over the flat tensors that count, float64[2 · names].

    All workers' sums together do not depend on how the elements are cut among them, but for rounding (1e-12).
    """
    device = flats[0].tensors[WEIGHT].device if flats else torch.device("cpu")
    sums = torch.zeros(2 * len(names), dtype=torch.float64, device=device)
    for flat in flats:
        if not flat.counted:
            continue
        for i, name in enumerate(names):
            if name not in flat.tensors:
                continue
            for piece in flat.pieces:  # not what lies between: padding may hold anything
                part = flat.tensors[name][piece.offset : piece.offset + piece.numel].detach()
                sums[2 * i] += part.sum(dtype=torch.float64)
                sums[2 * i + 1] += part.abs().sum(dtype=torch.float64)
    return sums
