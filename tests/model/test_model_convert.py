"""Model folders into model folders: other types and shards, more layers, and how little memory it takes."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest
import torch
from small import noisy
from transformers import AutoModelForCausalLM

from moxin.artifact import Artifact
from moxin.model import checkpoint
from moxin.model.convert import Layer, convert, expand_depth, expansion
from moxin.model.decoder import Decoder
from moxin.recipe import ModelConfig

ROOT = Path(__file__).resolve().parents[2]
MISTRAL = ModelConfig(
    n_layers=4,
    d_model=32,
    n_heads=4,
    n_kv_heads=2,
    d_ff=64,
    vocab_size=50,
    max_seq_len=64,
    sliding_window=8,
)
MPT = dataclasses.replace(
    MISTRAL,
    n_kv_heads=4,
    d_ff=128,
    sliding_window=None,
    norm="layer",
    activation="gelu",
    position="alibi",
    tie_embeddings=True,
    init="kaiming",
)
OURS = dataclasses.replace(MISTRAL, sliding_window=None, layer_windows=(8, 4, 0), qk_norm=True)
each = pytest.mark.parametrize("config", [MISTRAL, MPT, OURS], ids=["mistral", "mpt", "windows by layer"])
TOKENS = torch.randint(50, (2, 30), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def source(tmp_path: Path, config: ModelConfig) -> Path:
    """A folder with companions beside its weights."""
    folder = tmp_path / "source"
    checkpoint.save(noisy(config), config, str(folder))
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "eos_token_id": [2, 3], "bos_token_id": 1}))
    (folder / "tokenizer.json").write_text('{"model": "…"}')
    (folder / "LICENSE").write_text("Apache-2.0")
    (folder / "manifest.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    return folder


def logits(url: Path | str) -> torch.Tensor:
    with torch.no_grad():
        return checkpoint.load(str(url), "float32")(TOKENS)


def manifest(folder: Path) -> Artifact:
    values = json.loads((folder / "manifest.json").read_text())
    return Artifact(values["stage"], values["key"], str(folder), values)


@each
def test_a_folder_is_the_same_model_in_other_types_and_shards(
    source: Path, config: ModelConfig, tmp_path: Path
) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    convert(str(source), str(there), "float32", max_shard_bytes=20_000)
    assert len(list(there.glob("model-*-of-*.safetensors"))) > 1
    convert(str(there), str(back), "float32")
    assert (back / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    half = tmp_path / "half"
    convert(str(source), str(half), "bfloat16")
    loaded = checkpoint.load(str(half))
    for (name, given), (_, got) in zip(
        noisy(config).bfloat16().named_parameters(), loaded.named_parameters(), strict=True
    ):
        assert torch.equal(given, got), name
    assert checkpoint.load_config(str(half)) == config


@each
def test_companions_and_special_tokens_go_along_and_pickles_do_not(
    source: Path, config: ModelConfig, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    convert(str(source), str(target), "bfloat16")
    names = {"config.json", "model.safetensors", "tokenizer.json", "LICENSE", "manifest.json"}
    assert {path.name for path in target.iterdir()} == names
    values = json.loads((target / "config.json").read_text())
    assert (values["eos_token_id"], values["bos_token_id"]) == ([2, 3], 1)
    assert values["dtype"] == "bfloat16"
    made = manifest(target)
    assert made.name == "convert"
    assert made.manifest["config"]["source"] == str(source)
    assert set(made.manifest["files"]) == names - {"manifest.json"}
    assert made.verify() == []
    (target / "tokenizer.json").write_text("{}")
    assert made.verify() == [f"{target}/tokenizer.json: content does not match its SHA-256"]


@pytest.mark.parametrize("config", [MISTRAL, MPT], ids=["mistral", "mpt"])
@pytest.mark.parametrize("how", ["zero", "copy"])
def test_transformers_computes_what_was_converted_and_deepened(
    source: Path, config: ModelConfig, how: str, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    expand_depth(str(source), str(target), 6, how, dtype="float32", max_shard_bytes=30_000)
    theirs, report = AutoModelForCausalLM.from_pretrained(target, output_loading_info=True)
    assert not any(report.values()), report
    with torch.no_grad():
        torch.testing.assert_close(theirs(TOKENS).logits, logits(target), rtol=1e-5, atol=1e-5)


def test_object_stores_on_both_sides() -> None:
    checkpoint.save(noisy(MISTRAL), MISTRAL, "memory://models/source")
    try:
        convert("memory://models/source", "memory://models/target", "float32", 20_000)
        assert torch.equal(logits("memory://models/target"), logits("memory://models/source"))
    finally:
        fsspec.filesystem("memory").rm("/models", recursive=True)


@each
def test_layers_that_add_nothing_leave_every_bit(source: Path, config: ModelConfig, tmp_path: Path) -> None:
    target = tmp_path / "target"
    for n_layers in (5, 6, 8):
        plan = expand_depth(str(source), str(target / str(n_layers)), n_layers, "zero", dtype="float32")
        assert len(plan) == n_layers
        deep = checkpoint.load(str(target / str(n_layers)))
        assert deep.config.windows == tuple(config.windows[layer.source] for layer in plan)
        with torch.no_grad():
            assert torch.equal(deep(TOKENS), logits(source))
    # and they learn: the gradient of an output projection is not 0
    deep(TOKENS).square().sum().backward()
    added = next(number for number, layer in enumerate(plan) if layer.added)
    assert deep.blocks[added].attention.out.weight.grad.abs().max() > 0
    assert deep.blocks[added].mlp.down.weight.grad.abs().max() > 0


@each
def test_zero_is_to_the_bit_in_bfloat16_too(source: Path, config: ModelConfig, tmp_path: Path) -> None:
    convert(str(source), str(tmp_path / "half"), "bfloat16")
    expand_depth(str(tmp_path / "half"), str(tmp_path / "deep"), 7, "zero")
    shallow, deep = checkpoint.load(str(tmp_path / "half")), checkpoint.load(str(tmp_path / "deep"))
    with torch.no_grad():
        assert torch.equal(deep(TOKENS), shallow(TOKENS))


@each
@pytest.mark.parametrize("how", ["zero", "copy", "random"])
def test_what_an_added_layer_holds(source: Path, config: ModelConfig, how: str, tmp_path: Path) -> None:
    expand_depth(str(source), str(tmp_path / "deep"), 6, how, seed=3, dtype="float32", max_shard_bytes=20_000)
    expand_depth(str(source), str(tmp_path / "again"), 6, how, seed=3, dtype="float32")
    expand_depth(str(source), str(tmp_path / "other"), 6, how, seed=4, dtype="float32")
    shallow = noisy(config)
    deep, again, other = (checkpoint.load(str(tmp_path / name)) for name in ("deep", "again", "other"))
    assert all(torch.equal(a, b) for a, b in zip(deep.parameters(), again.parameters(), strict=True))
    assert all(
        torch.equal(deep.get_parameter(n), p) for n, p in shallow.named_parameters() if "blocks" not in n
    )
    fresh = set()
    for number, layer in enumerate(expansion(4, 6)):
        for name, given in shallow.blocks[layer.source].named_parameters():
            got = deep.blocks[number].get_parameter(name)
            elsewhere = other.blocks[number].get_parameter(name)
            residual = name in ("attention.out.weight", "mlp.down.weight")
            if not layer.added or how == "copy" or (how == "zero" and not residual):
                assert torch.equal(got, given)
            elif how == "zero":
                assert not got.any()
            elif got.ndim == 1:
                assert got.eq(1).all()
            else:
                assert not torch.equal(got, elsewhere)
                expected = dict(Decoder(deep.config).blocks[number].named_parameters())[name]
                assert got.std().item() == pytest.approx(expected.std().item(), rel=0.2)
                fresh.add(got.flatten()[0].item())
    assert len(fresh) == (2 * 4 if how == "random" else 0)
    made = manifest(tmp_path / "deep").manifest
    assert made["config"] == {
        "source": str(source),
        "how": how,
        "seed": 3,
        "n_layers": 6,
        "dtype": "float32",
        "max_shard_bytes": 20_000,
    }
    assert made["counts"]["layers"] == [
        {"source": s, "added": a}
        for s, a in [(0, False), (1, False), (1, True), (2, False), (3, False), (3, True)]
    ]


def test_the_way_from_mistral_to_moxin() -> None:
    plan = expansion(32, 36)
    assert [layer.source for layer in plan if layer.added] == [7, 15, 23, 31]
    assert [layer.source for layer in plan if not layer.added] == list(range(32))
    assert [number for number, layer in enumerate(plan) if layer.added] == [8, 17, 26, 35]
    assert expansion(1, 2) == [Layer(0, False), Layer(0, True)]
    assert [layer.added for layer in expansion(3, 6)] == [False, True] * 3


@pytest.mark.parametrize("config", [MISTRAL], ids=["mistral"])
def test_what_cannot_be_made_is_refused_before_anything_is_written(
    source: Path, config: ModelConfig, tmp_path: Path
) -> None:
    target = str(tmp_path / "target")
    for n_layers in (0, 3, 4, 9):
        with pytest.raises(
            ValueError, match=rf"--layers {n_layers}: a model of 4 layers grows to between 5 and 8"
        ):
            expand_depth(str(source), target, n_layers)
    with pytest.raises(ValueError, match="how = 'clone': expected one of zero, copy, random"):
        expand_depth(str(source), target, 5, "clone")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="dtype 'int8' is not one of"):
        convert(str(source), target, "int8")
    with pytest.raises(ValueError, match=r"nowhere: no config\.json"):
        convert(str(tmp_path / "nowhere"), target)
    assert not Path(target).exists()
    for full in (str(source), str(tmp_path)):
        for work in (convert, lambda a, b: expand_depth(a, b, 5)):
            with pytest.raises(ValueError, match=r"is not empty .*; name a folder that does not exist yet"):
                work(str(source), full)


@pytest.mark.parametrize("config", [MISTRAL], ids=["mistral"])
def test_a_source_that_is_cut_off_leaves_no_model(source: Path, config: ModelConfig, tmp_path: Path) -> None:
    whole = (source / "model.safetensors").read_bytes()
    (source / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(ValueError, match="the file is cut off"):
        convert(str(source), str(tmp_path / "target"))
    assert not (tmp_path / "target").exists()


@pytest.mark.slow
def test_a_model_of_several_shards_is_never_in_memory(tmp_path: Path) -> None:
    """247 MB in five shards, in a process of its own: 55 MB above the imports, of which the largest tensor has 49."""
    command = [sys.executable, "benchmarks/convert_memory.py", "--preset", "125m", "--max-shard-mb", "60"]
    command += ["--from-dtype", "bfloat16", "--folder", str(tmp_path), "--results", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300)
    (result,) = tmp_path.glob("convert_memory-*.json")
    (found,) = json.loads(result.read_text())["conversions"]
    assert found["shards"] == 5
    assert found["model_bytes"] > 4 * found["largest_shard_bytes"]
    assert 40e6 < found["rise_bytes"] < 1.5 * found["largest_shard_bytes"]
