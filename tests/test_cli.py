"""The command `moxin`: what it prints, what it leaves, and how it ends when something is wrong."""

import dataclasses
import json
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
import torch
from small import noisy

from moxin import __version__, cli
from moxin.model import checkpoint
from moxin.recipe import ModelConfig

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ModelConfig(
    n_layers=2, d_model=32, n_heads=4, n_kv_heads=2, d_ff=64, vocab_size=50, sliding_window=8
)
MPT = dataclasses.replace(
    CONFIG,
    n_kv_heads=4,
    d_ff=128,
    sliding_window=None,
    norm="layer",
    activation="gelu",
    position="alibi",
    tie_embeddings=True,
)


@pytest.fixture(params=[CONFIG, MPT], ids=["mistral", "mpt"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    checkpoint.save(noisy(request.param), request.param, str(tmp_path / "source"))
    return str(tmp_path / "source")


def shown(capsys: pytest.CaptureFixture[str]) -> str:
    """Both streams as one line, since the console wraps."""
    output = capsys.readouterr()
    return " ".join((output.out + output.err).split())


def test_the_entry_point_is_this_command() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"moxin": "moxin.cli:main"}
    module, _, function = scripts["moxin"].partition(":")
    assert getattr(import_module(module), function) is cli.main


def test_it_runs_as_a_process_and_knows_its_version() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "moxin.cli", "--version"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, f"moxin {__version__}\n")
    done = subprocess.run(
        [sys.executable, "-m", "moxin.cli", "model", "show", "none"],
        cwd=ROOT,
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 2


def test_a_preset_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["model", "show", "moxin_7b"]) == 0
    text = shown(capsys)
    for part in ("Model moxin_7b", "8,114,180,096", "7,852,036,096", "576.0 of 4,608.0 MiB", "147,456 B"):
        assert part in text
    assert cli.main(["model", "show", "mpt_30b"]) == 0
    assert "29,957,200,896" in shown(capsys)


def test_a_folder_is_shown(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["model", "show", source]) == 0
    assert f"{checkpoint.load(source).n_parameters():,}" in shown(capsys)


def test_what_is_no_model_is_answered_with_the_nearest_preset(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["model", "show", "moxin-7b"]) == 2
    assert "'moxin-7b' is no preset and no model folder; did you mean 'moxin_7b'?" in shown(capsys)
    (tmp_path / "a").write_text("")
    assert cli.main(["model", "show", str(tmp_path)]) == 2
    assert "no config.json" in shown(capsys)


def test_a_folder_is_converted(source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = str(tmp_path / "target")
    command = ["model", "convert", source, target]
    assert cli.main([*command, "--max-shard", "20KB", "--dtype", "float32"]) == 0
    assert f"wrote {target}" in shown(capsys).replace("\n", "")
    assert len(list(Path(target).glob("model-*.safetensors"))) > 1
    for a, b in zip(checkpoint.load(source).parameters(), checkpoint.load(target).parameters(), strict=True):
        assert torch.equal(a, b)
    assert cli.main(command) == 2
    assert "is not empty" in shown(capsys)
    assert cli.main(["model", "convert", source, str(tmp_path / "half")]) == 0
    assert next(checkpoint.load(str(tmp_path / "half")).parameters()).dtype == torch.bfloat16


def test_a_folder_is_deepened(source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = str(tmp_path / "deep")
    assert cli.main(["model", "expand", source, target, "--layers", "3", "--dtype", "float32"]) == 0
    assert "3 layers, of which 2 were added (zero)" in shown(capsys)
    manifest = json.loads(Path(target, "manifest.json").read_text())
    assert (manifest["stage"], manifest["config"]["how"], manifest["config"]["seed"]) == ("expand", "zero", 0)
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(checkpoint.load(target)(tokens), checkpoint.load(source)(tokens))
    assert cli.main(["model", "expand", source, str(tmp_path / "more"), "--layers", "5"]) == 2
    assert "--layers 5: a model of 2 layers grows to between 3 and 4" in shown(capsys)
    options = ["--layers", "4", "--how", "random", "--seed", "7"]
    assert cli.main(["model", "expand", source, str(tmp_path / "fresh"), *options]) == 0
    assert "layers, of which 1, 3 were added (random)" in shown(capsys)


def test_weights_that_do_not_fit_end_with_2(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    values = json.loads(Path(source, "config.json").read_text())
    name = "hidden_size" if "hidden_size" in values else "d_model"
    Path(source, "config.json").write_text(json.dumps({**values, name: 64, "head_dim": 16}))
    assert cli.main(["model", "convert", source, source + "-target"]) == 2
    text = shown(capsys)
    assert "has shape [50, 32], expected [50, 64]" in text
    assert "Traceback" not in text
    assert not Path(source + "-target").exists()


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["model"],
        ["model", "shrink"],
        ["model", "expand", "a", "b"],
        ["model", "expand", "a", "b", "--layers", "x"],
        ["model", "expand", "a", "b", "--layers", "3", "--how", "clone"],
        ["model", "convert", "a", "b", "--dtype", "fp8"],
        ["model", "convert", "a", "b", "--max-shard", "big"],
        ["model", "convert", "a", "b", "--max-shard", "0"],
        ["model", "convert", "a", "b", "--max", "5GB"],
    ],
    ids=" ".join,
)
def test_a_wrong_command_ends_with_2(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(command)
    assert ended.value.code == 2
    assert "usage: moxin" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [("5GB", 5 * 10**9), ("500MB", 5 * 10**8), ("1.5k", 1500), ("20 KB", 20_000), ("7", 7), ("7B", 7)],
)
def test_sizes_are_read_in_thousands(text: str, n_bytes: int) -> None:
    assert cli._size(text) == n_bytes
