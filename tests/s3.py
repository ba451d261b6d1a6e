"""A live S3 server on loopback (SeaweedFS) behind a proxy that breaks requests on command.

`claim()` runs before anything else: it takes the proxy's port and points every S3 client of this process and its children
(Ray workers too, whenever Ray was started) there, so that no test can reach another server. The server starts with the first
test that asks for the fixture `s3`.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

BUCKET = "moxin-test"
KEY, SECRET = "moxin-test-key", "moxin-test-secret"
LARGE = 1000
"""Bytes from which on a body is cut: listings and short answers pass."""
ATTEMPTS, START_S = 3, 60.0
"""Starts of the server that are tried, and how long one may take."""
_listener = socket.socket()


def claim() -> None:
    _listener.bind(("127.0.0.1", 0))
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
        os.environ.pop(name, None)
    os.environ |= {
        "AWS_ENDPOINT_URL": "http://{}:{}".format(*_listener.getsockname()),
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
    }


class Faults(ThreadingHTTPServer):
    """A proxy in front of the server. Faults that were asked for hit the next fitting requests, whoever makes them.

    `requests` are the methods and paths that came, `injected` the number of faults that have happened.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int) -> None:
        super().__init__(_listener.getsockname(), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = _listener.dup()
        self.server_name, self.server_port = self.server_address[0], self.server_address[1]
        self.upstream = port
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """No fault from here on."""
        self._planned: dict[str, int] = {}
        self.only = ""
        self.bytes_per_s = 0
        self.injected = 0
        self.requests: list[str] = []

    def refuse(self, n: int = 1) -> None:
        """503 SlowDown."""
        self._planned["refuse"] = n

    def cut_downloads(self, n: int = 1) -> None:
        """The connection ends in the middle of an answer's body."""
        self._planned["download"] = n

    def cut_uploads(self, n: int = 1) -> None:
        """The connection ends in the middle of a request's body, which the server does not see."""
        self._planned["upload"] = n

    def lose_answers(self, n: int = 1) -> None:
        """The server does what it is asked to, and the connection ends before it can say so."""
        self._planned["answer"] = n

    def due(self, kind: str, path: str) -> bool:
        """Whether this fault hits this request; `only` is a text that the path or method must hold."""
        with self._lock:
            if not self._planned.get(kind) or self.only not in path:
                return False
            self._planned[kind] -= 1
            self.injected += 1
            return True

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # clients that were cut off, or were killed


class _Handler(BaseHTTPRequestHandler):
    server: Faults
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def _cut(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _slowed(self, data: bytes) -> Iterator[bytes]:
        for start in range(0, len(data), 1 << 16):
            block = data[start : start + (1 << 16)]
            if self.server.bytes_per_s:
                time.sleep(len(block) / self.server.bytes_per_s)
            yield block

    def _pass_on(self) -> None:
        what = f"{self.command} {self.path}"
        self.server.requests.append(what)
        length = int(self.headers.get("Content-Length") or 0)
        if length >= LARGE and self.server.due("upload", what):
            self.rfile.read(length // 2)
            return self._cut()
        body = self.rfile.read(length)
        if self.server.due("refuse", what):
            return self._answer(503, {"Content-Type": "application/xml"}, SLOW_DOWN)
        for _ in self._slowed(body):
            pass
        upstream = HTTPConnection("127.0.0.1", self.server.upstream, timeout=60)
        upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in ("connection", "expect"):
                upstream.putheader(name, value)
        try:
            upstream.endheaders(body)
            with upstream.getresponse() as response:
                if self.server.due("answer", what):
                    response.read()
                    return self._cut()
                self._answer(response.status, dict(response.headers.items()), response.read())
        except (HTTPException, ConnectionError):
            self._cut()
        finally:
            upstream.close()
        return None

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        what = f"{self.command} {self.path}"
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        n_bytes = headers.get("Content-Length", "0") if self.command == "HEAD" else len(body)
        if status != 204:
            self.send_header("Content-Length", str(n_bytes))
        self.end_headers()
        if len(body) >= LARGE and self.server.due("download", what):
            self.wfile.write(body[: len(body) // 2])
            return self._cut()
        for block in self._slowed(body if self.command != "HEAD" else b""):
            self.wfile.write(block)
        return None

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass_on


SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


@dataclass(frozen=True)
class LiveS3:
    """What a test gets: a folder of its own in the bucket, and the faults."""

    url: str
    faults: Faults


def _weed(folder: Path, ports: list[int]) -> list[str]:
    identity = {"accessKey": KEY, "secretKey": SECRET}
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    identities = [{"name": "test", "credentials": [identity], "actions": actions}]
    (folder / "s3.json").write_text(json.dumps({"identities": identities}))
    services = ("master", "volume", "filer", "s3")
    return [
        str(Path(sys.executable).with_name("weed")),
        *("server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3"),
        *(f"-{service}.port={port}" for service, port in zip(services, ports[:4], strict=True)),
        *(f"-{service}.port.grpc={port}" for service, port in zip(services, ports[4:], strict=True)),
        *(f"-{service}.localSocket={folder}/{service}.sock" for service in ("filer", "s3")),
        *(
            "-master.telemetry=false",
            "-master.volumeSizeLimitMB=64",
            "-volume.max=200",
            "-volume.minFreeSpace=1",
        ),
        *(
            "-s3.iam=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-s3.autoCreateBucket=false",
            "-s3.allowEmptyFolder=false",
        ),
        f"-s3.config={folder}/s3.json",
    ]


def _free_ports(n: int) -> list[int]:
    taken = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [one.getsockname()[1] for one in taken]
    for one in taken:
        one.close()
    return ports


# The kernel kills the server when pytest ends, however it ends; a polite stop would take the server 25 s anyway.
_TIED = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, {}); os.execv(sys.argv[1], sys.argv[1:])"


@pytest.fixture(scope="session")
def s3_server() -> Iterator[Faults]:
    """The server and the proxy in front of it, once per test session."""
    with tempfile.TemporaryDirectory(prefix="moxin-s3-", ignore_cleanup_errors=True) as name:
        folder, proxy = Path(name), Faults(0)
        proxy.server_activate()
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        ports: list[int] = []
        try:
            for attempt in range(ATTEMPTS):
                ports = _free_ports(8)  # which another process may take before the server does
                proxy.upstream = ports[3]
                server = _started(folder / str(attempt), ports)
                if _ready(server):
                    break
                server.kill()
                server.wait()
            else:
                told = (folder / str(ATTEMPTS - 1) / "log").read_text()[-3000:]
                pytest.fail(f"the S3 server did not start in {ATTEMPTS} attempts:\n{told}")
            yield proxy
        finally:
            server.kill()
            server.wait()
            proxy.shutdown()
            proxy.server_close()
            for port in ports:  # it makes them there whatever it is told
                for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                    left.unlink()


def _started(folder: Path, ports: list[int]) -> "subprocess.Popen[bytes]":
    folder.mkdir()
    command = _weed(folder, ports)
    if sys.platform == "linux":
        command = [sys.executable, "-c", _TIED.format(int(signal.SIGKILL)), *command]
    with open(folder / "log", "w") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def _ready(server: "subprocess.Popen[bytes]") -> bool:
    """Waits until the server takes a file; False where it ended, or took too long."""
    from s3fs import S3FileSystem

    until = time.monotonic() + START_S
    while time.monotonic() < until and server.poll() is None:
        try:
            S3FileSystem(config_kwargs={"retries": {"total_max_attempts": 1}}).mkdir(BUCKET)
            S3FileSystem().pipe_file(f"{BUCKET}/ready", b"yes")
            return True
        except OSError:
            time.sleep(0.1)
    return False


@pytest.fixture
def s3(s3_server: Faults, monkeypatch: pytest.MonkeyPatch) -> Iterator[LiveS3]:
    """A folder of its own on a live S3 server; faults that a test asks for end with it.

    This process waits shortly between requests that fail; other processes wait as they would in earnest.
    """
    monkeypatch.setattr("moxin.s3.MAX_WAIT_S", 0.02)
    s3_server.reset()
    yield LiveS3(f"s3://{BUCKET}/{uuid.uuid4().hex[:8]}", s3_server)
    s3_server.reset()
