"""JSON lines, plain or compressed: whole files, or the lines that begin in a range of bytes.

A document without an id of its own is named by the byte of the uncompressed file at which its line begins: that is known
without reading what lies before, so a document's id is the same however the file is split (a line's number is not known
inside a range). A compressed file is always read from its beginning, also one of many members or frames: its lines begin
nowhere in particular.
"""

import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import IO, Any

import msgspec
import zstandard

TEXT_FIELDS = ("text", "content", "body")
DOCUMENT_BYTES = 64 << 20
"""A longer line, or document of any format, is not read: the memory of a task is bounded by it."""
PLAIN_BYTES = 1 << 20
"""Uncompressed bytes read at once."""
BLOCK_BYTES = {".gz": 1 << 14, ".zst": 1 << 12}
"""Compressed bytes given to a decoder at once. All that a broken block holds is lost, and a block of nothing but repetitions
becomes 16 MB from gzip and 128 MB from Zstandard."""
_SIGNATURES = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "Zstandard",
    b"PAR1": "Parquet",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"PK\x03\x04": "zip",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
    b"{": "not compressed",
}
_NAMED = {".gz": "gzip", ".zst": "Zstandard"}

Row = dict[str, str]
"""The columns in which a document differs from what is known of its whole file."""
Bad = Callable[[int | str, Exception], None]
"""Puts a position in the file and what is wrong there into quarantine."""


def suffix(path: str) -> str:
    """`.gz`, `.zst`, or empty for a file that is not compressed."""
    return next((name for name in _NAMED if path.endswith(name)), "")


def read(
    handle: IO[bytes], path: str, first: int, stop: int, text_field: str, bad: Bad, name: str
) -> Iterator[Row]:
    """Documents of the lines that begin at bytes `first` to `stop` (0: to the end), `name:byte` where they bring no id.

    Lines that hold none go to `bad`, each for itself, by their number or, where reading begins inside the file, their byte.
    """
    begun = handle.read(8)
    try:
        _check_signature(begun, path)
    except ValueError as error:
        if not first:  # the same is wrong with every range
            bad("line 1", error)
        return
    found = _range(handle, first, stop) if stop else lines(_decompressed(handle, path))
    parse = parser(text_field)
    number = 0
    while True:
        number += 1
        try:
            offset, line = next(found, (-1, b""))
            if offset < 0:
                return
            if isinstance(line, int):
                raise ValueError(f"the line has {line:,} bytes; more than {DOCUMENT_BYTES:,} are not read")
            if row := parse(line.removeprefix(b"\xef\xbb\xbf") if offset == 0 else line):
                yield {"id": f"{name}:{offset}", **row}
        except (EOFError, zlib.error, zstandard.ZstdError) as error:
            bad(f"line {number}", error)
            return
        except (ValueError, RecursionError) as error:  # JSON or Unicode that is none, or not a document
            bad(f"byte {offset}" if first else f"line {number}", error)


def _check_signature(begun: bytes, path: str) -> None:
    """Raises `ValueError` where the content is of another kind than the file's name says."""
    named = _NAMED.get(suffix(path), "not compressed")
    is_ = next((kind for signature, kind in _SIGNATURES.items() if begun.startswith(signature)), named)
    if is_ != named:
        raise ValueError(f"the content is {is_}, the name says {named}; rename or convert the file")


def _range(handle: IO[bytes], first: int, stop: int) -> Iterator[tuple[int, bytes | int]]:
    """The lines that begin in the range; a line that ends behind it is read to its end."""
    begun = max(first - 1, 0)  # a line begins at `first` if a line ends right before it
    handle.seek(begun)
    block = handle.read(PLAIN_BYTES)
    if first:
        while (end := block.find(b"\n")) < 0:
            begun += len(block)
            if not block or begun >= stop:
                return
            block = handle.read(PLAIN_BYTES)
        begun, block = begun + end + 1, block[end + 1 :]
    for offset, line in lines(_blocks(handle, block), begun):
        if offset >= stop:
            return
        yield offset, line


def _blocks(handle: IO[bytes], block: bytes, size: int = PLAIN_BYTES) -> Iterator[bytes]:
    """`block` and what follows."""
    yield block
    while block := handle.read(size):
        yield block


