"""Checkpoints: the round trip to the bit, `transformers` as the reader and the writer, and errors that name the tensor."""

import dataclasses
import json
from pathlib import Path

import fsspec
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GenerationConfig, MistralConfig, MistralForCausalLM

from moxin.model import checkpoint
from moxin.model.decoder import Decoder
from moxin.model.huggingface import export
from moxin.recipe import ModelConfig

SMALL = ModelConfig(
    n_layers=2,
    d_model=32,
    n_heads=4,
    n_kv_heads=2,
    d_ff=64,
    vocab_size=50,
    max_seq_len=64,
    sliding_window=8,
    rope_theta=5e4,
)
CONFIGS = [SMALL, dataclasses.replace(SMALL, tie_embeddings=True, sliding_window=None)]


@pytest.fixture
def tokenizer_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    tokens = ["<pad>", "<s>", "</s>", "<|end|>"]
    added = [{"id": i, "content": text, "special": True} for i, text in enumerate(tokens)]
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    settings = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize("config", CONFIGS, ids=["untied", "tied"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("max_shard_bytes", [None, 10_000])
def test_round_trip_to_the_bit(
    config: ModelConfig, dtype: str, max_shard_bytes: int | None, tmp_path: Path
) -> None:
    model = Decoder(config).to(checkpoint.DTYPES[dtype])
    checkpoint.save(model, config, str(tmp_path), dtype, max_shard_bytes)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (max_shard_bytes is not None)
    again = checkpoint.load(str(tmp_path))
    assert again.config == config
    assert checkpoint.load_config(str(tmp_path)) == config
    expected = model.state_dict()
    assert again.state_dict().keys() == expected.keys()
    for name, tensor in again.state_dict().items():
        assert tensor.dtype == checkpoint.DTYPES[dtype]
        assert torch.equal(tensor, expected[name]), name
    tied = again.lm_head.weight is again.model.embed_tokens.weight
    assert tied == config.tie_embeddings
    assert next(checkpoint.load(str(tmp_path), "float32").parameters()).dtype == torch.float32


@pytest.mark.parametrize("config", CONFIGS, ids=["untied", "tied"])
def test_transformers_loads_our_export(config: ModelConfig, tokenizer_folder: Path, tmp_path: Path) -> None:
    model, out = Decoder(config), tmp_path / "release"
    export(model, str(tokenizer_folder), str(out), max_shard_bytes=20_000, dtype="float32")
    shards = list(out.glob("model-*-of-*.safetensors"))
    assert len(shards) > 1
    assert all(path.stat().st_size <= 20_000 + 2000 for path in shards)  # and a header
    theirs, report = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert isinstance(theirs, MistralForCausalLM)
    assert not any(report.values()), report
    tokens = torch.randint(50, (2, 30))
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens).logits, model(tokens), rtol=1e-5, atol=1e-5)
    generation = GenerationConfig.from_pretrained(out)
    assert generation.eos_token_id == [2, 3]
    assert (generation.bos_token_id, generation.pad_token_id) == (1, 0)
    assert (out / "tokenizer.json").read_bytes() == (tokenizer_folder / "tokenizer.json").read_bytes()
    assert checkpoint.load_config(str(out)) == config


def test_we_load_what_transformers_saves(tmp_path: Path) -> None:
    config = MistralConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=1,
        sliding_window=None,
        rope_parameters={"rope_type": "default", "rope_theta": 777.0},
    )
    theirs = MistralForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    ours = checkpoint.load(str(tmp_path))
    assert ours.config.rope_theta == 777.0
    tokens = torch.randint(50, (2, 30))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=1e-5, atol=1e-5)


def test_an_object_store_serves_as_well() -> None:
    model = Decoder(SMALL)
    checkpoint.save(model, SMALL, "memory://models/small", max_shard_bytes=20_000)
    try:
        again = checkpoint.load("memory://models/small")
    finally:
        fsspec.filesystem("memory").rm("/models", recursive=True)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_a_wrong_tensor_is_named(tmp_path: Path) -> None:
    checkpoint.save(Decoder(SMALL), SMALL, str(tmp_path))
    state = load_file(tmp_path / "model.safetensors")
    state["model.norm.bias"] = state.pop("model.norm.weight")
    state["lm_head.weight"] = state["lm_head.weight"][:-1].contiguous()
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"norm\.weight is missing; model\.norm\.bias is not part") as error:
        checkpoint.load(str(tmp_path))
    assert "lm_head.weight has shape [49, 32], expected [50, 32]" in str(error.value)
    with pytest.raises(ValueError, match=r"layers.0.mlp.gate_proj.weight is missing and 12 more"):
        checkpoint.save({"model.norm.weight": torch.ones(32)}, SMALL, str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no config\.json"):
        checkpoint.load(str(tmp_path))
    values = checkpoint.to_hf_config(SMALL)
    (tmp_path / "config.json").write_text(json.dumps(values))
    torch.save({}, tmp_path / "pytorch_model.bin")  # a pickle: never opened
    with pytest.raises(
        ValueError, match=r"model\.safetensors missing; weights are read from safetensors only"
    ):
        checkpoint.load(str(tmp_path))
    for change, message in [
        ({"model_type": "mpt"}, "model_type = 'mpt'"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type = 'yarn'"),
        ({"head_dim": 16}, "head_dim = 16"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
    ]:
        with pytest.raises(ValueError, match=message):
            checkpoint.from_hf_config(values | change)
    del values["hidden_size"]
    with pytest.raises(ValueError, match="hidden_size missing"):
        checkpoint.from_hf_config(values)
