"""Checkpoints: a folder with `config.json` and safetensors that `transformers` loads as `MistralForCausalLM`, and back.

The folder is the only format: `ModelConfig` and Hugging Face's configuration hold the same facts, and the tensors have the
same names. Tensors are written and read one by one; nothing is ever unpickled.
"""

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from moxin import storage
from moxin.model.decoder import Decoder
from moxin.recipe import ModelConfig

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_SAFETENSORS_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"

_FIELDS = {
    "n_layers": "num_hidden_layers",
    "d_model": "hidden_size",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "d_ff": "intermediate_size",
    "vocab_size": "vocab_size",
    "max_seq_len": "max_position_embeddings",
    "sliding_window": "sliding_window",
    "norm_eps": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
    "init_std": "initializer_range",
}
"""Our field -> Hugging Face's, where they mean the same."""
_REQUIRED = tuple(
    _FIELDS[name] for name in ("n_layers", "d_model", "n_heads", "n_kv_heads", "d_ff", "vocab_size")
)


def to_hf_config(config: ModelConfig, dtype: str = "float32") -> dict[str, Any]:
    """`config.json` of a `MistralForCausalLM`; `rope_theta` is given as transformers 4 and as transformers 5 read it."""
    return {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        **{theirs: getattr(config, ours) for ours, theirs in _FIELDS.items()},
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "dtype": dtype,
        "torch_dtype": dtype,
        "use_cache": True,
    }


def from_hf_config(values: Mapping[str, Any]) -> ModelConfig:
    """The architecture a Hugging Face configuration describes; `ValueError` where it is not one that `Decoder` computes."""
    if values.get("model_type") != "mistral":
        raise ValueError(f"config.json: model_type = {values.get('model_type')!r}, expected 'mistral'")
    if missing := [name for name in _REQUIRED if name not in values]:
        raise ValueError(f"config.json: {', '.join(missing)} missing")
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise ValueError(f"config.json: rope_type = {kind!r} is not supported, only 'default'")
    if values.get("hidden_act", "silu") != "silu":
        raise ValueError(f"config.json: hidden_act = {values['hidden_act']!r} is not supported, only 'silu'")
    fields = {ours: values[theirs] for ours, theirs in _FIELDS.items() if theirs in values}
    theta = rope.get("rope_theta", values.get("rope_theta", 10_000.0))
    config = ModelConfig(**{"sliding_window": None, "norm_eps": 1e-6, **fields}, rope_theta=float(theta))
    config.validate()
    if (values.get("head_dim") or config.head_dim) != config.head_dim:
        raise ValueError(
            f"config.json: head_dim = {values['head_dim']} is not hidden_size / num_attention_heads = {config.head_dim}"
        )
    return config


def save(
    model: nn.Module | Mapping[str, Tensor],
    config: ModelConfig,
    url: str,
    dtype: str = "float32",
    max_shard_bytes: int | None = None,
) -> None:
    """Writes the folder; `config.json` last. Parameters are converted to `dtype` one at a time.

    With `max_shard_bytes` the tensors are spread over files of at most that size (a larger tensor has its own) with an
    index, as Hugging Face does. Raises `ValueError` where a tensor is missing, unknown or of a wrong shape.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    tensors = dict(model.state_dict() if isinstance(model, nn.Module) else model)
    if config.tie_embeddings:
        tensors.pop("lm_head.weight", None)
    _check({name: tensor.shape for name, tensor in tensors.items()}, config, url)
    width = DTYPES[dtype].itemsize
    shards: list[dict[str, Tensor]] = [{}]
    filled = 0
    for name, tensor in tensors.items():
        if max_shard_bytes and shards[-1] and filled + tensor.numel() * width > max_shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += tensor.numel() * width
    names = [_SINGLE]
    if len(shards) > 1:
        names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        _write_safetensors(storage.join(url, name), shard, DTYPES[dtype])
    if len(shards) > 1:
        total = sum(tensor.numel() * width for tensor in tensors.values())
        weight_map = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        storage.write_json(storage.join(url, _INDEX), index)
    storage.write_json(storage.join(url, "config.json"), to_hf_config(config, dtype))


def load_config(url: str) -> ModelConfig:
    if not storage.exists(storage.join(url, "config.json")):
        raise ValueError(f"{url}: no config.json; expected a model folder in Hugging Face's format")
    return from_hf_config(storage.read_json(storage.join(url, "config.json")))


def load(url: str, dtype: str | None = None) -> Decoder:
    """The model in a folder, one file or sharded, in `dtype` or as stored.

    Raises `ValueError` naming every tensor that is missing, unknown or of a wrong shape, before any weight is read.
    """
    config = load_config(url)
    with torch.device("meta"):
        model = Decoder(config)
    with _open_safetensors(url) as files:
        where = {name: file for file in files for name in list(file.keys())}
        _check({name: file.get_slice(name).get_shape() for name, file in where.items()}, config, url)
        state = {name: file.get_tensor(name) for name, file in where.items()}
    if config.tie_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state, assign=True)
    if config.tie_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    return model.to(DTYPES[dtype]) if dtype else model


def _check(found: Mapping[str, Sequence[int]], config: ModelConfig, url: str) -> None:
    with torch.device("meta"):
        expected = {name: tensor.shape for name, tensor in Decoder(config).state_dict().items()}
    if config.tie_embeddings:
        del expected["lm_head.weight"]
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


def _write_safetensors(url: str, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """The format is 8 bytes of header length, a JSON header, and the data (github.com/huggingface/safetensors).

    Written here rather than by the library, which either wants a local path or all bytes at once.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        end = offset + tensor.numel() * dtype.itemsize
        header[name] = {
            "dtype": _SAFETENSORS_DTYPES[dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with storage.open_atomic(url) as handle:
        handle.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            values = tensor.detach().to("cpu", dtype).contiguous()
            handle.write(values.view(-1).view(torch.uint8).numpy().data)


@contextmanager
def _open_safetensors(url: str) -> Iterator[list[Any]]:
    """The folder's weight files, open for reading tensor by tensor; files of an object store are fetched first."""
    if storage.exists(storage.join(url, _INDEX)):
        weight_map = storage.read_json(storage.join(url, _INDEX))["weight_map"]
        names = sorted(set(weight_map.values()))
    else:
        names = [_SINGLE]
    if missing := [name for name in names if not storage.exists(storage.join(url, name))]:
        raise ValueError(f"{url}: {', '.join(missing)} missing; weights are read from safetensors only")
    with ExitStack() as stack:
        local: Callable[[str], Path]
        if storage.is_local(url):
            local = storage.local_path(url).joinpath
        else:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            fs, path = storage.filesystem(url)
            for name in names:
                fs.get_file(f"{path}/{name}", str(folder / name))
            local = folder.joinpath
        yield [stack.enter_context(safe_open(local(name), framework="pt")) for name in names]
