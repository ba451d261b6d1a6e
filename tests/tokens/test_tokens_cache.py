"""The cache of remote shards: what is kept, eviction under readers, damage, full disks, broken connections."""

import hashlib
import io
import mmap
import os
import random
import subprocess
import time
from contextlib import nullcontext
from pathlib import Path

import pytest

import moxin.s3
from moxin import storage
from moxin.tokens import cache as cache_module
from moxin.tokens.cache import ShardCache, cache_folder

MANY = [random.Random(seed).randbytes(100_000 + seed) for seed in range(12)]
LARGE = random.Random(99).randbytes(3_000_000)


def put(url: str, name: str, data: bytes) -> tuple[str, int, str]:
    storage.write_bytes(storage.join(url, name), data)
    return name, len(data), hashlib.sha256(data).hexdigest()


@pytest.fixture
def url(tmp_path):
    return str(tmp_path / "source")


@pytest.fixture
def files(url):
    return [put(url, f"shards/{n:02d}.bin", data) for n, data in enumerate(MANY)]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


def held(folder: Path) -> int:
    return sum(storage.sizes_under(str(folder / "objects")).values())


def partials(folder: Path) -> list[str]:
    return storage.files_under(str(folder / "partial"))


def age(path: Path, seconds: float) -> None:
    os.utime(path, (time.time() - seconds,) * 2)


def test_a_copy_is_made_once_and_found_by_its_content(url, files, folder, tmp_path):
    cache = ShardCache(url, folder)
    path = cache.get(*files[0])
    assert path.read_bytes() == MANY[0]
    storage.remove(url)
    assert ShardCache(str(tmp_path / "another store"), folder).get("other/name.bin", *files[0][1:]) == path
    with cache.open(*files[0]) as handle:
        assert handle.read() == MANY[0]
    assert partials(folder) == []


def test_an_empty_file(url, folder):
    assert ShardCache(url, folder).get(*put(url, "empty", b"")).read_bytes() == b""


def test_where_the_cache_is_and_how_large_it_may_become(url, files, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / "moxin" / "tokens"
    cache = ShardCache(url)
    assert cache.get(*files[0]).is_relative_to(cache_folder())
    free = 1_000_000
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("", (), {"free": free}))
    assert ShardCache(url).max_bytes == (free + len(MANY[0])) // 2
    free = 10**15
    assert ShardCache(url).max_bytes == 200 * 10**9


def test_the_least_recently_used_are_evicted_first(url, files, folder):
    cache = ShardCache(url, folder, max_bytes=350_000)
    paths = [cache.get(*file) for file in files[:3]]
    for seconds, path in zip((300, 200, 100), paths, strict=True):
        age(path, seconds)
    assert cache.get(*files[0]) == paths[0]  # used again
    cache.get(*files[3])
    assert [path.exists() for path in paths] == [True, False, True]
    assert held(folder) <= 350_000


def test_what_is_mapped_or_open_outlives_its_eviction(url, files, folder):
    cache = ShardCache(url, folder, max_bytes=150_000)
    path = cache.get(*files[0])
    with cache.open(*files[0]) as handle:
        mapped = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
        cache.get(*files[1])
        assert not path.exists()
        assert handle.read() == mapped[:] == MANY[0]
    assert cache.get(*files[0]).read_bytes() == MANY[0]


def test_a_file_beyond_the_bound_names_both_numbers_and_the_setting(url, files, folder):
    with pytest.raises(ValueError, match=r"00\.bin has 100,000 bytes.* may have 99,999;.*max_bytes"):
        ShardCache(url, folder, max_bytes=99_999).get(*files[0])
    assert held(folder) == 0


def test_a_copy_that_lost_bytes_is_fetched_again(url, files, folder):
    cache = ShardCache(url, folder)
    path = cache.get(*files[0])
    path.write_bytes(MANY[0][:-1])
    assert cache.get(*files[0]).read_bytes() == MANY[0]


@pytest.mark.parametrize("found", [MANY[1][:100_000], MANY[0][:-7], MANY[0] + b"more"])
def test_a_source_that_was_altered(url, files, folder, found):
    put(url, files[0][0], found)
    cache = ShardCache(url, folder)
    with pytest.raises(
        ValueError, match=r"00\.bin: a damaged token shard.*jobs/tokenize\.py again"
    ) as caught:
        cache.get(*files[0])
    for fact in (f"{len(found):,}", hashlib.sha256(found).hexdigest(), "100,000", files[0][2]):
        assert fact in str(caught.value)
    assert held(folder) == 0
    assert partials(folder) == []
    put(url, files[0][0], MANY[0])
    assert cache.get(*files[0]).read_bytes() == MANY[0]


