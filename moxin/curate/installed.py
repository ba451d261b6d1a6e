"""What every Python installation carries: documentation for the prose source, modules for the code source.

Paths are relative to one of `sysconfig`'s folders, so that ids and the choice of files do not depend on where Python or a
virtual environment lies. The licence is what the distribution's own metadata says.
"""

import csv
import functools
import importlib.metadata
import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from pathlib import Path, PurePosixPath
from typing import cast

OWN_NAME = "moxin"
SITE_FOLDERS = ("purelib", "platlib")
NO_LICENSE = "NOASSERTION"
"""SPDX's word for a distribution whose metadata names no licence; it must not inherit the source's."""
_SKIPPED = (
    "test tests testing idle_test lib2to3 _vendor _bundled thirdparty_files site-packages dist-packages .."
)
SKIPPED_FOLDERS = frozenset(_SKIPPED.split())
SUFFIXES = (".py", ".rst", ".md", ".txt", "/METADATA")
_NOT_PROSE = "license licence copying notice authors requirements cmakelists top_level entry_points"
NOT_PROSE = tuple(_NOT_PROSE.split())
"""How names of text files begin that hold legal text or lists."""
SPDX = {
    "MIT License": "MIT",
    "Apache Software License": "Apache-2.0",
    "ISC License (ISCL)": "ISC",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "The Unlicense (Unlicense)": "Unlicense",
}
"""Trove classifiers that mean one SPDX licence; others ("BSD License") are recorded as they are."""


@dataclass(frozen=True)
class InstalledFile:
    """A file of the standard library (`root` "stdlib") or of a distribution (`root` "purelib" or "platlib")."""

    root: str
    path: str
    """Relative to `sysconfig.get_path(root)`, with forward slashes."""
    size: int
    owner: str
    """`numpy 2.4.6`, or `python 3.11` for the standard library."""
    license: str
    """Empty for the standard library: the source's own."""

    @property
    def id(self) -> str:
        return f"{'stdlib' if self.root == 'stdlib' else 'site'}/{self.path}"


def location(root: str, path: str) -> Path:
    return Path(sysconfig.get_path(root)) / path


def is_code(path: PurePosixPath) -> bool:
    skipped = path.name.startswith(("test_", "conftest.py")) or path.name.endswith(
        ("_test.py", "_pb2.py", "_pb2_grpc.py")
    )
    return path.suffix == ".py" and not skipped


def is_prose(path: PurePosixPath) -> bool:
    if path.suffix not in (".rst", ".md", ".txt"):
        return path.name == "METADATA" and path.parent.suffix == ".dist-info"
    in_dist_info = any(part.endswith(".dist-info") for part in path.parts)
    return not in_dist_info and not path.name.lower().startswith(NOT_PROSE)


def files(kind: str) -> list[InstalledFile]:
    """The files of the `prose` or `code` source, sorted by id, without empty ones, tests and moxin itself."""
    wanted = {"prose": is_prose, "code": is_code}[kind]
    return [file for file in _all() if wanted(PurePosixPath(file.path))]


@functools.cache
def _all() -> list[InstalledFile]:
    found = {file.id: file for file in (*_standard_library(), *_distributions()) if file.size}
    return [found[id_] for id_ in sorted(found)]


def _standard_library() -> Iterator[InstalledFile]:
    top = Path(sysconfig.get_path("stdlib"))
    owner = f"python {sysconfig.get_python_version()}"
    for folder, subfolders, names in os.walk(top):
        subfolders[:] = [name for name in subfolders if name not in SKIPPED_FOLDERS]
        for path in (Path(folder, name) for name in names if name.endswith(SUFFIXES)):
            yield InstalledFile("stdlib", path.relative_to(top).as_posix(), path.stat().st_size, owner, "")


def _distributions() -> Iterator[InstalledFile]:
    for root in SITE_FOLDERS:
        for distribution in importlib.metadata.distributions(path=[sysconfig.get_path(root)]):
            if distribution.name.lower() == OWN_NAME:
                continue
            owner, license_ = f"{distribution.name} {distribution.version}", license_of(distribution)
            # What a wheel installed, with sizes: tens of thousands of files need no look at the disk.
            for path, _, size in csv.reader((distribution.read_text("RECORD") or "").splitlines()):
                if path.endswith(SUFFIXES) and size and SKIPPED_FOLDERS.isdisjoint(path.split("/")):
                    yield InstalledFile(root, path, int(size), owner, license_)


def license_of(distribution: importlib.metadata.Distribution) -> str:
    """An SPDX expression where the metadata has one, else its one-line licence, else its classifiers."""
    metadata = cast(Message, distribution.metadata)
    if expression := metadata.get("License-Expression"):
        return str(expression)
    named = str(metadata.get("License") or "").strip()
    if named and "\n" not in named and len(named) <= 64 and named.lower() not in ("unknown", "none"):
        return SPDX.get(named, named)
    prefix = "License :: "
    classifiers = [
        item.rsplit(" :: ", 1)[-1] for item in metadata.get_all("Classifier") or () if item.startswith(prefix)
    ]
    exact = [SPDX.get(item, item) for item in classifiers if item != "OSI Approved"]
    return " OR ".join(exact) or NO_LICENSE


def read(root: str, path: str) -> str:
    """The text of an installed file; of a METADATA file, its long description.

    Raises `UnicodeDecodeError` where it is not UTF-8 and `OSError` where it cannot be read.
    """
    place = location(root, path)
    if place.name == "METADATA" and place.parent.suffix == ".dist-info":
        metadata = importlib.metadata.Distribution.at(place.parent).metadata
        return str(cast(Message, metadata).get_payload() or "")
    return place.read_bytes().decode("utf-8-sig")


def topics() -> dict[str, str]:
    """Python's own reference by topic, as `help("TOPIC")` shows it."""
    from pydoc_data.topics import topics

    return dict(topics)
