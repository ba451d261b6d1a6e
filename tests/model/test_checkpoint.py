"""Checkpoints: the round trip to the bit, `transformers` as the reader and the writer, and errors that name the tensor."""

import dataclasses
import json
from pathlib import Path

import fsspec
import pytest
import torch
from safetensors.torch import load_file, save_file
from small import by_their_names, noisy
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    MistralConfig,
    MistralForCausalLM,
    MptConfig,
    MptForCausalLM,
)

from moxin.model import checkpoint
from moxin.model.decoder import Decoder
from moxin.model.huggingface import export
from moxin.model.layouts import family, from_hf_config, to_hf_config
from moxin.recipe import ModelConfig

MISTRAL = ModelConfig(
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
MPT = ModelConfig(
    n_layers=2,
    d_model=48,
    n_heads=12,
    n_kv_heads=12,
    d_ff=192,
    vocab_size=50,
    max_seq_len=64,
    norm="layer",
    activation="gelu",
    position="alibi",
    tie_embeddings=True,
    init="kaiming",
)
THEIRS = {
    "mistral": MISTRAL,
    "mistral, tied": dataclasses.replace(MISTRAL, tie_embeddings=True, sliding_window=None),
    "mistral, kaiming": dataclasses.replace(MISTRAL, init="kaiming"),
    "mpt": MPT,
    "mpt, untied, clipped": dataclasses.replace(MPT, tie_embeddings=False, clip_qkv=1.0, norm_eps=1e-4),
    "mpt, normal": dataclasses.replace(MPT, init="normal", init_std=0.03),
}
OURS = {
    "windows by layer": dataclasses.replace(MISTRAL, sliding_window=None, layer_windows=(8, 0)),
    "alibi, grouped, windowed": dataclasses.replace(MPT, n_kv_heads=3, sliding_window=8, alibi_bias_max=4.0),
    "qk_norm, learned, tied": dataclasses.replace(
        MISTRAL, qk_norm=True, position="learned", rope_theta=1e4, tie_embeddings=True
    ),
}
CONFIGS = {**THEIRS, **OURS}
TOKENS = torch.randint(50, (2, 30), generator=torch.Generator().manual_seed(0))


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


def test_families_are_told_apart() -> None:
    assert {name: family(config) for name, config in CONFIGS.items()} == {
        name: name.split(",")[0] if name in THEIRS else "moxin" for name in CONFIGS
    }


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("max_shard_bytes", [None, 10_000])
def test_round_trip_to_the_bit(
    config: ModelConfig, dtype: str, max_shard_bytes: int | None, tmp_path: Path
) -> None:
    model = noisy(config).to(checkpoint.DTYPES[dtype])
    checkpoint.save(model, config, str(tmp_path), dtype, max_shard_bytes)
    files = list(tmp_path.glob("*.safetensors"))
    assert (len(files) > 1) == (max_shard_bytes is not None)
    # the library itself reads the files, with the names of the family
    found = {name: tensor for file in files for name, tensor in load_file(file).items()}
    expected = by_their_names(model)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    again = checkpoint.load(str(tmp_path))
    assert again.config == config == checkpoint.load_config(str(tmp_path))
    assert again.state_dict().keys() == model.state_dict().keys()
    for name, tensor in again.state_dict().items():
        assert tensor.dtype == checkpoint.DTYPES[dtype]
        assert torch.equal(tensor, model.state_dict()[name]), name
    assert (again.head.weight is again.embedding.weight) == config.tie_embeddings
    assert next(checkpoint.load(str(tmp_path), "float32").parameters()).dtype == torch.float32


def test_steeper_slopes_than_transformers_knows(tokenizer_folder: Path, tmp_path: Path) -> None:
    """MPT-7B-StoryWriter's `alibi_bias_max` is 16: kept in the folder, refused where transformers is to compute it."""
    model = noisy(dataclasses.replace(MPT, alibi_bias_max=16.0))
    checkpoint.save(model, model.config, str(tmp_path / "model"))
    again = checkpoint.load(str(tmp_path / "model"))
    assert again.config == model.config
    with torch.no_grad():
        assert torch.equal(again(TOKENS), model(TOKENS))
    with pytest.raises(ValueError, match=r"model\.alibi_bias_max = 16: transformers' MPT takes 8"):
        export(model, str(tokenizer_folder), str(tmp_path / "release"))


@pytest.mark.parametrize("config", THEIRS.values(), ids=THEIRS.keys())
def test_transformers_loads_our_export(config: ModelConfig, tokenizer_folder: Path, tmp_path: Path) -> None:
    model, out = noisy(config), tmp_path / "release"
    export(model, str(tokenizer_folder), str(out), max_shard_bytes=20_000, dtype="float32")
    shards = list(out.glob("model-*-of-*.safetensors"))
    assert len(shards) > 1
    largest = max(20_000, max(tensor.numel() * 4 for tensor in by_their_names(model).values()))
    assert all(path.stat().st_size <= largest + 2000 for path in shards)  # and a header
    theirs, report = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert isinstance(theirs, MptForCausalLM if config.norm == "layer" else MistralForCausalLM)
    assert not any(report.values()), report
    with torch.no_grad():
        torch.testing.assert_close(theirs(TOKENS).logits, model(TOKENS), rtol=1e-5, atol=1e-5)
    generation = GenerationConfig.from_pretrained(out)
    assert generation.eos_token_id == [2, 3]
    assert (generation.bos_token_id, generation.pad_token_id) == (1, 0)
    assert (out / "tokenizer.json").read_bytes() == (tokenizer_folder / "tokenizer.json").read_bytes()
    assert checkpoint.load_config(str(out)) == config


@pytest.mark.parametrize("config", OURS.values(), ids=OURS.keys())
def test_what_transformers_cannot_compute_is_not_exported(
    config: ModelConfig, tokenizer_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="transformers has no class for this model"):
        export(Decoder(config), str(tokenizer_folder), str(tmp_path / "release"))
    assert not (tmp_path / "release").exists()


def theirs_to_save(kind: str) -> MistralForCausalLM | MptForCausalLM:
    torch.manual_seed(0)
    if kind == "mistral":
        config = MistralConfig(
            vocab_size=50,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=1,
            head_dim=8,
            rope_parameters={"rope_type": "default", "rope_theta": 777.0},
        )
        return MistralForCausalLM(config).eval()
    attention = {"clip_qkv": 0.02} if "clipped" in kind else {}
    tied = "untied" not in kind
    return MptForCausalLM(
        MptConfig(
            vocab_size=50, d_model=48, n_heads=12, n_layers=3, attn_config=attention, tie_word_embeddings=tied
        )
    ).eval()


@pytest.mark.parametrize("max_shard_size", ["20KB", "1GB"])
@pytest.mark.parametrize("kind", ["mistral", "mpt", "mpt, untied, clipped"])
def test_we_load_what_transformers_saves(kind: str, max_shard_size: str, tmp_path: Path) -> None:
    theirs = theirs_to_save(kind)
    theirs.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    assert (tmp_path / "model.safetensors.index.json").exists() == (max_shard_size == "20KB")
    ours = checkpoint.load(str(tmp_path))
    if kind == "mistral":
        assert (ours.config.rope_theta, ours.config.sliding_window) == (777.0, 4096)
        assert ours.config.max_seq_len == 131_072
    else:
        assert ours.config.tie_embeddings == (kind == "mpt")
        assert ours.config.clip_qkv == (0.02 if "clipped" in kind else None)
    with torch.no_grad():
        torch.testing.assert_close(ours(TOKENS), theirs(TOKENS).logits, rtol=1e-5, atol=1e-5)
    # and what we write of it transformers reads again, with the tables that are shared written once
    checkpoint.save(ours, ours.config, str(tmp_path / "again"))
    again, report = AutoModelForCausalLM.from_pretrained(tmp_path / "again", output_loading_info=True)
    assert not any(report.values()), report
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in theirs.state_dict().items())


