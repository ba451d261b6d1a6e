"""Web archives (ISO 28500), plain or with a gzip member per record: the main text of every page that was answered with 200.

Records are framed here, so that a broken one costs only itself: a gzip member ends a record whatever the record says of its
length, and after what cannot be read the next `WARC/` is looked for. A parser of whole streams ends at a broken member and
passes over the records behind a wrong length without a word. fastwarc reads what is inside a record, resiliparse finds the
encoding and the main text.

A file is one unit: where a member or record begins cannot be told from inside a file, for a page may hold an archive.
Ids are `name:byte` of the compressed record in its file, as in a CDX index.
"""

import json
import re
import zlib
from collections.abc import Iterator
from typing import IO

from fastwarc.warc import WarcRecord, WarcRecordType
from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.encoding import bytes_to_str, detect_encoding, map_encoding_to_html5

from moxin.curate.jsonl import BLOCK_BYTES, DOCUMENT_BYTES, PLAIN_BYTES, Bad, Row, decoder_for, suffix

HEADER_BYTES = 1 << 16
NESTED_BLOCKS = 1000
"""Extraction takes 0.06 s where `<div>` lie 1,000 deep, 5 s at 8,000, and more than minutes at 200,000."""
_BLOCK = re.compile(r"<(/?)(div|section|article|main|ul|ol|table|form|center|blockquote)\b", re.IGNORECASE)
_LENGTH = re.compile(rb"^content-length:[ \t]*(\d+)[ \t]*\r?$", re.IGNORECASE | re.MULTILINE)
_WANTED = re.compile(rb"^warc-type:[ \t]*(response|conversion)[ \t]*\r?$", re.IGNORECASE | re.MULTILINE)
_HTML_TYPE = re.compile(rb"^content-type:[ \t]*text/html", re.IGNORECASE | re.MULTILINE)
_END = b"\r\n\r\n"
_MEMBER = b"\x1f\x8b\x08"
_HTML = ("text/html", "application/xhtml+xml")
_MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}


class BrokenRecordError(ValueError):
    """What follows cannot be told apart into records."""


class _Window:
    """What has been read of a stream and not been used; `at` is where that begins, `begun` where the record does."""

    def __init__(self, blocks: Iterator[bytes], at: int = 0) -> None:
        self._blocks, self.at, self.bytes, self.begun = blocks, at, bytearray(), at

    def has(self, n: int) -> bool:
        """Whether `n` bytes more can be had; they are in `bytes` then."""
        while len(self.bytes) < n:
            block = next(self._blocks, None)
            if block is None:
                return False
            self.bytes += block
        return True

    def drop(self, n: int) -> bool:
        """Moves on by `n` bytes without holding them all; False where there are fewer."""
        while n > len(self.bytes):
            n -= len(self.bytes)
            self.at += len(self.bytes)
            self.bytes.clear()
            if not self.has(1):
                return False
        del self.bytes[:n]
        self.at += n
        return True

    def find(self, text: bytes, most: int) -> int:
        """Where `text` begins in `bytes`, within the next `most` bytes; -1 where it does not."""
        begin = 0
        while (found := self.bytes.find(text, begin, most)) < 0:
            begin = max(len(self.bytes) - len(text), 0)
            if len(self.bytes) >= most or not self.has(len(self.bytes) + 1):
                return -1
        return found

    def skip_to(self, text: bytes) -> bool:
        """Moves on to the next `text`; False where there is none."""
        while (found := self.find(text, HEADER_BYTES)) < 0:
            if not self.drop(max(len(self.bytes) - len(text), 1)) or not self.has(len(text)):
                return False
        return self.drop(found)


