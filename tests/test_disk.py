"""A disk that is full: one clear message, nothing lost, and the same command goes on once there is room."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from road import Walk, finished

pytestmark = pytest.mark.slow


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 600 KiB. Needs the right to mount one; the test is skipped, visibly, where that is missing."""
    where = tmp_path / "disk"
    where.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=600k", "moxin-test", where], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a file system: {mounted.stderr.decode().strip()}")
    yield where
    subprocess.run(["umount", "-l", where], check=True)


def resize(disk: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", disk], check=True)


def test_a_full_disk_stops_the_run_with_a_message_and_more_room_lets_it_go_on(small_disk, tmp_path):
    run = small_disk / "run"

    def start(job: str) -> Walk:
        return Walk(run, "--set", "scaling.max_failures=0", job=job, log=tmp_path / "log.txt")

    def walk(job: str) -> tuple[int, str]:
        attempt = start(job)
        return attempt.wait(), attempt.tail()

    code, told = walk("curate.py")
    assert code == 1, told
    assert "no space left" in told
    assert not finished(run, "curate")

    resize(small_disk, "64m")
    code, told = walk("tokenize.py")
    assert code == 0, told

    used = os.statvfs(small_disk)
    taken = (used.f_blocks - used.f_bfree) * used.f_frsize
    resize(small_disk, str(taken + 1_000_000))  # less than a checkpoint
    code, told = walk("pretrain.py")
    assert code == 1, told
    assert "no space left" in told

    resize(small_disk, "500m")
    attempt = start("pretrain.py")
    attempt.until(lambda: finished(run, "pretrain-phase1"))
    assert attempt.interrupt() == 130, attempt.tail()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    attempt = Walk(Path("/sys/moxin-run"), job="curate.py", log=tmp_path / "log.txt")
    assert attempt.wait() == 1
    assert "/sys/moxin-run" in attempt.tail()
    assert "--run" in attempt.tail()
    assert "Traceback" not in attempt.tail()
