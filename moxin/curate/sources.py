"""From a recipe's sources to units of work: which files are read, in which order, how much of each.

The list is made in the driver and depends on nothing but the sources: not on workers, blocks, or absolute paths. A unit is
what one task reads, and what is redone when a task dies.
"""

import json
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

import pyarrow as pa

from moxin import storage
from moxin.artifact import Artifact
from moxin.config import digest
from moxin.curate import installed, parquet, trees
from moxin.curate.documents import stable_hash
from moxin.recipe import PLACEHOLDER, SourceConfig

UNIT_BYTES = 1 << 20
"""Installed files are put together into a unit up to this size."""
FOLDER_UNIT_BYTES = 64 << 20
"""Text of a unit of a folder or tree, estimated. Files are put together up to it, and a larger file is split into parts of
about this size where that can be done without reading it: plain JSON lines by bytes, Parquet by row groups."""
MAX_UNITS = 20_000
"""Units of folders and trees, roughly: of a corpus that would have more, each is larger. Tasks of deduplication read a slice
of every unit's file."""
UNIT_FILES = 8192
"""Each file is a request to an object store."""
TEXT_PER_BYTE = {".gz": 4, ".zst": 4, ".parquet": 3}
"""Uncompressed text in a byte of a compressed file, roughly."""
ONE_DOCUMENT = (".txt", ".md")
MANY_DOCUMENTS = (
    *(".jsonl", ".jsonl.gz", ".jsonl.zst", ".json.gz", ".json.zst", ".parquet"),
    *(".warc", ".warc.gz", ".warc.wet.gz"),
)


@dataclass(frozen=True)
class Item:
    """One file to read."""

    root: str
    """A `sysconfig` folder, `pydoc` for a topic of Python's reference, `world`, or empty where `path` is a URL."""
    path: str
    id: str
    """The document's id, or what the ids of the file's documents begin with where they bring none."""
    size: int
    """Bytes, compressed as they lie; of a part, its share."""
    license: str
    url: str = ""
    meta: str = "{}"
    limit: int = 0
    """Bytes of text after which reading stops; 0 reads all."""
    lang: str = ""
    first: int = 0
    """Of a part of a file: the byte from which on lines belong to it, or the first row group."""
    stop: int = 0
    """The byte or row group behind it; 0 reads to the end."""


@dataclass(frozen=True)
class Unit:
    source: int
    """Position in the recipe's sources, which is the priority among duplicates."""
    items: tuple[Item, ...]

    @property
    def size(self) -> int:
        return sum(item.size for item in self.items)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(value: dict[str, Any]) -> "Unit":
        return Unit(value["source"], tuple(Item(**item) for item in value["items"]))


def check(source: SourceConfig) -> None:
    """Raises `ValueError` where a folder or tree cannot be read at all, or a setting has no effect."""
    _checked(source)


def _checked(source: SourceConfig) -> list[tuple[str, int]]:
    """Names and sizes of the files of a folder or tree; none for other kinds."""
    where = f"source {source.name!r}: {source.path or '(no path)'}"
    if source.text_field and source.kind != "folder":
        raise ValueError(
            f"sources.{source.name}.text_field has no effect on kind {source.kind!r}; leave it out"
        )
    if source.kind not in ("folder", "tree"):
        return []
    wanted = " ".join(ONE_DOCUMENT + MANY_DOCUMENTS) if source.kind == "folder" else "source code"
    if source.path.startswith(PLACEHOLDER):
        raise ValueError(
            f"sources.{source.name}.path = {source.path} is a placeholder: say where the corpora lie with "
            f"MOXIN_DATA=s3://bucket/folder, or set sources.{source.name}.path"
        )
    if not source.path or not storage.exists(source.path):
        raise ValueError(
            f"{where}: no such folder; set sources.{source.name}.path to one with {wanted} files"
        )
    if source.kind == "folder":
        files = _folder_files(source.path)
        some = bool(files)
    else:
        files = sorted(trees.listing(source.path).items())
        some = any(trees.is_code(name, size) for name, size in files)
    if not some:
        raise ValueError(f"{where}: holds none of {wanted}")
    for name, _ in files:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{where}: the name of {name!r} is not UTF-8; rename the file") from error
    return files


def fingerprint(source: SourceConfig) -> str:
    """What stands for a folder's or tree's content in the artifact's key: names and sizes of its files. Empty for other
    kinds. Raises `ValueError` for a folder that is missing or holds no documents.

    Installed packages are not part of it: a development tool installed later must not set off a new training run.
    """
    files = _checked(source)
    return digest(files) if source.kind in ("folder", "tree") else ""