def read(handle: IO[bytes], path: str, bad: Bad, name: str) -> Iterator[Row]:
    """A document for every HTML page answered with 200 and every plain-text `conversion` record (WET files).

    `url` is the page's, `meta` holds `date` and `record`. What cannot be read goes to `bad`, by its byte.
    """
    for position, data in (
        _gzip_records(handle, bad) if suffix(path) == ".gz" else _plain_records(handle, bad)
    ):
        try:
            if isinstance(data, int):
                raise ValueError(f"a page of {data:,} bytes; more than {DOCUMENT_BYTES:,} are not read")
            row = _document(data) if data else None
        except (OSError, ValueError) as error:
            bad(f"byte {position}", error)
            continue
        if row is not None:
            yield {"id": f"{name}:{position}", **row}


def _plain_records(handle: IO[bytes], bad: Bad) -> Iterator[tuple[str, bytes | int]]:
    position = 0
    while True:
        window = _window(handle, position)
        try:
            for at, data in _records(window):
                yield str(at), data
            return
        except BrokenRecordError as error:
            bad(f"byte {window.begun}", error)
            # Its length may be what is wrong: what comes next is looked for inside it.
            window = _window(handle, window.begun + 1)
            if not window.skip_to(b"\nWARC/"):
                return
            position = window.at + 1


def _window(handle: IO[bytes], start: int) -> _Window:
    handle.seek(start)
    return _Window(iter(lambda: handle.read(PLAIN_BYTES), b""), start)


def _gzip_records(handle: IO[bytes], bad: Bad) -> Iterator[tuple[str, bytes | int]]:
    """Records and where they lie: the member's byte, and for a later record in a member of many, `+` its byte inside."""
    member: int | None = 0
    while member is not None:
        blocks = _Member(handle, member)
        window = _Window(iter(blocks))
        try:
            for at, data in _records(window):
                yield f"{member}+{at}" if at else str(member), data
        except (BrokenRecordError, EOFError, zlib.error) as error:
            bad(f"byte {member}+{window.begun}" if window.begun else f"byte {member}", error)
        try:
            for _ in blocks:  # to the member's end, if a record broke off before it
                pass
        except (EOFError, zlib.error):
            member = _next_member(handle, max(blocks.reached, member + 1))
        else:
            member = blocks.reached
            handle.seek(member)
            begun = handle.read(len(_MEMBER))
            if begun.strip(b"\0") == b"" and len(begun) < len(_MEMBER):
                return
            if begun != _MEMBER:
                bad(f"byte {member}", ValueError("no gzip member begins here"))
                member = _next_member(handle, member)


class _Member:
    """Iterates over the blocks of one gzip member; raises `EOFError` or `zlib.error` where it breaks off or is corrupt.

    `reached`: the byte of the file where the member ends, or as far as it could be read.
    """

    def __init__(self, handle: IO[bytes], start: int) -> None:
        self._handle, self.reached, self._decoder, self._error = handle, start, decoder_for(".gz"), ""

    def __iter__(self) -> "_Member":
        return self

    def __next__(self) -> bytes:
        if self._decoder.eof:
            raise StopIteration
        if self._error:
            raise EOFError(self._error)
        self._handle.seek(self.reached)
        block = self._handle.read(BLOCK_BYTES[".gz"])
        if not block:
            self._error = "the compressed file breaks off"
            raise EOFError(self._error)
        try:
            data = bytes(self._decoder.decompress(block))
        except zlib.error as error:
            self._error = str(error)
            raise
        self.reached += len(block) - len(self._decoder.unused_data)
        return data


def _next_member(handle: IO[bytes], start: int) -> int | None:
    """The byte of the next gzip member that holds a record, from `start` on."""
    handle.seek(start)
    kept = b""
    while block := handle.read(PLAIN_BYTES):
        block = kept + block
        for found in re.finditer(re.escape(_MEMBER), block):
            handle.seek(start + found.start())
            try:
                if decoder_for(".gz").decompress(handle.read(1024)).startswith(b"WARC/"):
                    return start + found.start()
            except zlib.error:
                continue
        kept = block[-len(_MEMBER) + 1 :]
        start += len(block) - len(kept)
        handle.seek(start + len(kept))
    return None


