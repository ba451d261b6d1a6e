"""`moxin chat` in the terminal, and model folders that cannot be served."""

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from serve_helpers import FakeEngine, served, tiny_tokenizer

from moxin import cli
from moxin.chat import open_talk
from moxin.model import huggingface
from moxin.model.decoder import Decoder
from moxin.recipe import ModelConfig
from serve.app import parse
from serve.engine_deployment import EngineSettings, engine_of

TOKENIZER = tiny_tokenizer()


@pytest.fixture
def url() -> Iterator[str]:
    with served(FakeEngine(TOKENIZER, "Ada \x1b[31mowns it."), TOKENIZER, max_len=300) as (base_url, _):
        yield base_url


def test_questions_of_a_pipe_are_answered(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "sys.stdin", io.StringIO("Who owns the dog?\n/again\n/wrong\n/new\n/again\nWho?\n/quit\nno\n")
    )
    assert cli.main(["chat", "--url", f"{url}/v1", "--system", "Be short."]) == 0
    shown = capsys.readouterr()
    assert shown.out.count("Ada [31mowns it.\n") == 3  # what would command the terminal is left out
    assert "no such command" in shown.out + shown.err
    assert "nothing was asked yet" in shown.out + shown.err


def test_a_talk_keeps_what_was_said_and_drops_what_was_refused(url: str) -> None:
    talk = open_talk(url, "", "", {"max_tokens": 50, "seed": None})
    assert talk.model == "tiny"
    assert "".join(talk.ask("Who?")) == "Ada \x1b[31mowns it."
    assert talk.n_tokens > 3
    pieces = talk.ask("And?")
    next(pieces)
    pieces.close()
    assert [turn["role"] for turn in talk.turns] == ["user", "assistant", "user", "assistant"]
    with pytest.raises(ValueError, match="context holds 300"):
        list(talk.ask("dog " * 500))
    assert len(talk.turns) == 4


def test_servers_that_refuse(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["chat", "--url", "http://127.0.0.1:9"]) == 2
    shown = capsys.readouterr()
    assert "does not answer" in shown.out + shown.err
    with pytest.raises(ValueError, match="serves tiny"):
        open_talk(url, "other", "", {})
    monkeypatch.delenv("MOXIN_API_KEY", raising=False)
    with served(FakeEngine(TOKENIZER, "x"), TOKENIZER, keys=("k",)) as (locked, _):
        with pytest.raises(ValueError, match="set MOXIN_API_KEY"):
            open_talk(locked, "", "", {})
        monkeypatch.setenv("MOXIN_API_KEY", "k,other")
        assert open_talk(locked, "", "", {}).model == "tiny"


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("folders")
    config = ModelConfig(n_layers=1, d_model=32, n_heads=4, n_kv_heads=2, d_ff=64, vocab_size=300)
    TOKENIZER.save(str(folder / "tokenizer"))
    huggingface.export(Decoder(config), str(folder / "tokenizer"), str(folder / "release"), dtype="float32")
    return folder / "release"


def test_folders_that_cannot_be_served_are_refused_before_anything_starts(
    release: Path, tmp_path: Path
) -> None:
    parse({"model": str(release)})

    def broken(name: str) -> Path:
        return Path(shutil.copytree(release, tmp_path / name))

    for missing in ("config.json", "tokenizer.json", "model.safetensors"):
        folder = broken(missing)
        (folder / missing).unlink()
        with pytest.raises(ValueError, match=r"config\.json|tokenizer\.json|safetensors"):
            parse({"model": str(folder)})
    folder = broken("foreign")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**config, "model_type": "wizard", "architectures": ["WizardLM"]})
    )
    with pytest.raises(ValueError, match="wizard"):
        parse({"model": str(folder)})
    folder = broken("cut")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ValueError, match="safetensors"):
        parse({"model": str(folder)})
    folder = broken("pickled")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="safetensors"):
        parse({"model": str(folder)})
    with pytest.raises(ValueError, match="weights = 'int3'"):
        parse({"model": str(release), "weights": "int3"})


def test_the_settings_of_an_engine_reach_it(release: Path) -> None:
    settings = EngineSettings(str(release), "tiny", "cpu", 4, 0.0, "int8", 2, 64, 128, "int8", 3)
    engine = engine_of(settings)
    assert (engine.max_len, engine.speculate, engine.cache.n_rows) == (64, 3, 2)
    assert engine.model.layers[0].qkv.scales is not None
    assert engine.grammars is not None