def units(sources: tuple[SourceConfig, ...], world: Artifact) -> list[Unit]:
    """All units, source by source."""
    found = []
    listed = [limited(_items(source, world), source.max_bytes) for source in sources]
    total = sum(text_bytes(item) for items in listed for item in items if not item.root)
    unit_bytes = max(FOLDER_UNIT_BYTES, total // MAX_UNITS)
    for position, (source, items) in enumerate(zip(sources, listed, strict=True)):
        most = UNIT_BYTES
        if source.kind in ("folder", "tree"):
            parts = storage.in_threads(partial(_parts, source, unit_bytes), items)
            items, most = [part for of_file in parts for part in of_file], unit_bytes
        group: list[Item] = []
        size = 0
        for item in items:
            if group and (size + text_bytes(item) > most or len(group) == UNIT_FILES):
                found.append(Unit(position, tuple(group)))
                group, size = [], 0
            group.append(item)
            size += text_bytes(item)
        if group:
            found.append(Unit(position, tuple(group)))
    return found


def text_bytes(item: Item) -> int:
    """Bytes of text in a file or part of one, roughly."""
    if item.root:
        return item.size
    return item.size * next((n for suffix, n in TEXT_PER_BYTE.items() if item.path.endswith(suffix)), 1)


def _parts(source: SourceConfig, unit_bytes: int, item: Item) -> list[Item]:
    """A file of a folder as parts of about `unit_bytes` of text, or itself.

    Compressed lines and archives stay whole: where a line or record begins in them is not to be known without reading.
    """
    if source.kind != "folder" or text_bytes(item) <= unit_bytes:
        return [item]
    if item.path.endswith(".jsonl"):
        n = -(-item.size // unit_bytes)
        edges = [item.size * i // n for i in range(n + 1)]
        sizes = [b - a for a, b in pairwise(edges)]
    elif item.path.endswith(".parquet"):
        try:
            with storage.open_read(item.path) as handle:
                sizes = parquet.groups(handle, source.text_field)
        except (pa.ArrowException, OSError, ValueError):
            return [item]  # what is wrong with it is said where it is read
        which = [total // unit_bytes for total in accumulate(sizes, initial=0)]
        edges = [i for i in range(len(sizes)) if i == 0 or which[i] != which[i - 1]] + [len(sizes)]
        sizes = [sum(sizes[a:b]) for a, b in pairwise(edges)]
    else:
        return [item]
    if len(edges) < 3:
        return [item]
    total = sum(sizes)
    return [
        replace(
            item,
            size=item.size * size // total,
            limit=max(item.limit * size // total, 1) if item.limit else 0,
            first=first,
            stop=stop,
        )
        for size, (first, stop) in zip(sizes, pairwise(edges), strict=True)
    ]


def limited(items: list[Item], max_bytes: int) -> list[Item]:
    """At most `max_bytes` of text, 0 for all.

    Files of one document are drawn by the hash of their id, not in the order of the alphabet, until the next would be too
    much. A file of many documents is read up to its share of the limit, for its unpacked size is not known; one that is
    split gives a share from the beginning of each part.
    """
    if not max_bytes:
        return items
    total = sum(item.size for item in items)
    kept, budget = [], max_bytes
    for item in items:
        if item.path.endswith(MANY_DOCUMENTS):
            share = max_bytes * item.size // total
            kept.append(replace(item, limit=max(share, 1)))
            budget -= share
    for item in sorted(items, key=lambda item: stable_hash(item.id)):
        if item.path.endswith(MANY_DOCUMENTS):
            continue
        if item.size > budget:
            break
        budget -= item.size
        kept.append(item)
    return sorted(kept, key=lambda item: item.id)


def _items(source: SourceConfig, world: Artifact) -> list[Item]:
    if source.kind in ("tinyworld", "quiz"):
        size = world.manifest["files"]["documents.parquet"]["bytes"]
        return [Item("world", world.file("documents.parquet"), "world", size, source.license)]
    if source.kind in ("folder", "tree"):
        folder = storage.absolute(source.path)  # tasks have other working directories
    if source.kind == "folder":
        files = _checked(source)
        at = folder.rpartition("/")[2]
        one = [(at, size) for name, size in files if not name]
        return [Item("", folder, at, size, source.license) for at, size in one] or [
            Item("", storage.join(folder, name), name, size, source.license) for name, size in files
        ]
    if source.kind == "tree":
        return [
            Item(
                "",
                storage.join(folder, file.name),
                file.name,
                file.size,
                source.license if file.license is None else file.license,
                url=file.name,
                meta=json.dumps(
                    {"repository": file.repository, "path": file.name.removeprefix(f"{file.repository}/")}
                ),
                lang=file.lang,
            )
            for file in trees.files(folder)
        ]
    items = [
        Item(
            file.root,
            file.path,
            file.id,
            file.size,
            file.license or source.license,
            url=f"{file.owner.split()[0].lower()}:{file.path}",
            meta=json.dumps({"distribution": file.owner}),
        )
        for file in installed.files(source.kind)
    ]
    if source.kind == "prose":
        items += [
            Item("pydoc", name, f"pydoc/{name}", len(text.encode()), source.license, url=f"pydoc:{name}")
            for name, text in sorted(installed.topics().items())
        ]
    return items


def _folder_files(url: str) -> list[tuple[str, int]]:
    """Relative names and sizes of the readable files below a folder, sorted; hidden ones are left out. A file's own name is
    empty."""
    return sorted(
        (name, size)
        for name, size in storage.sizes_under(url).items()
        if (name or url.rstrip("/")).endswith(ONE_DOCUMENT + MANY_DOCUMENTS)
        and not any(part.startswith(".") for part in name.split("/"))
    )
