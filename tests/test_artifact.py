import dataclasses
import hashlib
import os
import threading

import pytest

from moxin import artifact, storage
from moxin.artifact import Builder, Stage


def counting_stage(log, config=None, inputs=None, text="data"):
    def make(builder: Builder) -> None:
        log.append(builder.url)
        storage.write_text(builder.file("data.txt"), text)
        storage.write_text(builder.file(".scratch", "half"), "x")
        builder.counts["n"] = 1

    return Stage("count", config or {}, inputs or {}, make)


@pytest.fixture(params=["local", "memory", pytest.param("s3", marks=pytest.mark.slow)])
def run_url(request, tmp_path):
    """A run folder on disk, one in fsspec's memory file system, and one on a live S3 server."""
    if request.param == "local":
        yield str(tmp_path)
    elif request.param == "s3":
        yield request.getfixturevalue("s3").url
    else:
        yield "memory://run"
        storage.remove("memory://run")


def test_an_artifact_is_made_once(run_url):
    log = []
    first = artifact.make(counting_stage(log), run_url)
    again = artifact.make(counting_stage(log), run_url)
    assert len(log) == 1
    assert first.manifest == again.manifest
    assert again.counts == {"n": 1}
    assert list(again.manifest["files"]) == ["data.txt"], "scratch is not part of an artifact"


def test_another_configuration_or_input_is_another_artifact(run_url):
    log = []
    base = artifact.make(counting_stage(log), run_url)
    other = artifact.make(counting_stage(log, config={"a": 1}), run_url)
    above = artifact.make(counting_stage(log, inputs={"base": base}), run_url)
    above_other = artifact.make(counting_stage(log, inputs={"base": other}), run_url)
    assert len({item.key for item in (base, other, above, above_other)}) == 4
    assert above.manifest["inputs"]["base"]["key"] == base.key


def test_a_half_made_artifact_is_invisible_and_gone_on_with(run_url):
    def fail(builder):
        storage.write_text(builder.file(".scratch", "shard-0"), "kept")
        raise RuntimeError("killed")

    def go_on(builder):
        storage.write_text(builder.file("data.txt"), storage.read_text(builder.file(".scratch", "shard-0")))

    broken = Stage("work", {}, {}, fail)
    with pytest.raises(RuntimeError):
        artifact.make(broken, run_url)
    assert artifact.find(broken, run_url) is None
    made = artifact.make(dataclasses.replace(broken, make=go_on), run_url)
    assert storage.read_text(made.file("data.txt")) == "kept"


def test_verify_finds_what_was_changed_or_lost(run_url):
    made = artifact.make(counting_stage([]), run_url)
    assert made.verify() == []
    storage.write_text(made.file("data.txt"), "dada")
    assert "does not match" in made.verify()[0]
    storage.remove(made.file("data.txt"))
    assert "missing" in made.verify()[0]


def test_a_file_of_another_size_is_found_without_reading_it(run_url, monkeypatch):
    made = artifact.make(counting_stage([]), run_url)
    storage.write_text(made.file("data.txt"), "longer")
    monkeypatch.setattr(storage, "sha256", None)
    assert made.verify() == [f"{made.file('data.txt')}: content does not match its SHA-256"]


def test_what_its_writer_hashed_is_not_read_again(run_url, monkeypatch):
    read, real = [], storage.sha256

    def sha256(url):
        read.append(url)
        return real(url)

    def make(builder):
        for name in ("known", "unknown"):
            storage.write_text(builder.file("deep", name), name)
        builder.known["deep/known"] = hashlib.sha256(b"known").hexdigest()

    monkeypatch.setattr(storage, "sha256", sha256)
    made = artifact.make(Stage("hashed", {}, {}, make), run_url)
    assert read == [made.file("deep", "unknown")]
    assert made.manifest["files"] == {
        f"deep/{name}": {"bytes": len(name), "sha256": hashlib.sha256(name.encode()).hexdigest()}
        for name in ("known", "unknown")
    }
    assert made.verify() == []
    assert len(read) == 3, "verification takes nobody's word"


def test_a_hash_of_a_file_that_is_not_there_is_refused(run_url):
    def make(builder):
        builder.known["nowhere"] = "0" * 64

    with pytest.raises(AssertionError, match="nowhere"):
        artifact.make(Stage("wrong", {}, {}, make), run_url)


def test_a_partial_file_of_a_killed_writer_is_not_part_of_an_artifact(tmp_path):
    def make(builder):
        storage.write_text(builder.file(".data.txt.0123.partial"), "da")
        storage.write_text(builder.file("data.txt"), "data")

    made = artifact.make(Stage("partial", {}, {}, make), str(tmp_path))
    assert storage.files_under(made.url) == ["data.txt", "manifest.json"]
    assert list(made.manifest["files"]) == ["data.txt"]


def test_an_atomic_write_that_fails_leaves_the_old_file(tmp_path):
    url = str(tmp_path / "file.txt")
    storage.write_text(url, "old")
    with pytest.raises(RuntimeError), storage.open_atomic(url) as handle:  # noqa: PT012
        handle.write(b"ne")
        raise RuntimeError
    assert storage.read_text(url) == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_readers_never_see_half_a_file(tmp_path):
    url, sizes, done = str(tmp_path / "file.bin"), {0, 1 << 20}, threading.Event()
    storage.write_bytes(url, b"")

    def write():
        for _ in range(30):
            storage.write_bytes(url, b"x" * (1 << 20))
            storage.write_bytes(url, b"")
        done.set()

    thread = threading.Thread(target=write)
    thread.start()
    seen = set()
    while not done.is_set():
        seen.add(len(storage.read_bytes(url)))
    thread.join()
    assert seen <= sizes


def test_folders_travel_to_an_object_store_and_back(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c.txt").write_text("deep")
    storage.upload(tmp_path / "a", "memory://up")
    try:
        assert storage.files_under("memory://up") == ["b/c.txt"]
        assert (storage.download("memory://up", tmp_path / "down") / "b" / "c.txt").read_text() == "deep"
    finally:
        storage.remove("memory://up")


def test_an_unknown_protocol_names_the_known_ones():
    with pytest.raises(ValueError, match="s3://"):
        storage.exists("gopher://old/path")
