"""JSON lines: any split into byte ranges gives the same documents, and long or many bad lines cost nothing else."""

import gzip
import io
import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from moxin.artifact import Artifact
from moxin.curate import jsonl, reading, sources
from moxin.recipe import SourceConfig

NO_WORLD = Artifact("world", "", "", {"files": {}})
Found = tuple[list[dict[str, Any]], list[dict[str, Any]]]


def read_all(path: Path | str, **options: Any) -> Found:
    source = SourceConfig("own", "folder", path=str(path), **options)
    rows, quarantine = [], []
    for unit in sources.units((source,), NO_WORLD):
        for batch in reading.read(unit, source, quarantine):
            rows += batch.to_pylist()
    return rows, quarantine


def lines_in(data: bytes, edges: list[int], block: int) -> list[tuple[int, bytes | int]]:
    """What all ranges between the edges own, one after the other."""
    old, jsonl.PLAIN_BYTES = jsonl.PLAIN_BYTES, block
    try:
        return [
            line
            for first, stop in itertools.pairwise(edges)
            for line in jsonl._range(io.BytesIO(data), first, stop)
        ]
    finally:
        jsonl.PLAIN_BYTES = old


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=12)), st.sets(st.integers(1, 200), max_size=8), st.integers(1, 9))
def test_every_line_belongs_to_the_one_range_in_which_it_begins(pieces, cuts, block):
    data = b"\n".join(pieces)
    edges = [0, *sorted(cut for cut in cuts if cut < len(data)), max(len(data), 1)]
    expected, offset = [], 0
    for line in data.split(b"\n"):
        expected.append((offset, line))
        offset += len(line) + 1
    if data.endswith(b"\n") or not data:
        expected = [line for line in expected if line[0] < max(len(data), 1)]
    assert lines_in(data, edges, block) == expected


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=30), min_size=1), st.integers(1, 40), st.booleans())
def test_documents_and_ids_do_not_depend_on_the_split(tmp_path_factory, texts, unit, ends):
    folder = tmp_path_factory.mktemp("split")
    content = "\r\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts) + "\n" * ends
    (folder / "a.jsonl").write_bytes(content.encode())
    whole = read_all(folder)
    old, sources.FOLDER_UNIT_BYTES = sources.FOLDER_UNIT_BYTES, unit
    try:
        source = SourceConfig("own", "folder", path=str(folder))
        n = len(sources.units((source,), NO_WORLD))
        assert n == math.ceil(len(content.encode()) / unit)
        assert read_all(folder) == whole
    finally:
        sources.FOLDER_UNIT_BYTES = old
    assert [row["text"] for row in whole[0]] == texts
    packed = folder / "b.jsonl.zst"
    packed.write_bytes(zstandard.compress(content.encode()))
    (folder / "a.jsonl").unlink()
    assert [row["id"].split(":")[1] for row in read_all(folder)[0]] == [
        row["id"].split(":")[1] for row in whole[0]
    ], "nor on the compression"


