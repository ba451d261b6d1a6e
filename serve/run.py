"""Starting and stopping the service on this machine's Ray, or on the cluster that RAY_ADDRESS names."""

import errno
import logging
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray import serve

from moxin import console, session
from serve.app import app

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def check_port(host: str, port: int) -> None:
    """Raises `ValueError` where nothing can listen on the port: to be called before Ray takes its time to start."""
    if not 1 <= port < 2**16:
        raise ValueError(f"port {port}: a port is a number from 1 to 65535; choose one with --port N")
    reasons = {errno.EADDRINUSE: "is taken by another program", errno.EACCES: "is only for privileged users"}
    try:
        _listen(host, port)
    except OSError as error:
        reason = reasons.get(error.errno or 0, f"cannot be listened on ({error.strerror})")
        raise ValueError(f"port {port} on {host} {reason}; choose another with --port N") from error


def _listen(host: str, port: int) -> int:
    """Listens for a moment; the port, which the system chooses where `port` is 0."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port just given up is free
        listener.bind(address)
        return int(listener.getsockname()[1])


def deploy(model_url: str, port: int, host: str = "127.0.0.1", **settings: Any) -> str:
    """Serves a release folder with the settings of `serve.app`; returns the base URL once requests are answered.

    Raises `ValueError` where the port is taken, the folder holds no model, or Ray serves something already.
    """
    check_port(host, port)
    application = app({"model": model_url, **settings})
    session.start()
    if running := list(serve.status().applications):
        told = f"this Ray serves {', '.join(running)} already; end that with `serve shutdown`"
        raise ValueError(f"{told}, or add to its configuration file and use `serve deploy`")
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(proxy_location="HeadOnly", http_options={"host": host, "port": port})
    try:
        serve.run(application)
    except BaseException:
        serve.shutdown()
        raise
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


@contextmanager
def serving(model_url: str, port: int = 0, host: str = "127.0.0.1", **settings: Any) -> Iterator[str]:
    """The base URL of the service, which is shut down at the end. Port 0 is any free one."""
    base_url = deploy(model_url, port or _listen(host, 0), host, **settings)
    try:
        yield base_url
    finally:
        serve.shutdown()


def serve_forever(model_url: str, port: int, host: str = "127.0.0.1", **settings: Any) -> None:
    """Serves until Ctrl-C (or SIGTERM, which jobs turn into the same)."""
    with serving(model_url, port, host, **settings) as base_url:
        console.say(f"✓ serving {base_url}/v1 - Ctrl-C stops it", style="green")
        if host not in LOOPBACK and not os.environ.get("MOXIN_API_KEY"):
            console.warn(
                f"anyone who reaches {host} can use this service; set MOXIN_API_KEY to ask for a key"
            )
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            console.say("stopping")
