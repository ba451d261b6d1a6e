"""Web archives made up here: what of them becomes a document, and what a broken record costs."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from moxin.artifact import Artifact
from moxin.curate import jsonl, reading, sources, warc
from moxin.recipe import SourceConfig

NO_WORLD = Artifact("world", "", "", {"files": {}})


def record(url: str, body: bytes, kind: str = "response", content_type: str = "application/http") -> bytes:
    head = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Record-ID: <urn:uuid:{url}>\r\nWARC-Date: 2024-05-06T07:08:09Z\r\n"
        f"WARC-Target-URI: {url}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body + b"\r\n\r\n"


def page(url: str, html: bytes, content_type: str = "text/html", status: int = 200, more: str = "") -> bytes:
    head = f"HTTP/1.1 {status} Reason\r\nContent-Type: {content_type}\r\n{more}Content-Length: {len(html)}\r\n\r\n"
    return record(url, head.encode() + html)


def html(text: str, head: str = "") -> str:
    return f"<html><head>{head}<title>T</title></head><body><nav><a href='/'>Home</a></nav><main><p>{text}</p></main></body>"


def pages(n: int = 6) -> list[bytes]:
    return [
        page(f"http://x/{i}", html(f"This is page {i}. " + "Some words follow. " * 20).encode())
        for i in range(n)
    ]


def read(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    source = SourceConfig("web", "folder", path=str(path))
    rows, quarantine = [], []
    for unit in sources.units((source,), NO_WORLD):
        for batch in reading.read(unit, source, quarantine):
            rows += batch.to_pylist()
    return rows, quarantine


def numbers(rows: list[dict[str, Any]]) -> list[int]:
    return [int(row["url"].rpartition("/")[2]) for row in rows]


def zipped(records: list[bytes]) -> bytes:
    return b"".join(map(gzip.compress, records))


def test_pages_come_with_url_and_date_and_the_byte_where_they_lie(tmp_path):
    info = record("", b"software: test\r\n", "warcinfo", "application/warc-fields")
    records = [info, *pages(3)]
    for name, content in (
        ("a.warc", b"".join(records)),
        ("b.warc.gz", zipped(records)),
        ("c.warc.gz", gzip.compress(b"".join(records))),
    ):
        (tmp_path / name).write_bytes(content)
    rows, quarantine = read(tmp_path)
    assert quarantine == []
    assert numbers(rows) == [0, 1, 2] * 3
    assert rows[0]["text"].startswith("This is page 0. Some words follow.")
    assert "Home" not in rows[0]["text"]
    assert json.loads(rows[0]["meta"]) == {"date": "2024-05-06T07:08:09Z", "record": "urn:uuid:http://x/0"}
    plain, packed, one = (rows[i : i + 3] for i in (0, 3, 6))
    for row in plain:
        start = int(row["id"].removeprefix("a.warc:"))
        assert (tmp_path / "a.warc").read_bytes()[start:].startswith(b"WARC/1.0\r\nWARC-Type: response")
    for row, whole in zip(packed, records[1:], strict=True):
        start = int(row["id"].removeprefix("b.warc.gz:"))
        assert gzip.decompress((tmp_path / "b.warc.gz").read_bytes()[start:]).startswith(whole)
    assert [row["id"].split("+")[1] for row in one] == [row["id"].split(":")[1] for row in plain]


def test_only_html_that_was_answered_with_200_is_a_document(tmp_path):
    text = html("Good words.").encode()
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(text), text)
    records = [
        page("http://x/0", text),
        page("http://x/1", text, status=404),
        page("http://x/2", text, "application/pdf"),
        page("http://x/3", text, "text/html; charset=UTF-8"),
        page("http://x/4", text, "application/xhtml+xml"),
        page("http://x/5", gzip.compress(text), more="Content-Encoding: gzip\r\n"),
        page("http://x/6", chunked, more="Transfer-Encoding: chunked\r\n"),
        record("http://x/7", text, "resource", "text/html"),
        record("http://x/8", "Plain é words.".encode(), "conversion", "text/plain"),
        record("http://x/9", b"GET / HTTP/1.1\r\n\r\n", "request", "application/http"),
    ]  # fmt: skip
    (tmp_path / "a.warc.gz").write_bytes(zipped(records))
    rows, quarantine = read(tmp_path)
    assert quarantine == []
    assert numbers(rows) == [0, 3, 4, 5, 6, 8]
    assert {row["text"].strip() for row in rows} == {"Good words.", "Plain é words."}


@pytest.mark.parametrize(
    ("encoding", "content_type", "head"),
    [
        ("utf-8", "text/html", ""),
        ("utf-8", "text/html; charset=utf-8", ""),
        ("latin-1", "text/html; charset=ISO-8859-1", ""),
        ("latin-1", "text/html", '<meta charset="iso-8859-1">'),
        ("latin-1", "text/html; charset=utf-8", ""),
        ("utf-16", "text/html", ""),
        ("utf-8-sig", "text/html; charset=iso-8859-1", ""),
        ("utf-16-le", "text/html; charset=utf-16le", ""),
        ("cp1252", "text/html; charset=no-such-thing", ""),
        ("koi8-r", "text/html; charset=koi8-r", ""),
    ],
)
def test_the_encoding_is_found(tmp_path, encoding, content_type, head):
    text = "Ёлка и снег" if encoding == "koi8-r" else "Das Café liegt über dem Fluß, où l'été est déjà là."
    content = html(text, head).encode(encoding)
    (tmp_path / "a.warc").write_bytes(page("http://x/0", content, content_type))
    ((row,), quarantine) = read(tmp_path)
    assert (row["text"].strip(), quarantine) == (text, [])


def test_a_byte_that_fits_nothing_is_replaced_and_not_dropped():
    assert warc.decoded("aé".encode() + b"\xff" + "é😀".encode(), "utf-8").count("é") in (0, 2)
    assert "b" in warc.decoded(b"a\x81\xffb", "utf-8")


def broken() -> dict[str, tuple[bytes, list[int], list[str]]]:
    """Content of a file, the pages that are to be had, and where the trouble is."""
    records = pages()
    members = [gzip.compress(one) for one in records]
    at, zat = (sum(map(len, some[:2])) for some in (records, members))
    longer = records[2].replace(b"\r\nContent-Length: ", b"\r\nContent-Length: 9", 1)
    longest = records[2].replace(b"\r\nContent-Length: ", b"\r\nContent-Length: 99999999", 1)
    shorter = page("http://x/2", b"x" * 900).replace(b"\r\nContent-Length: 9", b"\r\nContent-Length: 8", 1)
    nothing = records[2].replace(b"\r\nContent-Length: ", b"\r\nContent-Lengths: ", 1)
    false = records[2].replace(b"WARC/1.0", b"GARBAGE!", 1)
    cases = {}
    for name, bad in (
        ("longer", longer),
        ("longest", longest),
        ("shorter", shorter),
        ("nothing", nothing),
        ("false", false),
    ):
        plain = b"".join([*records[:2], bad, *records[3:]])
        cases[f"{name}.warc"] = plain, [0, 1, 3, 4, 5], [f"byte {at}"]
        cases[f"{name}.warc.gz"] = zipped([*records[:2], bad, *records[3:]]), [0, 1, 3, 4, 5], [f"byte {zat}"]
    flipped = bytearray(b"".join(members))
    flipped[zat + len(members[2]) // 2] ^= 0xFF
    cases["flipped.warc.gz"] = bytes(flipped), [0, 1, 3, 4, 5], [f"byte {zat}"]
    checksum = bytearray(b"".join(members))
    checksum[zat + len(members[2]) - 7] ^= 0xFF
    cases["checksum.warc.gz"] = bytes(checksum), [0, 1, 3, 4, 5], [f"byte {zat}"]
    cases["gap.warc.gz"] = (
        b"".join([*members[:2], b"\0nothing" * 9000, *members[2:]]),
        list(range(6)),
        [f"byte {zat}"],
    )
    cases["half.warc.gz"] = (
        b"".join([*members[:2], members[2][:99], *members[3:]]),
        [0, 1, 3, 4, 5],
        [f"byte {zat}"],
    )
    last = sum(map(len, members[:5]))
    cases["end.warc.gz"] = b"".join(members)[:-20], [0, 1, 2, 3, 4], [f"byte {last}"]
    cases["end.warc"] = b"".join(records)[:-20], [0, 1, 2, 3, 4], [f"byte {sum(map(len, records[:5]))}"]
    encoded = page("http://x/2", b"no gzip at all", more="Content-Encoding: gzip\r\n")
    cases["encoding.warc"] = b"".join([*records[:2], encoded, *records[3:]]), [0, 1, 3, 4, 5], [f"byte {at}"]
    deep = page("http://x/2", b"<div>" * 100_000 + b"deep")
    cases["deep.warc"] = b"".join([*records[:2], deep, *records[3:]]), [0, 1, 3, 4, 5], [f"byte {at}"]
    cases["plain.warc.gz"] = b"".join(records), [], ["byte 0"]
    cases["zipped.warc"] = b"".join(members), [], ["byte 0"]
    cases["other.warc"] = b"no archive\n" * 20_000, [], ["byte 0"]
    cases["empty.warc.gz"] = b"", [], ["0"]
    cases["empty.warc"] = b"", [], ["0"]
    return cases


CASES = broken()


@pytest.mark.parametrize("name", CASES)
def test_a_broken_record_costs_only_itself(tmp_path, name):
    content, expected, positions = CASES[name]
    (tmp_path / name).write_bytes(content)
    rows, quarantine = read(tmp_path)
    assert numbers(rows) == expected
    assert [str(row["position"]) for row in quarantine] == positions
    assert all(row["file"] == name for row in quarantine)


@pytest.mark.parametrize("zip_", [True, False])
def test_a_page_that_is_too_large_is_reported_and_other_large_records_are_passed_over(
    tmp_path, monkeypatch, zip_
):
    monkeypatch.setattr(warc, "DOCUMENT_BYTES", 100_000)
    monkeypatch.setattr(jsonl, "PLAIN_BYTES", 1000)
    large = html("many words " * 20_000).encode()
    records = pages(2)
    records[1:1] = [page("http://x/7", large), page("http://x/8", large, "video/mp4")]
    name = "a.warc.gz" if zip_ else "a.warc"
    (tmp_path / name).write_bytes(zipped(records) if zip_ else b"".join(records))
    rows, (trouble,) = read(tmp_path)
    assert numbers(rows) == [0, 1]
    assert "more than 100,000 are not read" in trouble["error"]


def test_an_archive_inside_a_page_is_no_record(tmp_path):
    inner = b"".join(pages(2))
    records = [
        page("http://x/0", b"<pre>" + inner + b"</pre>"),
        page("http://x/1", inner, "application/warc"),
        *pages(4)[2:],
    ]
    (tmp_path / "a.warc").write_bytes(b"".join(records))
    (tmp_path / "b.warc.gz").write_bytes(b"".join(gzip.compress(one, 0) for one in records))
    rows, quarantine = read(tmp_path)
    assert (numbers(rows), quarantine) == ([0, 2, 3] * 2, [])
