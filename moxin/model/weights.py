"""Weights in safetensors files, tensor by tensor, on local disk or in an object store.

The format is 8 bytes of header length, a JSON header, and the data (github.com/huggingface/safetensors). It is read and
written here rather than by the library, which wants a local path and maps whole files into memory: converting a model holds
one tensor, and from an object store only what is asked for is fetched. Nothing is ever unpickled.
"""

import json
import math
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import IO, Any

import torch
from torch import Tensor

from moxin import storage

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_TYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_NAMES = {dtype: name for name, dtype in _TYPES.items()}
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_LARGEST_HEADER = 100_000_000
"""The library's own limit, in bytes."""
_PART = 2**22
"""Numbers converted and written at a time."""


@dataclass(frozen=True)
class _Entry:
    file: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    """Where its bytes begin in the file."""


class Reader:
    """The tensors of a folder, one file or sharded with an index. A context manager.

    Raises `ValueError` that names the file which is missing, cut off or not in the format.
    """

    def __init__(self, url: str) -> None:
        self.url, self._stack, self._handles = url, ExitStack(), dict[str, IO[bytes]]()
        self.entries: dict[str, _Entry] = {}
        names = _files_of(url)
        if missing := [name for name in names if not storage.exists(storage.join(url, name))]:
            raise ValueError(f"{url}: {', '.join(missing)} missing; weights are read from safetensors only")
        for name in names:
            self._read_header(name)

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def _read_header(self, name: str) -> None:
        where = storage.join(self.url, name)
        fs, path = storage.filesystem(where)
        size = int(fs.size(path))
        handle = self._handles[name] = self._stack.enter_context(fs.open(path, "rb"))
        length = int.from_bytes(handle.read(8), "little")
        if size < 8 or not 0 < length <= min(size - 8, _LARGEST_HEADER):
            raise ValueError(f"{where}: no safetensors file: {size} bytes, a header of {length}")
        try:
            header = json.loads(handle.read(length))
            header.pop("__metadata__", None)
            for tensor, facts in header.items():
                begin, end = facts["data_offsets"]
                dtype, shape = _TYPES.get(facts["dtype"]), tuple(facts["shape"])
                if dtype is None:
                    raise ValueError(f"{tensor} has type {facts['dtype']}, only {', '.join(_TYPES)} are read")
                if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
                    raise ValueError(f"{tensor} has shape {list(shape)} and offsets {[begin, end]}")
                if end - begin != dtype.itemsize * math.prod(shape):
                    raise ValueError(f"{tensor} of shape {list(shape)} cannot have {end - begin} bytes")
                if 8 + length + end > size:
                    raise ValueError(
                        f"{tensor} ends at byte {8 + length + end} of {size}: the file is cut off"
                    )
                if other := self.entries.get(tensor):
                    raise ValueError(f"{tensor} is in {other.file} and in {name}")
                self.entries[tensor] = _Entry(name, dtype, shape, 8 + length + begin)
        except (KeyError, TypeError, AttributeError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"{where}: its safetensors header cannot be read ({error!r})") from error
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error

    def read(self, name: str) -> Tensor:
        """The tensor as stored, in memory of its own."""
        entry = self.entries[name]
        out = torch.empty(entry.shape, dtype=entry.dtype)
        if not out.numel():
            return out
        view = out.view(-1).view(torch.uint8).numpy().data.cast("B")
        handle = self._handles[entry.file]
        handle.seek(entry.begin)
        done = 0
        while done < len(view):
            got = handle.readinto(view[done:])  # type: ignore[attr-defined]
            if not got:
                raise ValueError(f"{storage.join(self.url, entry.file)}: ends within {name}")
            done += got
        return out


def _files_of(url: str) -> list[str]:
    """Names of the files that hold a folder's weights."""
    where = storage.join(url, _INDEX)
    if not storage.exists(where):
        return [_SINGLE]
    try:
        names = sorted({str(name) for name in storage.read_json(where)["weight_map"].values()})
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{where}: no index of shards ({error!r})") from error
    if wrong := [name for name in names if "/" in name or not name.endswith(".safetensors")]:
        raise ValueError(f"{where}: {', '.join(wrong)} is no safetensors file beside it")
    if not names:
        raise ValueError(f"{where}: it names no file")
    return names


def write(
    url: str,
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Iterable[Tensor],
    dtype: torch.dtype,
    max_shard_bytes: int | None = None,
) -> None:
    """Writes `tensors`, which come in the order of `shapes` and are taken one at a time.

    With `max_shard_bytes` they are spread over files of at most that size (a larger tensor has its own) with an index, as
    Hugging Face does.
    """
    bytes_of = {name: math.prod(shape) * dtype.itemsize for name, shape in shapes.items()}
    shards: list[list[str]] = [[]]
    for name in shapes:
        filled = sum(bytes_of[other] for other in shards[-1])
        if max_shard_bytes and shards[-1] and filled + bytes_of[name] > max_shard_bytes:
            shards.append([])
        shards[-1].append(name)
    files = [_SINGLE]
    if len(shards) > 1:
        files = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    source = iter(tensors)
    for file, names in zip(files, shards, strict=True):
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for name in names:
            end = offset + bytes_of[name]
            facts = {"dtype": _NAMES[dtype], "shape": list(shapes[name]), "data_offsets": [offset, end]}
            header[name] = facts
            offset = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        with storage.open_atomic(storage.join(url, file)) as handle:
            handle.write(len(text).to_bytes(8, "little") + text)
            for name in names:
                tensor = next(source)
                assert tuple(tensor.shape) == tuple(shapes[name]), name
                for part in (
                    tensor.detach().reshape(-1).split(_PART)
                ):  # in another type, without a second whole one
                    handle.write(part.to("cpu", dtype).contiguous().view(torch.uint8).numpy().data)
                del tensor
    if len(shards) > 1:
        weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        index = {"metadata": {"total_size": sum(bytes_of.values())}, "weight_map": weight_map}
        storage.write_json(storage.join(url, _INDEX), index)
