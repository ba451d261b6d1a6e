"""Parquet: any split by row groups gives the same documents; columns of all kinds; groups larger than a batch."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moxin.artifact import Artifact
from moxin.curate import parquet, reading, sources
from moxin.recipe import SourceConfig

NO_WORLD = Artifact("world", "", "", {"files": {}})


def read_all(
    path: Path | str, **options: Any
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[int]]:
    """Rows, quarantine, and the bytes of text of every batch."""
    source = SourceConfig("own", "folder", path=str(path), **options)
    rows, quarantine, sizes = [], [], []
    for unit in sources.units((source,), NO_WORLD):
        for batch in reading.read(unit, source, quarantine):
            batch.validate(full=True)
            rows += batch.to_pylist()
            sizes.append(sum(len(text.encode()) for text in batch["text"].to_pylist()))
    return rows, quarantine, sizes


@pytest.mark.parametrize("unit", [1, 1500, 4000, 100_000, 1 << 30])
def test_documents_and_ids_do_not_depend_on_the_split(tmp_path, monkeypatch, unit):
    table = pa.table({"text": [f"document {i} " + "é" * (i % 90) for i in range(1000)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=37)
    monkeypatch.setattr(sources, "FOLDER_UNIT_BYTES", unit)
    n = len(sources.units((SourceConfig("own", "folder", path=str(tmp_path)),), NO_WORLD))
    assert n == {1: 28, 1 << 30: 1}.get(unit, n)
    assert unit != 4000 or 10 < n < 28
    rows, quarantine, _ = read_all(tmp_path)
    assert quarantine == []
    assert [row["text"] for row in rows] == table["text"].to_pylist()
    assert [row["id"] for row in rows] == [f"a.parquet:{i}" for i in range(1000)]


@pytest.mark.parametrize("buffered", [1, 64 << 20])
def test_a_large_row_group_is_read_in_batches(tmp_path, monkeypatch, buffered):
    texts = [f"{i} " + "lorem ipsum " * 1000 for i in range(600)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", use_dictionary=False)
    monkeypatch.setattr(parquet, "BUFFERED_BYTES", buffered)
    monkeypatch.setattr(reading, "BATCH_BYTES", 100_000)
    rows, quarantine, sizes = read_all(tmp_path)
    assert ([row["text"] for row in rows], quarantine) == (texts, [])
    assert max(sizes) < 200_000


def test_columns_of_other_types_become_strings(tmp_path):
    table = pa.table(
        {
            "text": pa.array(["a", "b", "a"]).dictionary_encode(),
            "meta": [{"k": 1, "l": ["x"]}, None, {"k": 2, "l": None}],
            "id": pa.array([1, 2, None], pa.int64()),
            "url": pa.array(["u", None, "v"], pa.large_string()),
            "lang": pa.array([b"en", b"\xff", None], pa.binary()),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    rows, quarantine, _ = read_all(tmp_path)
    assert quarantine == []
    assert [row["meta"] for row in rows] == ['{"k": 1, "l": ["x"]}', "{}", '{"k": 2, "l": null}']
    assert [row["id"] for row in rows] == ["1", "2", "a.parquet:2"]
    assert [row["url"] for row in rows] == ["u", "", "v"]
    assert [row["lang"] for row in rows] == ["en", "", ""]


def test_the_text_may_have_another_name(tmp_path):
    pq.write_table(pa.table({"text": ["no"], "story": ["yes"], "n": [1]}), tmp_path / "a.parquet")
    assert [row["text"] for row in read_all(tmp_path, text_field="story")[0]] == ["yes"]
    for name, message in (
        ("n", "column n holds int64, no strings"),
        ("x", "no column x; found text, story, n"),
    ):
        rows, (trouble,), _ = read_all(tmp_path, text_field=name)
        assert rows == []
        assert message in trouble["error"]


def test_a_row_that_is_too_long_costs_only_itself(tmp_path, monkeypatch):
    pq.write_table(pa.table({"text": ["a", "x" * 1000, "b"]}), tmp_path / "a.parquet")
    monkeypatch.setattr(parquet, "DOCUMENT_BYTES", 500)
    rows, quarantine, _ = read_all(tmp_path)
    assert [row["text"] for row in rows] == ["a", "b"]
    assert [(row["position"], "500 bytes" in row["error"]) for row in quarantine] == [("row 1", True)]


def test_a_truncated_or_false_file_beside_a_large_one(tmp_path, monkeypatch):
    pq.write_table(pa.table({"text": ["a"] * 10}), tmp_path / "a.parquet", row_group_size=1)
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-9])
    (tmp_path / "c.parquet").write_text('{"text": "a"}\n')
    monkeypatch.setattr(sources, "FOLDER_UNIT_BYTES", 1)
    rows, quarantine, _ = read_all(tmp_path)
    assert len(rows) == 10
    assert [row["file"] for row in quarantine] == ["b.parquet", "c.parquet"]
