"""The documents: every relative link leads somewhere, and the picture is well-formed."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

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
    wanted = {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/architecture.md", "cluster/README.md"}
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
