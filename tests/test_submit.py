"""`ray job submit` against a Ray with token authentication, as README shows it."""

import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
RAY = Path(sys.executable).with_name("ray")
PORT_OPTIONS = (
    "--port",
    "--dashboard-port",
    "--dashboard-agent-listen-port",
    "--runtime-env-agent-port",
    "--metrics-export-port",
    "--ray-client-server-port",
)


def free_ports(count: int) -> list[int]:
    """Ports that are free now, all different."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[dict[str, str]]:
    """A head of its own, on ports of its own; gives the environment in which its clients run."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    ports = dict(zip(PORT_OPTIONS, free_ports(len(PORT_OPTIONS)), strict=True))
    options = [f"{name}={port}" for name, port in ports.items()]
    log = tmp_path_factory.mktemp("head") / "ray.log"
    with open(log, "w") as output:
        head = subprocess.Popen(
            [RAY, "start", "--head", "--block", "--num-cpus=4", "--object-store-memory=500000000", *options],
            env=environment,
            cwd=ROOT,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{ports['--dashboard-port']}"
    try:
        deadline = time.monotonic() + 180
        while status(address + "/api/version", environment["RAY_AUTH_TOKEN"]) != 200:
            assert head.poll() is None, f"the head ended:\n{log.read_text()}"
            assert time.monotonic() < deadline, f"the dashboard did not come up:\n{log.read_text()}"
            time.sleep(1)
        yield environment | {"RAY_ADDRESS": address}
    finally:
        head.terminate()  # ends the processes that it started, and none of another Ray
        try:
            head.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(head.pid, 9)
            head.wait()


def status(url: str, token: str = "") -> int:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            return reply.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def submit(cluster: dict[str, str], *command: str) -> str:
    done = subprocess.run(
        [RAY, "job", "submit", *command], env=cluster, cwd=ROOT, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_dashboard_asks_for_the_token(cluster):
    assert status(cluster["RAY_ADDRESS"] + "/api/jobs/") == 401
    assert status(cluster["RAY_ADDRESS"] + "/api/jobs/", cluster["RAY_AUTH_TOKEN"]) == 200


@pytest.mark.slow
def test_a_job_is_submitted_with_the_checkout(cluster, tmp_path):
    run = str(tmp_path / "run")
    output = submit(
        cluster, "--working-dir", ".", "--", "python", "jobs/tokenize.py", "--recipe", "smoke", "--run", run
    )
    assert "tokenize" in output
    assert list(Path(run).glob("tokenize-*/manifest.json"))


@pytest.mark.slow
def test_a_job_is_submitted_as_a_file(cluster):
    assert "training compute" in submit(cluster, "jobs/pretrain.py", "--", "--recipe", "smoke", "--dry-run")
