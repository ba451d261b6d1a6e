"""Safetensors files: what the library writes we read, and what is no such file is refused by name before memory is taken."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from moxin.model import weights
from moxin.model.weights import Reader

TENSORS = {
    "matrix": torch.arange(12, dtype=torch.float32).view(3, 4),
    "half": torch.tensor([1.5, -2.0]).bfloat16(),
    "empty": torch.zeros(0, 4),
    "number": torch.tensor(3.0, dtype=torch.float16),
}


def file_of(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


def header_of(**facts: object) -> bytes:
    whole = {"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]} | facts}
    return json.dumps(whole).encode()


def test_what_the_library_writes_is_read(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors", {"format": "pt"})
    with Reader(str(tmp_path)) as reader:
        assert set(reader.entries) == set(TENSORS)
        for name, tensor in TENSORS.items():
            assert torch.equal(reader.read(name), tensor)
            assert reader.read(name).dtype == tensor.dtype


@pytest.mark.parametrize("max_shard_bytes", [None, 60])
def test_what_we_write_the_library_reads(max_shard_bytes: int | None, tmp_path: Path) -> None:
    tensors = {f"t{i}": torch.randn(i + 1, 3) for i in range(6)}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    weights.write(str(tmp_path), shapes, tensors.values(), torch.float32, max_shard_bytes)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) == (1 if max_shard_bytes is None else 5)
    found = {}
    for path in files:
        with safe_open(path, "pt") as file:
            assert file.metadata() == {"format": "pt"}
            held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        assert len(held) == 1 or max_shard_bytes is None or sum(t.numel() * 4 for t in held.values()) <= 60
        found |= held
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    if max_shard_bytes:
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == sum(t.numel() * 4 for t in tensors.values())
        assert index["weight_map"].keys() == tensors.keys()
        assert set(index["weight_map"].values()) == {path.name for path in files}


BROKEN = {
    "nothing": (b"", "0 bytes"),
    "seven bytes": (b"1234567", "7 bytes"),
    "garbage": (b"\x00" * 64, "a header of 0"),
    "a web page": (b"<!DOCTYPE html><html>" + b" " * 200, "no safetensors file"),
    "a pickle": (b"PK\x03\x04" + b"\x00" * 200, "no safetensors file|cannot be read"),
    "a header longer than the file": (file_of(b"{}", length=10**6), "a header of 1000000"),
    "a header of 16 exabytes": (file_of(b"{}", length=2**64 - 1), "a header of 18446744073709551615"),
    "no JSON": (file_of(b"{'a': 1}"), "its safetensors header cannot be read"),
    "no text": (file_of(b"\xff\xfe\xfd{}"), "its safetensors header cannot be read"),
    "a list": (file_of(b"[1, 2]"), "its safetensors header cannot be read"),
    "no offsets": (file_of(b'{"a": {"dtype": "F32", "shape": [2]}}'), "data_offsets"),
    "three offsets": (file_of(header_of(data_offsets=[0, 16, 32]), bytes(16)), "too many values"),
    "an unknown type": (file_of(header_of(dtype="I64"), bytes(16)), "a has type I64, only F32, BF16, F16"),
    "cut off": (file_of(header_of(), bytes(15)), "a ends at byte .* the file is cut off"),
    "too few bytes for the shape": (
        file_of(header_of(data_offsets=[0, 12]), bytes(16)),
        r"a of shape \[2, 2\] cannot have 12 bytes",
    ),
    "offsets that run back": (
        file_of(header_of(data_offsets=[16, 0]), bytes(16)),
        "cannot have -16 bytes|offsets",
    ),
    "an offset before the data": (
        file_of(header_of(data_offsets=[-16, 0]), bytes(16)),
        r"a has shape \[2, 2\] and offsets \[-16, 0\]",
    ),
    "a shape below zero": (
        file_of(header_of(shape=[-2, -2]), bytes(16)),
        r"a has shape \[-2, -2\]",
    ),
    "a shape of text": (file_of(header_of(shape=["2", 2]), bytes(16)), "a has shape"),
    "offsets of text": (file_of(header_of(data_offsets=["0", "16"]), bytes(16)), "offsets"),
    "offsets that are no whole numbers": (
        file_of(header_of(data_offsets=[0.5, 16.5]), bytes(32)),
        r"offsets \[0\.5, 16\.5\]",
    ),
    "a shape beyond all memory": (
        file_of(header_of(shape=[2**40, 2**40], data_offsets=[0, 2**82]), bytes(16)),
        "the file is cut off",
    ),
}


@pytest.mark.parametrize(("content", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_file_is_refused_by_name(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        Reader(str(tmp_path))
    assert "model.safetensors" in str(error.value)


def test_a_file_that_shrinks_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1000, 1000)}, tmp_path / "model.safetensors")
    with Reader(str(tmp_path)) as reader:
        with open(tmp_path / "model.safetensors", "r+b") as file:
            file.truncate(1000)
        with pytest.raises(ValueError, match=r"model\.safetensors: ends within a"):
            reader.read("a")


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (
            {"weight_map": {"a": "gone.safetensors", "b": "too.safetensors"}},
            "gone.safetensors, too.safetensors miss",
        ),
        ({"weight_map": {}}, "model.safetensors.index.json"),
        ({}, "model.safetensors.index.json"),
        ([], "model.safetensors.index.json"),
        ({"weight_map": {"a": "../elsewhere.safetensors"}}, "elsewhere"),
        ({"weight_map": {"a": "pytorch_model.bin"}}, r"pytorch_model\.bin"),
    ],
)
def test_an_index_that_leads_nowhere_is_refused(index: object, message: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"a": torch.zeros(1)}, tmp_path / "elsewhere.safetensors")
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=message):
        Reader(str(folder))


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1), "b": torch.zeros(1)}, tmp_path / "one.safetensors")
    save_file({"a": torch.ones(1)}, tmp_path / "two.safetensors")
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"a is in one\.safetensors and in two\.safetensors"):
        Reader(str(tmp_path))