def test_files_of_several_types_are_loaded_in_the_one_that_holds_them_all(tmp_path: Path) -> None:
    model = noisy(MISTRAL).bfloat16()
    checkpoint.save(model, MISTRAL, str(tmp_path), "bfloat16")
    state = load_file(tmp_path / "model.safetensors")
    state["model.norm.weight"] = state["model.norm.weight"].float()
    state = dict(sorted(state.items()))  # in an order that is not ours
    save_file(state, tmp_path / "model.safetensors")
    again = checkpoint.load(str(tmp_path))
    assert again.norm.weight.dtype == again.head.weight.dtype == torch.float32
    assert all(torch.equal(a, b.float()) for a, b in zip(again.parameters(), model.parameters(), strict=True))


def test_a_shared_table_that_was_written_twice_is_read(tmp_path: Path) -> None:
    config = CONFIGS["mistral, tied"]
    checkpoint.save(noisy(config), config, str(tmp_path))
    state = load_file(tmp_path / "model.safetensors")
    state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    save_file(state, tmp_path / "model.safetensors")
    assert torch.equal(checkpoint.load(str(tmp_path)).embedding.weight, state["lm_head.weight"])


@pytest.mark.parametrize("max_shard_bytes", [None, 20_000])
@pytest.mark.parametrize("config", [MISTRAL, MPT], ids=["mistral", "mpt"])
def test_an_object_store_serves_as_well(config: ModelConfig, max_shard_bytes: int | None) -> None:
    model = Decoder(config)
    checkpoint.save(model, config, "memory://models/small", max_shard_bytes=max_shard_bytes)
    try:
        again = checkpoint.load("memory://models/small")
    finally:
        fsspec.filesystem("memory").rm("/models", recursive=True)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_a_wrong_tensor_is_named(tmp_path: Path) -> None:
    checkpoint.save(Decoder(MISTRAL), MISTRAL, str(tmp_path))
    state = load_file(tmp_path / "model.safetensors")
    state["model.norm.bias"] = state.pop("model.norm.weight")
    state["lm_head.weight"] = state["lm_head.weight"][:-1].contiguous()
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"norm\.weight is missing; model\.norm\.bias is not part") as error:
        checkpoint.load(str(tmp_path))
    assert "lm_head.weight has shape [49, 32], expected [50, 32]" in str(error.value)
    assert "Does config.json belong to these weights?" in str(error.value)
    with pytest.raises(ValueError, match=r"embedding\.weight is missing; .* and 6 more\."):
        checkpoint.save({"norm.weight": torch.ones(32)}, MISTRAL, str(tmp_path / "new"))
    whole = Decoder(MISTRAL).state_dict()
    with pytest.raises(ValueError, match=r"norm\.weight has shape \[33\], expected \[32\]"):
        checkpoint.save({**whole, "norm.weight": torch.ones(33)}, MISTRAL, str(tmp_path / "new"))
    with pytest.raises(ValueError, match="dtype 'fp8' is not one of float32, bfloat16, float16"):
        checkpoint.save(Decoder(MISTRAL), MISTRAL, str(tmp_path / "new"), "fp8")
    assert not (tmp_path / "new").exists()


