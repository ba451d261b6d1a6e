"""Published shapes have the published counts, the ladder's rungs their names' sizes, and the plan agrees with the model."""

import dataclasses

import pytest
import torch

from moxin import plan
from moxin.model.decoder import Decoder
from moxin.model.layouts import family, from_hf_config, to_hf_config
from moxin.model.presets import PRESETS
from moxin.recipe import ModelConfig

PUBLISHED = {
    "moxin_7b": 8_114_180_096,
    "mistral_7b": 7_241_732_096,  # the model card's safetensors metadata
    "mpt_7b": 6_649_286_656,
    "mpt_30b": 29_957_200_896,
}
LADDER = {"60m": 60e6, "125m": 125e6, "350m": 350e6, "760m": 760e6, "1.3b": 1.3e9, "3b": 3e9}
ODD = {
    "tied": dataclasses.replace(PRESETS["60m"], tie_embeddings=True),
    "qk_norm": dataclasses.replace(PRESETS["60m"], qk_norm=True),
    "learned": dataclasses.replace(PRESETS["60m"], position="learned"),
    "gelu": dataclasses.replace(PRESETS["60m"], activation="gelu", norm="layer"),
    "grouped mpt": dataclasses.replace(PRESETS["mpt_7b"], n_kv_heads=4, qk_norm=True, tie_embeddings=False),
}


def on_meta(config: ModelConfig) -> Decoder:
    with torch.device("meta"):
        return Decoder(config)


def test_every_preset_is_one_of_these() -> None:
    assert list(PRESETS) == [*PUBLISHED, *LADDER]


@pytest.mark.parametrize(("name", "count"), PUBLISHED.items())
def test_published_models_have_the_published_count(name: str, count: int) -> None:
    assert on_meta(PRESETS[name]).n_parameters() == count


def test_what_the_published_models_say_of_themselves() -> None:
    """Moxin: arXiv 2412.06845, table 1. MPT: model cards and config.json on the Hub."""
    moxin, mpt, large = (PRESETS[name] for name in ("moxin_7b", "mpt_7b", "mpt_30b"))
    assert (moxin.n_layers, moxin.head_dim, moxin.sliding_window, moxin.max_seq_len) == (36, 128, 4096, 32768)
    assert (mpt.head_dim, mpt.clip_qkv, mpt.max_seq_len, mpt.vocab_size) == (128, None, 2048, 50432)
    assert (large.n_heads, large.head_dim, large.clip_qkv, large.max_seq_len) == (64, 112, 6.0, 8192)


@pytest.mark.parametrize(("name", "size"), LADDER.items())
def test_a_rung_is_as_large_as_its_name(name: str, size: float) -> None:
    config = PRESETS[name]
    assert on_meta(config).n_parameters() == pytest.approx(size, rel=0.1)
    assert config.n_heads == 4 * config.n_kv_heads
    assert config.head_dim in (64, 128)


@pytest.mark.parametrize("config", [*PRESETS.values(), *ODD.values()], ids=[*PRESETS, *ODD])
def test_the_plan_counts_what_the_model_has(config: ModelConfig) -> None:
    model = on_meta(config)
    counted = plan.parameters(config)
    assert counted["total"] == model.n_parameters()
    assert counted["body"] == model.n_parameters(embeddings=False)
    shown = {quantity: value for quantity, value, _ in plan.model_rows(config)}
    assert shown["parameters"] == f"{model.n_parameters():,}"


def test_the_cache_of_moxin_is_as_computed_by_hand() -> None:
    shown = {quantity: value for quantity, value, _ in plan.model_rows(PRESETS["moxin_7b"])}
    assert shown["KV cache per token"] == f"{144 * 1024:,} B"
    assert shown["KV cache at 32,768 tokens"] == "576.0 of 4,608.0 MiB"  # the eighth that the report names


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_be_a_folder(name: str) -> None:
    config = PRESETS[name]
    assert family(config) == ("mpt" if name.startswith("mpt") else "mistral")
    assert from_hf_config(to_hf_config(config)) == config