@pytest.mark.parametrize("n_units", [1, 2, 7, 50])
def test_a_bad_line_of_a_split_file_costs_only_itself(tmp_path, monkeypatch, n_units):
    lines = [json.dumps({"text": f"document {i}"}).encode() for i in range(100)]
    lines[40], lines[41], lines[90] = b'{"text": broken', b'{"text": "caf\xe9"}', b"[]"
    data = b"\n".join(lines)
    (tmp_path / "a.jsonl").write_bytes(data)
    monkeypatch.setattr(sources, "FOLDER_UNIT_BYTES", -(-len(data) // n_units))
    rows, quarantine = read_all(tmp_path)
    assert [row["text"] for row in rows] == [f"document {i}" for i in range(100) if i not in (40, 41, 90)]
    assert all(
        json.loads(data[int(row["id"].split(":")[1]) :].split(b"\n")[0])["text"] == row["text"]
        for row in rows
    )
    assert len(quarantine) == 3
    at = data.index(b"[]")
    assert quarantine[2]["position"] == ("line 91" if n_units == 1 else f"byte {at}")


def test_a_line_that_is_too_long_is_passed_over(tmp_path, monkeypatch):
    long = json.dumps({"text": "x" * (3 << 20)}).encode()
    good = b'{"text": "good"}'
    for name, data in (("a.jsonl", b"\n".join([good, long, good])), ("b.jsonl", long)):
        (tmp_path / name).write_bytes(data)
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(b"\n".join([long, good])))
    assert [len(row["text"]) for row in read_all(tmp_path)[0]] == [4, 3 << 20, 4, 3 << 20, 3 << 20, 4]
    monkeypatch.setattr(jsonl, "DOCUMENT_BYTES", 2 << 20)
    monkeypatch.setattr(jsonl.lines, "__defaults__", (0, 2 << 20))
    for unit in (64 << 20, 1 << 20):
        monkeypatch.setattr(sources, "FOLDER_UNIT_BYTES", unit)
        rows, quarantine = read_all(tmp_path)
        assert [row["text"] for row in rows] == ["good"] * 3
        assert [row["file"] for row in quarantine] == ["a.jsonl", "b.jsonl", "c.jsonl.gz"]
        assert all("the line has 3,145,740 bytes" in row["error"] for row in quarantine)


def test_the_text_may_have_another_name(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "no", "body": "yes", "id": 1}\n{"text": "no"}\n')
    rows, quarantine = read_all(tmp_path, text_field="body")
    assert [(row["id"], row["text"]) for row in rows] == [("1", "yes")]
    assert quarantine[0]["error"] == "ValueError: no string in any of body; found text"
    assert [row["text"] for row in read_all(tmp_path, text_field="url")[0]] == []
    with pytest.raises(ValueError, match=r"sources.own.text_field has no effect on kind 'tree'"):
        sources.check(SourceConfig("own", "tree", path=str(tmp_path), text_field="body"))


LINES = [
    b'{"text": "a", "id": 7, "url": "u", "license": "MIT", "lang": "de", "meta": {"k": [1, "\\ud800"]}}',
    b'{"text": null, "content": "", "id": 1.5}',
    b'{"content": "c", "text": 3}',
    b'{"text": "a", "score": NaN, "id": true}',
    b'{"text": "a", "id": 99999999999999999999999999, "url": 5}',
    b'{"text": "first", "text": "last", "id": null}',
    b'{"text": "\\u0000 \\ud83d\\ude00", "meta": "{}"}',
    b'{"text": "a", "meta": {"k": 1e5, "\\u00e9": "\xc3\xa9"}}',
    b"  ",
]


@pytest.mark.parametrize("line", LINES)
def test_the_fast_way_reads_what_json_reads(line):
    assert jsonl.parser("")(line) == jsonl._parse_slowly(line, jsonl.TEXT_FIELDS)


def test_a_file_that_is_wrong_in_every_line_does_not_fill_the_quarantine(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "QUARANTINE_ROWS", 5)
    (tmp_path / "a.jsonl").write_text('{"title": "x"}\n' * 100 + '{"text": "good"}\n')
    rows, quarantine = read_all(tmp_path)
    assert [row["text"] for row in rows] == ["good"]
    assert len(quarantine) == 6
    assert sum(row.get("count", 1) for row in quarantine) == 100


def test_frames_of_any_kind_follow_each_other(tmp_path):
    skippable = b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"
    line = b'{"text": "a"}\n'
    wide = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters(window_log=28, enable_ldm=True)
    ).compressobj()
    content = zstandard.compress(line) + skippable + wide.compress(line) + wide.flush()
    (tmp_path / "a.jsonl.zst").write_bytes(content)
    rows, quarantine = read_all(tmp_path)
    assert ([row["id"] for row in rows], quarantine) == (["a.jsonl.zst:0", "a.jsonl.zst:14"], [])


def test_one_file_may_be_the_source(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    assert [row["id"] for row in read_all(tmp_path / "a.jsonl")[0]] == ["a.jsonl:0", "a.jsonl:14"]


def test_a_limit_reads_a_share_of_every_part(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": f"{i:06d}"}) + "\n" for i in range(10_000)))
    monkeypatch.setattr(sources, "FOLDER_UNIT_BYTES", 50_000)
    rows, _ = read_all(tmp_path, max_bytes=6_000)
    numbers = [int(row["text"]) for row in rows]
    assert 900 < len(numbers) <= 1000
    assert max(numbers) > 7000


def test_many_small_files_share_a_unit(tmp_path, monkeypatch):
    for i in range(30):
        deep = tmp_path / "/".join("abcdefgh"[: i % 8])
        deep.mkdir(parents=True, exist_ok=True)
        (deep / f"{i}.txt").write_text(f"text {i}")
    source = SourceConfig("own", "folder", path=str(tmp_path))
    assert len(sources.units((source,), NO_WORLD)) == 1
    monkeypatch.setattr(sources, "UNIT_FILES", 7)
    assert [len(unit.items) for unit in sources.units((source,), NO_WORLD)] == [7, 7, 7, 7, 2]
    assert len(read_all(tmp_path)[0]) == 30