def _records(window: _Window) -> Iterator[tuple[int, bytes | int]]:
    """Position and content of every record to the end of the stream: nothing of one that is not wanted, the size of a page
    that is too large.

    Raises `BrokenRecordError`, or what the blocks raise; `window.begun` is where the broken record begins.
    """
    while window.has(1):
        window.begun = window.at
        yield window.begun, _record(window)


def _record(window: _Window) -> bytes | int:
    head = window.find(_END, HEADER_BYTES)
    if not window.bytes.startswith(b"WARC/"):
        raise BrokenRecordError(f"expected WARC/, found {bytes(window.bytes[:40])!r}")
    found = _LENGTH.search(window.bytes, 0, head + 2) if head >= 0 else None
    if found is None:
        raise BrokenRecordError("a record without an end of its headers, or without Content-Length")
    length = int(found[1])
    size = head + len(_END) + length
    wanted = _WANTED.search(window.bytes, 0, head + 2) is not None
    data: bytes | int = b""
    if wanted and size <= DOCUMENT_BYTES and window.has(size):
        data = bytes(window.bytes[:size])
    elif wanted and size > DOCUMENT_BYTES and window.has(head + 4096) and _is_html(window.bytes, head):
        data = size
    if not window.drop(size):
        raise BrokenRecordError(f"Content-Length {length:,} goes beyond the end")
    if window.has(len(_END)) and not window.bytes.startswith(_END):
        raise BrokenRecordError(f"no record ends at Content-Length {length:,}")
    window.drop(len(_END))
    window.has(1)  # reads to the end of a gzip member, and with that checks its sum
    return data


def _is_html(record: bytearray, head: int) -> bool:
    """By the headers of the answer that a record holds."""
    end = record.find(_END, head + len(_END), head + 4096)
    return _HTML_TYPE.search(record, head, end if end > 0 else head + 4096) is not None


def _document(data: bytes) -> Row | None:
    """The page in a record, None where it holds none. Raises `OSError` or `ValueError` where that cannot be told."""
    record = WarcRecord.from_bytes(data)
    if record.record_type == WarcRecordType.conversion:
        if not (record.headers.get("Content-Type") or "").startswith("text/plain"):
            return None
        return {"text": record.reader.read().decode(), **_origin(record)}
    if not record.is_http:
        return None
    record.parse_http(auto_decode="all")
    if record.http_headers.status_code != 200 or (record.http_content_type or "").lower() not in _HTML:
        return None
    html = decoded(record.reader.read(), record.http_charset)
    if (depth := _depth(html)) > NESTED_BLOCKS:
        raise ValueError(f"{depth:,} blocks inside each other; more than {NESTED_BLOCKS:,} are not read")
    return {"text": extract_plain_text(html, main_content=True, alt_texts=False), **_origin(record)}


def _depth(html: str) -> int:
    deepest = depth = 0
    for closes, _ in _BLOCK.findall(html):
        depth += -1 if closes else 1
        deepest = max(deepest, depth)
    return deepest


def _origin(record: WarcRecord) -> Row:
    date, id_ = record.headers.get("WARC-Date") or "", record.record_id or ""
    url = (record.headers.get("WARC-Target-URI") or "").strip("<>")
    return {"url": url, "meta": json.dumps({"date": date, "record": id_.strip("<>")})}


def decoded(page: bytes, declared: str | None) -> str:
    """The page as text: by its byte-order mark, by what HTTP declares, by what it says itself, by how it looks; an encoding
    counts only if it fits every byte. Where none does, what does not fit UTF-8 becomes U+FFFD."""
    marked = next((name for mark, name in _MARKS.items() if page.startswith(mark)), None)
    found = (detect_encoding(page, from_html_meta=True), detect_encoding(page))
    for name in (marked, declared and map_encoding_to_html5(declared, fallback_utf8=False), *found):
        try:
            if name:
                return page.decode(name)
        except (UnicodeDecodeError, LookupError):
            continue
    return bytes_to_str(page, "utf-8", errors="replace", fallback_encodings=())
