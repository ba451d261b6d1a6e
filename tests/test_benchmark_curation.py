"""The corpus that curation is measured on: distinct, of the size that was asked for, with copies as alike as it says."""

import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import zstandard

sys.path.append(str(Path(__file__).resolve().parent.parent / "benchmarks"))

import curation_corpus as corpus


def shingles(text: str) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[k : k + 5]) for k in range(len(words) - 4)}


@pytest.fixture
def originals(tmp_path: Path) -> Path:
    folder = tmp_path / "originals"
    folder.mkdir()
    lines = [" ".join(f"w{(k * 7919 + j * j * 31 + j * k) % 5000}" for j in range(120)) for k in range(300)]
    (folder / "book.txt").write_text("\n\n".join(lines[:150]))
    rows = "".join(f'{{"text": "{line}"}}\n' for line in lines[150:])
    (folder / "web.jsonl.zst").write_bytes(zstandard.compress(rows.encode()))
    return folder


def test_copies_are_as_alike_as_they_say_and_nothing_else_is(originals: Path, tmp_path: Path) -> None:
    made = corpus.build(originals, tmp_path / "made", 1_500_000)
    assert abs(made.bytes - 1_500_000) < 150_000
    rows = [row for part in range(made.parts) for row in pq.read_table(made.part(part)).to_pylist()]
    assert len(rows) == made.documents
    # A copy of a few words may have none of them changed; everything else is a document of its own.
    assert len({row["text"] for row in rows if not row["copy_of"]}) == len(rows) - made.copies
    texts = {row["id"]: row["text"] for row in rows}
    copies = [row for row in rows if row["copy_of"]]
    assert len(copies) == made.copies
    assert 0.05 < made.copies / made.documents < 0.15
    errors = []
    for row in copies:
        one, other = shingles(row["text"]), shingles(texts[row["copy_of"]])
        true = len(one & other) / max(len(one | other), 1)
        errors.append(abs(true - row["similarity"]))
    assert sum(errors) / len(errors) < 0.1
    again = corpus.build(originals, tmp_path / "again", 1_500_000)
    assert again.part(0).read_bytes() == made.part(0).read_bytes()
