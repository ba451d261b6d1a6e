"""The cache of remote shards and several processes: they compete for a bounded folder, and are killed at any moment."""

import hashlib
import multiprocessing
import os
import random
import signal
import threading
import time

import pytest
from test_tokens_cache import LARGE, MANY, held, partials, put

import moxin.s3
from moxin import storage
from moxin.tokens import cache as cache_module
from moxin.tokens.cache import ShardCache

pytestmark = pytest.mark.slow
spawn = multiprocessing.get_context("spawn")


@pytest.fixture
def url(tmp_path):
    return str(tmp_path / "source")


@pytest.fixture
def files(url):
    return [put(url, f"shards/{n:02d}.bin", data) for n, data in enumerate(MANY)]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


def read_all(url, folder, files, max_bytes, seed, n):
    """In another process: reads `n` random files whole and checks them."""
    cache, chosen = ShardCache(url, folder, max_bytes), random.Random(seed)
    for _ in range(n):
        ahead = chosen.sample(files, 2)
        cache.prefetch(ahead)
        for file in ahead:
            with cache.open(*file) as handle:
                assert hashlib.file_digest(handle, "sha256").hexdigest() == file[2]
    cache.close()


def test_four_processes_and_a_bound_that_forces_eviction(url, files, folder):
    bound, worst = 900_000, 0  # 4 processes load at most 2 files each at a time, which fit
    others = [spawn.Process(target=read_all, args=(url, folder, files, bound, n, 150)) for n in range(4)]
    for other in others:
        other.start()
    while any(other.is_alive() for other in others):
        worst = max(worst, held(folder))
        time.sleep(0.002)
    assert [other.exitcode for other in others] == [0] * 4
    assert 500_000 < worst <= bound
    assert partials(folder) == []


def test_four_processes_that_want_the_same_download_it_once(s3, folder):
    file = put(s3.url, "shard.bin", LARGE)
    s3.faults.bytes_per_s = 3_000_000
    others = [
        spawn.Process(target=read_all, args=(s3.url, folder, [file, file], 10**9, n, 1)) for n in range(4)
    ]
    for other in others:
        other.start()
    for other in others:
        other.join()
    assert [other.exitcode for other in others] == [0] * 4
    assert sum(request.startswith("GET") and "shard.bin" in request for request in s3.faults.requests) == 1


def get_in_small_steps(url, folder, file):
    moxin.s3.PART_BYTES = cache_module._BLOCK = 1 << 17
    ShardCache(url, folder).get(*file)


def test_kill_9_in_the_middle_of_a_download(s3, folder):
    """One process is killed, the one that waits for it takes over, and what the dead one left is swept."""
    file = put(s3.url, "shard.bin", LARGE)
    s3.faults.bytes_per_s = 1_000_000
    killed = spawn.Process(target=get_in_small_steps, args=(s3.url, folder, file))
    killed.start()
    while not any((folder / "partial" / name).stat().st_blocks for name in partials(folder)):
        assert killed.is_alive()
        time.sleep(0.01)
    cache, got = ShardCache(s3.url, folder), []
    waiter = threading.Thread(target=lambda: got.append(cache.get(*file)))
    waiter.start()
    time.sleep(0.2)
    assert not got
    os.kill(killed.pid, signal.SIGKILL)
    killed.join()
    s3.faults.reset()
    waiter.join()
    assert got[0].read_bytes() == LARGE
    assert partials(folder) == []


def test_kill_9_at_any_moment_leaves_nothing_but_whole_files(url, files, folder):
    for seed in range(6):
        killed = spawn.Process(target=read_all, args=(url, folder, files, 300_000, seed, 10_000))
        killed.start()
        before = storage.sizes_under(str(folder / "objects"))
        while killed.is_alive() and storage.sizes_under(str(folder / "objects")) == before:
            time.sleep(0.001)
        time.sleep(random.Random(seed).random() / 50)
        os.kill(killed.pid, signal.SIGKILL)
        killed.join()
        for path in (folder / "objects").glob("*/*"):
            assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
    assert [ShardCache(url, folder, 300_000).get(*file).read_bytes() for file in files] == MANY
    assert partials(folder) == []
