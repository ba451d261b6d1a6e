"""Sources and their files: what is read, what is put into quarantine, and that the choice depends on nothing else."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from moxin.artifact import Artifact
from moxin.curate import installed, sources
from moxin.curate.documents import SCHEMA
from moxin.curate.reading import read
from moxin.recipe import SourceConfig

NO_WORLD = Artifact("world", "", "", {"files": {}})
CORPUS = Path(__file__).resolve().parents[3] / "shared" / "data" / "corpus"


def read_all(source: SourceConfig) -> tuple[list[dict[str, str]], list[dict[str, Any]]]:
    quarantine: list[dict[str, Any]] = []
    rows = []
    for unit in sources.units((source,), NO_WORLD):
        for batch in read(unit, source, quarantine):
            assert batch.schema == SCHEMA
            batch.validate(full=True)
            rows += batch.to_pylist()
    return rows, quarantine


def folder(path: Path, **settings: Any) -> SourceConfig:
    return SourceConfig("own", "folder", license="CC0-1.0", path=str(path), **settings)


def jsonl(n: int, start: int = 0) -> bytes:
    return b"".join(json.dumps({"text": f"document {i} é"}).encode() + b"\n" for i in range(start, start + n))


def test_every_kind_of_file_is_read_with_its_ids(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/a.txt").write_bytes("\ufefftext é\r\n".encode())
    (tmp_path / "b.md").write_text("# markdown")
    (tmp_path / "c.jsonl").write_text(
        '{"id": 7, "content": "with id", "license": "MIT", "url": "u"}\n\n{"body": "no id", "license": null}\n'
    )
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(jsonl(2)) + gzip.compress(jsonl(1, 2)))
    (tmp_path / "e.jsonl.zst").write_bytes(zstandard.compress(jsonl(2)) + zstandard.compress(jsonl(1, 2)))
    table = pa.table({"id": [5, None], "text": ["p", "q"], "score": [1.0, 2.0], "meta": ["{}", None]})
    pq.write_table(table, tmp_path / "f.parquet")
    (tmp_path / "ignored.html").write_text("no")
    (tmp_path / ".hidden.txt").write_text("no")
    rows, quarantine = read_all(folder(tmp_path))
    assert quarantine == []
    assert [(row["id"], row["text"]) for row in rows] == [
        ("b.md", "# markdown"),
        ("7", "with id"),
        ("c.jsonl:63", "no id"),
        *((f"d.jsonl.gz:{i * len(jsonl(1))}", f"document {i} é") for i in range(3)),
        *((f"e.jsonl.zst:{i * len(jsonl(1))}", f"document {i} é") for i in range(3)),
        ("5", "p"),
        ("f.parquet:1", "q"),
        ("sub/a.txt", "text é\r\n"),
    ]
    assert [row["license"] for row in rows[:3]] == ["CC0-1.0", "MIT", "CC0-1.0"]
    assert {row["source"] for row in rows} == {"own"}


def corrupt_files() -> Iterator[tuple[str, bytes, int, str, str]]:
    """Name, content, documents that can be had, where the trouble is, and what it is called."""
    bad_line = jsonl(2) + b'{"text": "broken\n' + jsonl(2, 2)
    yield "line.jsonl", bad_line, 4, "line 3", "JSONDecodeError"
    yield "array.jsonl", jsonl(1) + b"[1]\n" + jsonl(1), 2, "line 2", "expected an object"
    yield (
        "fields.jsonl",
        b'{"title": "x"}\n' + jsonl(1),
        1,
        "line 1",
        "no string in any of text, content, body",
    )
    yield "number.jsonl", b'{"text": 5}\n' + jsonl(1), 1, "line 1", "no string in any of"
    yield "latin1.jsonl", jsonl(1) + b'{"text": "caf\xe9"}\n' + jsonl(1), 2, "line 2", "UnicodeDecodeError"
    yield "surrogate.jsonl", jsonl(1) + b'{"text": "\\ud800"}\n', 1, "line 2", "UnicodeEncodeError"
    yield "deep.jsonl", b"[" * 200_000 + b"\n" + jsonl(1), 1, "line 1", "RecursionError"
    many = jsonl(5000)
    yield "short.jsonl.gz", gzip.compress(many)[:-2000], -1, "line", "EOFError"
    yield "short.jsonl.zst", zstandard.compress(jsonl(40_000))[:-2000], -1, "line", "EOFError"
    flipped = bytearray(gzip.compress(jsonl(40_000)))
    flipped[len(flipped) // 2] ^= 0xFF
    yield "flipped.jsonl.gz", bytes(flipped), -1, "line", "error: Error -3"
    yield "no.jsonl.zst", b"this is not zstandard", 0, "line 1", "ZstdError"
    yield "text.jsonl.gz", jsonl(3), 0, "line 1", "the content is not compressed, the name says gzip"
    yield "zst.jsonl", zstandard.compress(jsonl(3)), 0, "line 1", "is Zstandard, the name says not compressed"
    yield "gz.jsonl.zst", gzip.compress(jsonl(3)), 0, "line 1", "is gzip, the name says Zstandard"
    yield "utf16.jsonl", "{}".encode("utf-16"), 0, "line 1", "the content is UTF-16"
    yield "empty.jsonl", b"", 0, "0", "the file is empty"
    yield "empty.jsonl.gz", b"", 0, "0", "the file is empty"
    yield "empty.txt", b"", 0, "0", "the file is empty"
    yield "empty.parquet", b"", 0, "0", "ArrowInvalid"
    meta = b'{"text": "a", "meta": "\\ud800"}\n'
    yield "meta.jsonl", meta + jsonl(1), 1, "line 1", "UnicodeEncodeError"
    yield "latin1.txt", "café".encode("latin-1"), 0, "3", "UnicodeDecodeError"
    yield "no.parquet", b"PAR1 and nothing else", 0, "0", "ArrowInvalid"


CASES = list(corrupt_files())


@pytest.mark.parametrize(
    ("name", "content", "n", "position", "error"), CASES, ids=[case[0] for case in CASES]
)
def test_what_cannot_be_read_is_put_into_quarantine_and_the_rest_is_kept(
    tmp_path, name, content, n, position, error
):
    (tmp_path / name).write_bytes(content)
    (tmp_path / "zz.txt").write_text("a good file after it")
    rows, quarantine = read_all(folder(tmp_path))
    assert [row["text"] for row in rows][-1] == "a good file after it"
    assert len(rows) - 1 == n if n >= 0 else len(rows) > 100
    (trouble,) = quarantine
    assert trouble["file"] == name
    assert str(trouble["position"]).startswith(position)
    assert error in trouble["error"]


def test_a_broken_part_of_a_parquet_file_costs_only_itself(tmp_path):
    table = pa.table({"text": [f"row {i} " + "xyz" * 300 for i in range(40)]})
    path = tmp_path / "a.parquet"
    pq.write_table(
        table, path, row_group_size=10, compression="zstd", use_dictionary=False, write_page_checksum=True
    )
    column = pq.ParquetFile(path).metadata.row_group(1).column(0)
    content = bytearray(path.read_bytes())
    content[column.data_page_offset + column.total_compressed_size - 5] ^= 0xFF
    path.write_bytes(content)
    rows, quarantine = read_all(folder(tmp_path))
    assert [int(row["text"].split()[1]) for row in rows] == [*range(10), *range(20, 40)]
    assert [(row["file"], row["position"]) for row in quarantine] == [("a.parquet", "rows 10 to 19")]


def test_broken_utf8_and_nulls_in_a_parquet_column_cost_only_their_rows(tmp_path):
    values = pa.array([b"good", None, b"caf\xe9", b"fine"], pa.binary())
    pq.write_table(pa.table({"text": values}), tmp_path / "a.parquet")
    text = pa.Array.from_buffers(pa.string(), 4, values.buffers())
    pq.write_table(pa.table({"text": text}), tmp_path / "b.parquet")
    pq.write_table(pa.table({"title": ["x"]}), tmp_path / "c.parquet")
    rows, quarantine = read_all(folder(tmp_path))
    assert [row["id"] for row in rows] == ["a.parquet:0", "a.parquet:3", "b.parquet:0", "b.parquet:3"]
    assert [(row["file"], row["position"]) for row in quarantine] == [
        ("a.parquet", "row 1"), ("a.parquet", "row 2"), ("b.parquet", "row 1"), ("b.parquet", "row 2"), ("c.parquet", 0)
    ]  # fmt: skip


def test_a_missing_or_an_empty_folder_is_a_mistake_with_its_path(tmp_path):
    with pytest.raises(ValueError, match=rf"source 'own': {tmp_path}/nowhere: no such folder"):
        sources.check(folder(tmp_path / "nowhere"))
    (tmp_path / "a.html").write_text("x")
    with pytest.raises(ValueError, match=rf"{tmp_path}: holds none of .txt .md .jsonl"):
        sources.check(folder(tmp_path))
    with pytest.raises(ValueError, match="no path"):
        sources.check(SourceConfig("own", "folder"))


def test_the_limit_draws_by_hash_and_holds(tmp_path):
    for i in range(200):
        (tmp_path / f"{i:03d}.txt").write_text("x" * 100)
    names = [row["id"] for row in read_all(folder(tmp_path, max_bytes=2050))[0]]
    assert len(names) == 20
    assert names == sorted(names)
    assert max(names) > "150.txt"
    more = [row["id"] for row in read_all(folder(tmp_path, max_bytes=4000))[0]]
    assert set(names) < set(more)


def test_the_limit_shares_out_over_files_of_many_documents(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_bytes(jsonl(500))
    pq.write_table(pa.table({"text": [f"document {i} é" for i in range(500)]}), tmp_path / "c.parquet")
    rows, _ = read_all(folder(tmp_path, max_bytes=6000))
    assert 4000 < sum(len(row["text"].encode()) for row in rows) <= 6000
    assert {row["id"].split(":")[0] for row in rows} == {"a.jsonl", "b.jsonl", "c.parquet"}


def test_a_change_in_a_folder_changes_its_fingerprint(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    before = sources.fingerprint(folder(tmp_path))
    assert sources.fingerprint(folder(tmp_path)) == before
    (tmp_path / "b.txt").write_text("y")
    assert sources.fingerprint(folder(tmp_path)) != before


def test_this_python_carries_prose_and_code_with_their_licences():
    code, prose = installed.files("code"), installed.files("prose")
    by_id = {file.id: file for file in (*code, *prose)}
    assert by_id["stdlib/json/decoder.py"].license == ""
    numpy = next(file for file in code if file.id == "site/numpy/__init__.py")
    assert numpy.owner.startswith("numpy ")
    assert "BSD-3-Clause" in numpy.license
    assert any(file.path.endswith("METADATA") for file in prose)
    assert not [
        id_ for id_ in by_id if "moxin" in id_ or "/tests/" in id_ or id_.startswith("/") or ".." in id_
    ]
    assert not [id_ for id_ in by_id if "__pycache__" in id_ or "site-packages" in id_]
    items = sources.units((SourceConfig("prose", "prose", license="PSF-2.0", max_bytes=40_000),), NO_WORLD)
    assert 0 < sum(unit.size for unit in items) <= 40_000
    rows, quarantine = read_all(SourceConfig("prose", "prose", license="PSF-2.0", max_bytes=100_000))
    assert quarantine == []
    assert all(row["license"] and row["url"] for row in rows)
    assert not [row for row in rows if "Requires-Dist:" in row["text"][:500]], "headers are not prose"


@pytest.mark.skipif(not CORPUS.is_dir(), reason="../shared/data/corpus is not there")
def test_real_text_is_read_whole():
    rows, quarantine = read_all(SourceConfig("own", "folder", path=str(CORPUS)))
    assert quarantine == []
    assert len(rows) > 100
    assert all(row["text"].strip() for row in rows)
