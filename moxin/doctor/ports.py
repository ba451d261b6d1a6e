"""Whether the nodes reach each other at the ports that Ray's workers, gloo and NCCL listen at."""

import secrets
import socket
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from moxin.doctor.finding import Finding, count, listed

CONNECT_S = 3.0
N_THREADS = 32
RAY_WORKERS = (10002, 19999)
"""Ray's `--min-worker-port` and `--max-worker-port`."""
EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
"""gloo, NCCL and the rendezvous listen at a port of the kernel's choice from here."""


def ranges() -> dict[str, tuple[int, int]]:
    """First and last port by what listens there. Both ends of the kernel's range are tried: a firewall may open a part."""
    low, high = 32768, 60999
    if EPHEMERAL.exists():
        low, high = (int(word) for word in EPHEMERAL.read_text().split())
    middle = (low + high) // 2
    return {
        "Ray's workers": RAY_WORKERS,
        "gloo and NCCL, low": (low, middle),
        "gloo and NCCL, high": (middle + 1, high),
    }


class Listener:
    """Listens at one port of each range and answers every connection with `token`, until it is closed.

    Raises `OSError` where no port of a range is free.
    """

    def __init__(self, address: str) -> None:
        self.token = secrets.token_hex(8)
        self.ports: dict[str, int] = {}
        self._sockets: list[socket.socket] = []
        for name, (first, last) in ranges().items():
            server = _bound(address, first, last)
            server.listen(128)
            self._sockets.append(server)
            self.ports[name] = server.getsockname()[1]
            threading.Thread(target=self._answer, args=(server,), name="doctor-ports", daemon=True).start()

    def _answer(self, server: socket.socket) -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return  # closed
            with connection:
                connection.sendall(self.token.encode())

    def close(self) -> None:
        for server in self._sockets:
            server.shutdown(socket.SHUT_RDWR)
            server.close()


def _bound(address: str, first: int, last: int) -> socket.socket:
    # From a random place on, so that nodes that share a machine rarely try the same.
    start = secrets.randbelow(last - first + 1)
    for step in range(last - first + 1):
        server = socket.socket()
        try:
            server.bind((address, first + (start + step) % (last - first + 1)))
        except OSError as error:
            server.close()
            if step == last - first:
                raise OSError(f"no port from {first} to {last} of {address} is free ({error})") from error
            continue
        return server
    raise AssertionError


def reach(targets: Mapping[str, tuple[str, Mapping[str, int], str]]) -> dict[str, dict[str, str]]:
    """What happens on the way to every node (its address, ports, token): by node and kind, "" where it is reached."""
    tries = [(node, kind) for node, (_, ports, _) in targets.items() for kind in ports]

    def one(node: str, kind: str) -> str:
        address, ports, token = targets[node]
        try:
            with socket.create_connection((address, ports[kind]), timeout=CONNECT_S) as connection:
                connection.settimeout(CONNECT_S)
                found = connection.recv(64).decode(errors="replace")
        except OSError as error:
            return "no answer" if isinstance(error, TimeoutError) else str(error.strerror or error)
        return "" if found == token else "something else answers there"

    with ThreadPoolExecutor(N_THREADS) as pool:
        told = pool.map(lambda pair: one(*pair), tries)
    found: dict[str, dict[str, str]] = {node: {} for node in targets}
    for (node, kind), text in zip(tries, told, strict=True):
        found[node][kind] = text
    return found


def judge(reached: Mapping[str, Mapping[str, Mapping[str, str]]]) -> list[Finding]:
    """`reached[a][b]` is what `reach` said on `a` of `b`. A node that nobody reaches is named before single ways."""
    kinds = {kind for targets in reached.values() for found in targets.values() for kind in found}
    findings = []
    for kind in sorted(kinds):
        failed = [
            (a, b, found[kind])
            for a, targets in reached.items()
            for b, found in targets.items()
            if a != b and found.get(kind)
        ]
        for b in sorted({b for _, b, _ in failed}):
            ways = [(a, text) for a, to, text in failed if to == b]
            asked = [a for a, targets in reached.items() if a != b and kind in targets.get(b, {})]
            first, last = ranges()[kind]
            who = "no other node" if len(ways) == len(asked) else f"not {listed([a for a, _ in ways])}"
            result = f"{b}: {who} reaches it at the ports of {kind} ({ways[0][1]})"
            fix = f"let nodes of the cluster connect to each other at TCP {first}-{last} (security group, firewall)"
            findings.append(Finding("ports", "refuse", result, fix))
    if not findings and len(reached) > 1:
        result = f"{count(len(reached), 'node')} reach each other at the ports of Ray, gloo and NCCL"
        findings.append(Finding("ports", "ok", result))
    return findings