def test_weights_of_the_other_family_are_refused(tmp_path: Path) -> None:
    for of, other in ((MISTRAL, MPT), (MPT, MISTRAL)):
        checkpoint.save(Decoder(of), of, str(tmp_path))
        (tmp_path / "config.json").write_text(json.dumps(to_hf_config(other)))
        with pytest.raises(
            ValueError, match=r"is missing; .*Does config\.json belong to these weights"
        ) as error:
            checkpoint.load(str(tmp_path))
        first = "transformer.wte.weight" if other is MPT else "model.embed_tokens.weight"
        assert f"{first} is missing" in str(error.value)


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(to_hf_config(MISTRAL)))
    mark = tmp_path / "opened"

    class Trap:
        def __reduce__(self) -> tuple:
            return Path.touch, (mark,)

    torch.save({"model.norm.weight": Trap()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(
        ValueError, match=r"model\.safetensors missing; weights are read from safetensors only"
    ):
        checkpoint.load(str(tmp_path))
    assert not mark.exists()


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no config\.json"):
        checkpoint.load(str(tmp_path))


def nested(values: dict, change: dict) -> dict:
    return {
        **values,
        **{
            name: {**values[name], **value} if isinstance(values.get(name), dict) else value
            for name, value in change.items()
        },
    }


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        (MISTRAL, {"model_type": "llama"}, "model_type = 'llama', expected one of mistral, mpt, moxin"),
        (MISTRAL, {"rope_parameters": {"rope_type": "yarn"}}, "rope_type = 'yarn'"),
        (MISTRAL, {"head_dim": 16}, "head_dim = 16 is not hidden_size / num_attention_heads = 8"),
        (MISTRAL, {"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        (MISTRAL, {"sliding_window": 0}, r"sliding_window = 0"),
        (MISTRAL, {"num_key_value_heads": 3}, r"n_kv_heads = 3"),
        (MPT, {"no_bias": False}, "no_bias = False is not supported, only True"),
        (MPT, {"expansion_ratio": 3}, "expansion_ratio = 3"),
        (MPT, {"norm_type": "rmsnorm"}, "norm_type = 'rmsnorm'"),
        (MPT, {"logit_scale": 0.5}, r"logit_scale = 0\.5"),
        (MPT, {"attn_config": {"alibi": False}}, "alibi = False"),
        (MPT, {"attn_config": {"attn_type": "multiquery_attention"}}, "attn_type = 'multiquery_attention'"),
        (MPT, {"attn_config": {"qk_ln": True}}, "qk_ln = True"),
        (MPT, {"attn_config": {"softmax_scale": 0.1}}, r"softmax_scale = 0\.1"),
        (MPT, {"attn_config": {"prefix_lm": True}}, "prefix_lm = True"),
        (MPT, {"attn_config": {"sliding_window_size": 128}}, "sliding_window_size = 128"),
    ],
)
def test_models_that_are_not_ours_are_refused_by_the_setting(
    config: ModelConfig, change: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        from_hf_config(nested(to_hf_config(config), change))


@pytest.mark.parametrize(("config", "name"), [(MISTRAL, "hidden_size"), (MPT, "d_model")])
def test_a_missing_setting_is_named(config: ModelConfig, name: str) -> None:
    values = to_hf_config(config)
    del values[name]
    with pytest.raises(ValueError, match=rf"config\.json: {name} missing"):
        from_hf_config(values)


def test_published_configurations_are_understood() -> None:
    """Moxin's and MPT-30B's config.json as they lie on the Hub, without what no model reads."""
    moxin = {
        "architectures": ["MistralForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "initializer_range": 0.02,
        "intermediate_size": 14336,
        "max_position_embeddings": 32768,
        "model_type": "mistral",
        "num_attention_heads": 32,
        "num_hidden_layers": 36,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "transformers_version": "4.34.0",
        "use_cache": True,
        "vocab_size": 32000,
    }
    mpt_30b = {
        "architectures": ["MPTForCausalLM"],
        "attn_config": {
            "alibi": True,
            "alibi_bias_max": 8,
            "attn_impl": "torch",
            "attn_pdrop": 0,
            "attn_type": "multihead_attention",
            "attn_uses_sequence_id": False,
            "clip_qkv": 6,
            "prefix_lm": False,
            "qk_ln": False,
            "softmax_scale": None,
        },
        "d_model": 7168,
        "emb_pdrop": 0,
        "embedding_fraction": 1.0,
        "expansion_ratio": 4,
        "init_config": {"name": "kaiming_normal_", "init_div_is_residual": True},
        "init_device": "cpu",
        "learned_pos_emb": True,
        "logit_scale": None,
        "max_seq_len": 8192,
        "model_type": "mpt",
        "n_heads": 64,
        "n_layers": 48,
        "no_bias": True,
        "norm_type": "low_precision_layernorm",
        "resid_pdrop": 0,
        "torch_dtype": "bfloat16",
        "vocab_size": 50432,
    }
    from moxin.model.presets import PRESETS

    assert from_hf_config(moxin) == PRESETS["moxin_7b"]
    assert from_hf_config(mpt_30b) == PRESETS["mpt_30b"]
