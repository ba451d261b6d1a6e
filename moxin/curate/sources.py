"""From a recipe's sources to units of work: which files are read, in which order, how much of each.

The list is made in the driver and depends on nothing but the sources: not on workers, blocks, or absolute paths. A unit is
what one task reads, and what is redone when a task dies.
"""

import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from moxin import storage
from moxin.artifact import Artifact
from moxin.config import digest
from moxin.curate import installed
from moxin.curate.documents import stable_hash
from moxin.recipe import SourceConfig

UNIT_BYTES = 1 << 20
"""Files are put together into a unit up to this size; a larger file is a unit of its own."""
ONE_DOCUMENT = (".txt", ".md")
MANY_DOCUMENTS = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")


@dataclass(frozen=True)
class Item:
    """One file to read."""

    root: str
    """A `sysconfig` folder, `pydoc` for a topic of Python's reference, `world`, or empty where `path` is a URL."""
    path: str
    id: str
    """The document's id, or what the ids of the file's documents begin with where they bring none."""
    size: int
    """Bytes, compressed as they lie."""
    license: str
    url: str = ""
    meta: str = "{}"
    limit: int = 0
    """Bytes of text after which reading stops; 0 reads all."""


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
    """Raises `ValueError` where a folder source cannot be read at all."""
    if source.kind != "folder":
        return
    where = f"source {source.name!r}: {source.path or '(no path)'}"
    wanted = " ".join(ONE_DOCUMENT + MANY_DOCUMENTS)
    if not source.path or not storage.exists(source.path):
        raise ValueError(
            f"{where}: no such folder; set sources.{source.name}.path to one with {wanted} files"
        )
    if not _folder_files(source.path):
        raise ValueError(f"{where}: holds none of {wanted}")


def fingerprint(source: SourceConfig) -> str:
    """What stands for a folder's content in the artifact's key: names and sizes of its files. Empty for other kinds.
    Raises `ValueError` for a folder that is missing or holds no documents.

    Installed packages are not part of it: a development tool installed later must not set off a new training run.
    """
    check(source)
    return digest(_folder_files(source.path)) if source.kind == "folder" else ""


def units(sources: tuple[SourceConfig, ...], world: Artifact) -> list[Unit]:
    """All units, source by source."""
    found = []
    for position, source in enumerate(sources):
        group: list[Item] = []
        for item in limited(_items(source, world), source.max_bytes):
            if group and sum(other.size for other in group) + item.size > UNIT_BYTES:
                found.append(Unit(position, tuple(group)))
                group = []
            group.append(item)
        if group:
            found.append(Unit(position, tuple(group)))
    return found


def limited(items: list[Item], max_bytes: int) -> list[Item]:
    """At most `max_bytes` of text, 0 for all.

    Files of one document are drawn by the hash of their id, not in the order of the alphabet, until the next would be too
    much. A file of many documents is read up to its share of the limit, for its unpacked size is not known.
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
    if source.kind == "folder":
        folder = storage.absolute(source.path)  # tasks have other working directories
        return [
            Item("", storage.join(folder, name), name, size, source.license)
            for name, size in _folder_files(source.path)
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
    """Relative names and sizes of the readable files below a folder, sorted; hidden ones are left out."""
    fs, path = storage.filesystem(url)
    prefix = path.rstrip("/") + "/"
    sizes = {
        str(name).removeprefix(prefix): int(info["size"]) for name, info in fs.find(path, detail=True).items()
    }
    return sorted(
        (name, size)
        for name, size in sizes.items()
        if name.endswith(ONE_DOCUMENT + MANY_DOCUMENTS)
        and not any(part.startswith(".") for part in name.split("/"))
    )