def test_content_that_was_altered_on_its_way_is_fetched_a_second_time(url, files, folder, monkeypatch):
    real, reads = storage.open_read, []

    def open_read(url):
        reads.append(url)
        return nullcontext(io.BytesIO(MANY[0][::-1])) if len(reads) == 1 else real(url)

    monkeypatch.setattr(storage, "open_read", open_read)
    assert ShardCache(url, folder).get(*files[0]).read_bytes() == MANY[0]
    assert len(reads) == 2


def test_a_missing_source_and_a_bad_checksum(url, folder):
    with pytest.raises(ValueError, match=r"gone\.bin: a damaged token shard, it is missing; .*tokenize"):
        ShardCache(url, folder).get("gone.bin", 5, "0" * 64)
    with pytest.raises(ValueError, match="no SHA-256"):
        ShardCache(url, folder).get("gone.bin", 5, "../../elsewhere")


def test_prefetch_then_get(url, files, folder):
    cache = ShardCache(url, folder)
    cache.prefetch(files)
    assert [cache.get(*file).read_bytes() for file in files] == MANY
    cache.prefetch(files)  # nothing to do
    assert not cache._pending
    cache.close()
    assert partials(folder) == []


def test_an_error_in_the_background_surfaces_in_get(url, files, folder):
    put(url, files[1][0], b"altered")
    cache = ShardCache(url, folder)
    cache.prefetch(files[:3])
    assert cache.get(*files[0]).read_bytes() == MANY[0]
    with pytest.raises(ValueError, match=r"01\.bin: a damaged token shard"):
        cache.get(*files[1])
    assert cache.get(*files[2]).read_bytes() == MANY[2]
    put(url, files[1][0], MANY[1])
    assert cache.get(*files[1]).read_bytes() == MANY[1], "not for ever"
    cache.close()


def test_prefetch_leaves_room_for_what_is_in_use(url, files, folder):
    cache = ShardCache(url, folder, max_bytes=500_000)
    cache.prefetch(files)
    cache.close()
    assert len(storage.files_under(str(folder / "objects"))) <= 2
    assert [cache.get(*file).read_bytes() for file in files] == MANY


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cut_downloads", "lose_answers", "refuse"])
def test_connections_that_break(s3, folder, kind):
    file = put(s3.url, "shard.bin", LARGE)
    s3.faults.only = "GET"
    getattr(s3.faults, kind)(2)
    assert ShardCache(s3.url, folder).get(*file).read_bytes() == LARGE
    assert s3.faults.injected == 2


@pytest.mark.slow
def test_closing_ends_a_download_in_the_background(s3, folder, monkeypatch):
    file = put(s3.url, "shard.bin", LARGE[:1_000_000])
    monkeypatch.setattr(moxin.s3, "PART_BYTES", 1 << 17)
    monkeypatch.setattr(cache_module, "_BLOCK", 1 << 17)
    s3.faults.bytes_per_s = 300_000
    cache = ShardCache(s3.url, folder)
    cache.prefetch([file])
    while not partials(folder):
        time.sleep(0.01)
    cache.close()
    assert partials(folder) == []
    assert held(folder) == 0


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB. Needs the right to mount one; the test is skipped, visibly, where that is missing."""
    where = tmp_path / "disk"
    where.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "moxin-test", where], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a file system: {mounted.stderr.decode().strip()}")
    yield where
    subprocess.run(["umount", "-l", where], check=True)


def test_a_full_disk_evicts_and_then_says_so(url, files, small_disk):
    cache = ShardCache(url, small_disk, max_bytes=10**9)
    handles = [cache.open(*file) for file in files[:8]]  # 800 kB, which stay taken however much is evicted
    for file, data in zip(files, MANY, strict=True):
        assert cache.get(*file).read_bytes() == data
    large = put(url, "large.bin", LARGE)
    with pytest.raises(
        OSError, match=r"large\.bin: its 3,000,000 bytes do not fit .*XDG_CACHE_HOME"
    ) as caught:
        cache.get(*large)
    assert caught.value.errno is None
    assert partials(small_disk) == []
    for handle, data in zip(handles, MANY, strict=False):
        assert handle.read() == data
        handle.close()
    assert cache.get(*files[0]).read_bytes() == MANY[0]
