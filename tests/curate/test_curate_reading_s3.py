"""Every format from a live S3 server whose downloads break off, and what an outage does."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from test_curate_warc import pages, zipped

from moxin import storage
from moxin.artifact import Artifact
from moxin.curate import reading, sources
from moxin.recipe import SourceConfig

NO_WORLD = Artifact("world", "", "", {"files": {}})
LINES = b"".join(json.dumps({"text": f"document {i} é"}).encode() + b"\n" for i in range(2000))


def files(folder):
    table = pa.table({"text": [f"row {i}" for i in range(2000)]})
    pq.write_table(table, folder / "e.parquet", row_group_size=200)
    (folder / "a.jsonl").write_bytes(LINES)
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(LINES))
    (folder / "c.jsonl.zst").write_bytes(zstandard.compress(LINES))
    (folder / "d.warc.gz").write_bytes(zipped(pages(30)))
    for i in range(70):
        (folder / f"t{i:02d}.txt").write_text(f"text {i} " * 200)
    (folder / "u.txt").write_bytes(b"caf\xe9")


def read(url, kind="folder"):
    source = SourceConfig("own", kind, path=url)
    rows, quarantine = [], []
    for unit in sources.units((source,), NO_WORLD):
        for batch in reading.read(unit, source, quarantine):
            rows += batch.to_pylist()
    return rows, quarantine


@pytest.mark.parametrize("unit", [64 << 20, 5000])
def test_documents_are_the_same_from_s3_while_downloads_break_off(s3, tmp_path, monkeypatch, unit):
    files(tmp_path)
    expected = read(str(tmp_path))
    storage.upload(tmp_path, s3.url)
    monkeypatch.setattr(sources, "FOLDER_UNIT_BYTES", unit)
    s3.faults.cut_downloads(2)
    rows, quarantine = read(s3.url)
    assert s3.faults.injected == 2
    assert rows == expected[0]
    assert [row["file"] for row in quarantine] == ["u.txt"]


def test_an_outage_ends_the_unit_and_puts_no_document_into_quarantine(s3, tmp_path, monkeypatch):
    files(tmp_path)
    storage.upload(tmp_path, s3.url)
    source = SourceConfig("own", "folder", path=s3.url)
    monkeypatch.setattr(sources, "UNIT_FILES", 1)
    quarantine = []
    for unit in sources.units((source,), NO_WORLD)[:7]:
        s3.faults.refuse(100)
        with pytest.raises(OSError, match="times"):
            list(reading.read(unit, source, quarantine))
        assert quarantine == []
        s3.faults.reset()


def test_a_file_that_is_gone_costs_only_itself(s3, tmp_path):
    files(tmp_path)
    storage.upload(tmp_path, s3.url)
    source = SourceConfig("own", "folder", path=s3.url)
    (unit,) = sources.units((source,), NO_WORLD)
    for name in ("a.jsonl", "e.parquet", "t05.txt"):
        storage.remove(storage.join(s3.url, name))
    quarantine = []
    n = sum(len(batch) for batch in reading.read(unit, source, quarantine))
    assert n == 2 * 2000 + 30 + 69
    assert [row["file"] for row in quarantine] == ["a.jsonl", "e.parquet", "t05.txt", "u.txt"]


def test_a_tree_from_s3(s3):
    storage.write_text(
        f"{s3.url}/one/LICENSE", "This is free and unencumbered software released into the public domain."
    )
    storage.write_text(f"{s3.url}/one/src/a.py", "x = 1\n")
    storage.write_text(f"{s3.url}/one/.git/a.py", "no\n")
    rows, quarantine = read(s3.url, "tree")
    assert [(row["id"], row["lang"], row["license"]) for row in rows] == [
        ("one/src/a.py", "python", "Unlicense")
    ]
    assert quarantine == []


def test_any_file_system_that_fsspec_knows():
    storage.write_bytes("memory://reading/a.jsonl", LINES)
    rows, quarantine = read("memory://reading")
    assert (len(rows), quarantine) == (2000, [])
    assert rows[1]["id"] == "a.jsonl:" + str(LINES.index(b"\n") + 1)
