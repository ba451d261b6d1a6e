"""The documents: every relative link leads somewhere, the picture is well-formed, what models.md says of models is so."""

import re
import shlex
from dataclasses import replace
from glob import glob
from pathlib import Path
from xml.etree import ElementTree

import pytest

from moxin import cli, plan
from moxin.model import checkpoint
from moxin.model.decoder import Decoder
from moxin.model.presets import PRESETS
from moxin.recipe import ModelConfig

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/*.md", "cluster/*.md")
    for path in ROOT.glob(pattern)
)


def anchors(document: Path) -> set[str]:
    """GitHub's anchors of the headings."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_relative_link_leads_somewhere(name: str) -> None:
    document = ROOT / name
    prose = re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (document.parent / path).resolve() if path else document
        assert linked.exists(), f"{name} links to {target}"
        assert linked.is_relative_to(ROOT), f"{name} links out of the repository: {target}"
        if anchor and linked.suffix == ".md":
            assert anchor in anchors(linked), f"{name} links to {target}"


def test_the_documents_that_a_newcomer_looks_for_are_there() -> None:
    wanted = {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/architecture.md", "docs/models.md"}
    wanted |= {"cluster/README.md"}
    assert wanted <= set(DOCUMENTS)
    licence = (ROOT / "LICENSE").read_text()
    assert "Apache License" in licence
    assert "The moxin authors" in licence
    assert "[yyyy]" not in licence


def test_the_picture_is_wellformed_and_described() -> None:
    root = ElementTree.parse(ROOT / "docs" / "architecture.svg").getroot()
    space = {"svg": "http://www.w3.org/2000/svg"}
    assert root.findtext("svg:title", namespaces=space)
    assert len(root.findtext("svg:desc", namespaces=space) or "") > 100
    assert "](architecture.svg)" in (ROOT / "docs" / "architecture.md").read_text()


def models_document() -> str:
    return (ROOT / "docs" / "models.md").read_text()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with the folders that docs/models.md names, of tiny models; Mistral's has its 32 layers."""
    folder = tmp_path_factory.mktemp("models")
    mistral = ModelConfig(n_layers=32, d_model=8, n_heads=2, n_kv_heads=1, d_ff=8, vocab_size=16)
    mpt = replace(
        mistral, n_layers=2, n_kv_heads=2, d_ff=32, norm="layer", activation="gelu", position="alibi"
    )
    for name, config in (
        ("Mistral-7B-v0.1", mistral),
        ("mpt-7b", mpt),
        ("runs/demo/dpo-0123/model", mistral),
    ):
        checkpoint.save(Decoder(config), config, str(folder / name))
    return folder


def test_the_commands_and_snippets_about_models_run(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folders)
    n_commands = 0
    for language, block in re.findall(r"```(bash|python)\n(.*?)```", models_document(), re.DOTALL):
        if language == "python":
            exec(block, {})
            continue
        for line in block.splitlines():
            name, *words = shlex.split(line, comments=True)
            assert name == "moxin"
            arguments = [found for word in words for found in (sorted(glob(word)) or [word])]
            assert cli.main(arguments) == 0, line
            n_commands += 1
    assert n_commands >= 6


def test_the_tables_of_models_say_what_the_presets_are() -> None:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in models_document().splitlines()]
    ladder = {row[0].strip("`"): row[1:] for row in rows if row[0].strip("`") in PRESETS and len(row) == 7}
    side_by_side = {row[0]: row[1:5] for row in rows if len(row) == 6}
    for name, cells in ladder.items():
        config, counted = PRESETS[name], plan.parameters(PRESETS[name])
        assert [int(cell.replace(",", "")) for cell in (*cells[:4], cells[5])] == [
            counted["total"],
            counted["body"],
            config.n_layers,
            config.d_model,
            config.d_ff,
        ]
        assert cells[4] == f"{config.n_heads} / {config.n_kv_heads}"
    published = [name.strip("`") for name in side_by_side["preset"]]
    assert [*published, *ladder] == list(PRESETS)
    for column, name in enumerate(published):
        config = PRESETS[name]
        said = {row: cells[column] for row, cells in side_by_side.items()}
        assert said["parameters"] == f"{plan.parameters(config)['total']:,}"
        assert said["layers"] == str(config.n_layers)
        assert said["heads × their width"] == f"{config.n_heads} × {config.head_dim}"
        assert said["key/value heads"] == str(config.n_kv_heads)
        assert said["feed-forward"].endswith(f", {config.d_ff}")
        assert said["context"] == f"{config.max_seq_len:,}"
        assert said["vocabulary"] == f"{config.vocab_size:,}"
