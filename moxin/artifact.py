"""An artifact is a folder with its data and a `manifest.json`, written last: without it the folder does not count.

The folder's name carries the key: a hash of the stage's configuration and of the keys of its inputs. A stage whose key
exists is not made again, a half-made one is invisible and is gone on with, and nothing else holds state. That one idea gives
resume, provenance and verification.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from moxin import __version__, storage
from moxin.config import digest, to_jsonable

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Artifact:
    """A finished artifact: where it is and what its manifest says."""

    name: str
    key: str
    url: str
    manifest: Mapping[str, Any]

    def file(self, *parts: str) -> str:
        return storage.join(self.url, *parts)

    @property
    def counts(self) -> Mapping[str, Any]:
        return self.manifest["counts"]

    def verify(self) -> list[str]:
        """What is wrong with the files against their sizes and SHA-256; empty when nothing is. Reads every byte."""
        sizes = storage.sizes_under(self.url)

        def problem(name: str) -> str:
            expected = self.manifest["files"][name]
            if name not in sizes:
                return "missing"
            if sizes[name] != expected["bytes"] or storage.sha256(self.file(name)) != expected["sha256"]:
                return "content does not match its SHA-256"
            return ""

        names = list(self.manifest["files"])
        problems = zip(names, storage.in_threads(problem, names), strict=True)
        return [f"{self.file(name)}: {found}" for name, found in problems if found]


@dataclass
class Builder:
    """What a stage writes into: a folder of its own, its inputs, and the counts that go into the manifest.

    The folder may hold files of an earlier attempt with the same key: a stage may use those that it knows to be complete.
    """

    url: str
    inputs: Mapping[str, Artifact]
    counts: dict[str, Any] = field(default_factory=dict)
    known: dict[str, str] = field(default_factory=dict)
    """SHA-256 by relative name, of files whose writer took it on the way: they are not read again for the manifest."""

    def file(self, *parts: str) -> str:
        return storage.join(self.url, *parts)


@dataclass(frozen=True)
class Stage:
    """A step of a run: its name, the slice of the recipe that decides its result, its inputs, and how it is made.

    `scratch` names a folder, relative to the artifact, which is deleted when the stage is done and is not part of it.
    """

    name: str
    config: Any
    inputs: Mapping[str, Artifact]
    make: Callable[[Builder], None]
    scratch: str = ".scratch"

    @property
    def key(self) -> str:
        inputs = {role: artifact.key for role, artifact in self.inputs.items()}
        return digest({"stage": self.name, "config": to_jsonable(self.config), "inputs": inputs})[:12]

    def url(self, run_url: str) -> str:
        return storage.join(run_url, f"{self.name}-{self.key}")


def find(stage: Stage, run_url: str) -> Artifact | None:
    """The stage's artifact, if it was made."""
    url = stage.url(run_url)
    if not storage.exists(storage.join(url, MANIFEST)):
        return None
    return Artifact(stage.name, stage.key, url, storage.read_json(storage.join(url, MANIFEST)))


def make(stage: Stage, run_url: str) -> Artifact:
    """The stage's artifact, made now if it does not exist."""
    if found := find(stage, run_url):
        return found
    url = stage.url(run_url)
    storage.makedirs(url)
    builder = Builder(url, stage.inputs)
    started = time.monotonic()
    stage.make(builder)
    storage.remove(storage.join(url, stage.scratch))
    inputs = {role: {"name": item.name, "key": item.key} for role, item in stage.inputs.items()}
    seconds = time.monotonic() - started
    manifest = seal(url, stage.name, stage.key, stage.config, inputs, builder.counts, seconds, builder.known)
    return Artifact(stage.name, stage.key, url, manifest)


def seal(
    url: str,
    name: str,
    key: str,
    config: Any,
    inputs: Mapping[str, Mapping[str, str]],
    counts: Mapping[str, Any],
    seconds: float,
    known: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Writes the manifest of a folder whose files are all there, and returns it.

    Sizes come from one listing. Files are read for their SHA-256, but for those of which it is `known`, by relative name.
    """
    hashes, sizes = dict(known or {}), storage.sizes_under(url)
    for name in [
        name for name in sizes if name.endswith(".partial")
    ]:  # of a process that was killed while it wrote
        storage.remove(storage.join(url, name))
        del sizes[name]
    assert hashes.keys() <= sizes.keys(), f"known but not there: {sorted(hashes.keys() - sizes.keys())[:3]}"
    unknown = [name for name in sizes if name not in hashes]
    found = storage.in_threads(lambda name: storage.sha256(storage.join(url, name)), unknown)
    hashes |= dict(zip(unknown, found, strict=True))
    files = {name: {"bytes": size, "sha256": hashes[name]} for name, size in sizes.items()}
    manifest = {
        "stage": name,
        "key": key,
        "config": to_jsonable(config),
        "inputs": inputs,
        "counts": to_jsonable(counts),
        "files": files,
        "moxin": __version__,
        "seconds": round(seconds, 3),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    storage.write_json(storage.join(url, MANIFEST), manifest)
    return manifest
