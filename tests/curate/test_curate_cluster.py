"""The same bytes with one, two and three nodes of a local cluster, with a node that is killed, and after kill -9 of
everything in the middle of the steps that bring all units together."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from test_curate_run import content_of, pages  # noqa: F401

pytestmark = pytest.mark.slow
DRIVER = Path(__file__).with_name("curate_driver.py")
ENV = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_DATA_DISABLE_PROGRESS_BARS": "1"}
ENV.pop("RAY_ADDRESS", None)


def start(pages: Path, run: Path, *options: str) -> "subprocess.Popen[str]":  # noqa: F811
    command = [sys.executable, str(DRIVER), str(pages), str(run), *options]
    return subprocess.Popen(command, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def curate(pages: Path, run: Path, *options: str) -> tuple[dict[str, str], str]:  # noqa: F811
    process = start(pages, run, *options)
    told, _ = process.communicate(timeout=300)
    assert process.returncode == 0, told[-3000:]
    [made] = run.glob("curate-*")
    return content_of(made), told


def kill_all(process: "subprocess.Popen[str]") -> None:
    """SIGKILL for a driver and all that it started, the cluster among it."""
    everyone = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for one in everyone:
        try:
            one.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(everyone, timeout=20)
    process.communicate(timeout=20)


def test_nodes_that_come_and_go_and_kill_9_leave_the_same_bytes(pages, tmp_path):  # noqa: F811
    expected, _ = curate(pages, tmp_path / "one", "1")
    assert len([name for name in expected if name.startswith("documents/")]) > 0
    assert curate(pages, tmp_path / "two", "2")[0] == expected
    found, told = curate(pages, tmp_path / "three", "3", "remove")
    assert "removed a node" in told
    assert found == expected
    for kind in ("exact-repeats/*", "near-0/pairs/*"):
        run = tmp_path / kind.partition("/")[0]
        process = start(pages, run, "2")
        until = time.monotonic() + 200
        while not list(run.glob(f"curate-*/.scratch/{kind}")):
            assert process.poll() is None, process.communicate()[0][-3000:]
            assert time.monotonic() < until
            time.sleep(0.02)
        kill_all(process)
        assert not list(run.glob("curate-*/manifest.json"))
        assert curate(pages, run, "2")[0] == expected