def lines(
    blocks: Iterable[bytes], offset: int = 0, longest: int = DOCUMENT_BYTES
) -> Iterator[tuple[int, bytes | int]]:
    """Offset and content of every line; of one that is longer than `longest` bytes, its length."""
    pieces: list[bytes] = []  # of a line that goes over several blocks
    held = 0
    for block in blocks:
        head, *more = block.split(b"\n")
        held += len(head)
        pieces = [*pieces, head] if held <= longest else []
        if more:
            yield offset, b"".join(pieces) if held <= longest else held
            offset += held + 1
            for line in more[:-1]:
                yield offset, line if len(line) <= longest else len(line)
                offset += len(line) + 1
            pieces, held = more[-1:], len(more[-1])
    yield offset, b"".join(pieces) if held <= longest else held


def _decompressed(handle: IO[bytes], path: str) -> Iterator[bytes]:
    """Blocks of the file's content, as far as it can be had. Raises where it breaks off or is corrupt."""
    handle.seek(0)
    kind = suffix(path)
    if not kind:
        yield from _blocks(handle, b"")
        return
    decoder, begun = decoder_for(kind), False
    while block := handle.read(BLOCK_BYTES[kind]):
        while block:
            begun = True
            yield decoder.decompress(block)
            block = b""
            if decoder.eof:  # both formats may hold several streams, one after the other
                block, decoder, begun = decoder.unused_data.lstrip(b"\0"), decoder_for(kind), False
    if begun:
        raise EOFError("the compressed file breaks off")


def decoder_for(kind: str) -> Any:
    if kind == ".gz":
        return zlib.decompressobj(wbits=31)
    # `zstd --long=31`, in which large collections are published, needs a window of 2 GiB.
    return zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()


@cache
def parser(text_field: str) -> Callable[[bytes], Row | None]:
    """A function from a line to its document, None for an empty line. It raises `ValueError` where there is no text.

    Almost every line goes through a decoder that makes nothing but the fields asked for (670 MB/s on a core, `json` 65).
    What it does not take is decided by `json`: it reads NaN, and says best what is wrong.
    """
    names = (text_field,) if text_field else TEXT_FIELDS
    known = ("id", "license", "url", "lang", "meta")
    if text_field in known:  # a field that is two columns
        return lambda line: _parse_slowly(line, names)
    fields = [(f"field_{i}", str | None, None) for i in range(len(names))]
    fields += [("id_", str | int | None, None), *((name, str | None, None) for name in known[1:-1])]
    renamed = {f"field_{i}": name for i, name in enumerate(names)} | {"id_": "id"}
    struct = msgspec.defstruct(
        "Line", [*fields, ("meta", msgspec.Raw, msgspec.Raw())], rename=renamed, gc=False
    )
    decode = msgspec.json.Decoder(struct).decode

    def parse(line: bytes) -> Row | None:
        try:
            record: Any = decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return _parse_slowly(line, names) if line.strip() else None
        text = record.field_0
        if text is None:
            others = (getattr(record, f"field_{i}") for i in range(1, len(names)))
            text = next((value for value in others if value is not None), None)
            if text is None:
                return _parse_slowly(line, names)
        row = {"text": text}
        if record.id_ is not None:
            row["id"] = str(record.id_)
        if record.license is not None:
            row["license"] = record.license
        if record.url is not None:
            row["url"] = record.url
        if record.lang is not None:
            row["lang"] = record.lang
        if record.meta:
            row |= _meta(json.loads(bytes(record.meta)))
            row.get("meta", "").encode()
        return row

    return parse


def _parse_slowly(line: bytes, names: tuple[str, ...]) -> Row | None:
    if not line.strip():
        return None
    record = json.loads(line.decode("utf-8"))
    if not isinstance(record, dict):
        raise ValueError(f"expected an object, found {type(record).__name__}")
    text = next((record[name] for name in names if isinstance(record.get(name), str)), None)
    if text is None:
        raise ValueError(f"no string in any of {', '.join(names)}; found {', '.join(record)}"[:500])
    row = {"text": text}
    if isinstance(record.get("id"), (str, int)):
        row["id"] = str(record["id"])
    row |= {name: record[name] for name in ("license", "url", "lang") if isinstance(record.get(name), str)}
    row |= _meta(record.get("meta"))
    for value in row.values():
        value.encode()  # half a surrogate pair is JSON, but no text
    return row


def _meta(value: Any) -> Row:
    """What a document says about itself, as JSON; a string is taken as it is."""
    if isinstance(value, dict):
        return {"meta": json.dumps(value)}
    return {"meta": value} if isinstance(value, str) else {}
