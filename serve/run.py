"""Starting and stopping the service on this machine's Ray, or on the cluster that RAY_ADDRESS names."""

import errno
import logging
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from ray import serve

from moxin import console, session
from serve.app import app
from serve.check import LOOPBACK, check
from serve.guard import keys_from


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


def check_exposed(host: str, keys_file: str = "", without_keys: bool = False) -> None:
    """Raises `ValueError` where others could reach the service and it asks nobody for a key."""
    if host not in LOOPBACK and not without_keys and not keys_from(os.environ, keys_file):
        raise ValueError(
            f"host {host} can be reached from other machines, and there is no API key: set MOXIN_API_KEY or "
            "MOXIN_API_KEYS_FILE, or say --without-keys if all of them may use this service"
        )


def deploy(model_url: str, port: int, host: str = "127.0.0.1", **settings: Any) -> str:
    """Serves a release folder with the settings of `serve.app`; returns the base URL once requests are answered.

    Raises `ValueError` where the port is taken, the folder holds no model, or Ray serves something already.
    """
    return deploy_app({"model": model_url, **settings}, port, host)


def deploy_app(args: dict[str, Any], port: int, host: str = "127.0.0.1") -> str:
    """The same with all arguments of `serve.app.app`."""
    check_port(host, port)
    application = app(args)
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
    with serving_app({"model": model_url, **settings}, port, host) as base_url:
        yield base_url


@contextmanager
def serving_app(args: dict[str, Any], port: int = 0, host: str = "127.0.0.1") -> Iterator[str]:
    """The same with all arguments of `serve.app.app`."""
    base_url = deploy_app(args, port or _listen(host, 0), host)
    try:
        yield base_url
    finally:
        serve.shutdown()


def read_config(path: str) -> tuple[dict[str, Any], str, int]:
    """The arguments, host and port of a Serve configuration file with one application, ours.

    Raises `ValueError` for whatever `serve.check` finds, and for what only `serve deploy` can do.
    """
    if problems := check(path):
        raise ValueError(f"{path}: " + "; ".join(problems))
    config = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    applications = config["applications"]
    if len(applications) != 1 or applications[0].get("import_path") != "serve.app:app":
        raise ValueError(f"{path}: this job serves one application, serve.app:app; use `serve deploy {path}`")
    if beside := sorted(set(applications[0]) - {"name", "route_prefix", "import_path", "args"}):
        raise ValueError(f"{path}: {', '.join(beside)} would have no effect here; use `serve deploy {path}`")
    options = config["http_options"]
    return applications[0].get("args", {}), options["host"], options.get("port", 8000)


def serve_forever(args: dict[str, Any], port: int, host: str = "127.0.0.1") -> None:
    """Serves until Ctrl-C (or SIGTERM, which jobs turn into the same)."""
    with serving_app(args, port, host) as base_url:
        console.say(f"✓ serving {base_url}/v1, chat page {base_url} - Ctrl-C stops it", style="green")
        if host not in LOOPBACK and not keys_from(os.environ, args.get("api_keys_file", "")):
            console.warn(f"anyone who reaches {host} can use this service")
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            console.say("stopping")
