import dataclasses
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


@pytest.fixture(params=["local", "memory"])
def run_url(request, tmp_path):
    """A run folder on disk and one in an object store (fsspec's memory file system)."""
    if request.param == "local":
        yield str(tmp_path)
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
