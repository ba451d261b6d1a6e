"""Whether every node can write to the run's storage and read what another node wrote, how fast, and whether it has room."""

import hashlib
import os
import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

from moxin import storage
from moxin.doctor.finding import Finding, count, listed, size
from moxin.doctor.need import Need

PATIENCE_S = 4.0
"""How long a file of another node is waited for: an NFS client believes its cached folder for 3 s (`acregmin`)."""
CHECKPOINT = "checkpoint_"
"""How names of checkpoints begin (`moxin.train.checkpoint`)."""
SLOW = 3.0
"""So many times slower than the median is worth a word."""
TIMED_BYTES = 2**24
"""In smaller files the time is that of the requests, which tells nothing."""
SHARE = (
    "put the run on shared storage with --run s3://bucket/path, or in a folder that is mounted on every node"
)


def write(folder: str, name: str, n_bytes: int) -> dict[str, Any]:
    """Writes random bytes as `folder/name`. Returns `sha256` and `seconds`, or `error`."""
    data = os.urandom(n_bytes)
    started = time.perf_counter()
    try:
        storage.write_bytes(storage.join(folder, name), data)
    except (OSError, ValueError) as error:
        return {"error": _first_line(error)}
    return {"sha256": hashlib.sha256(data).hexdigest(), "seconds": time.perf_counter() - started}


def read(folder: str, name: str, sha256: str) -> dict[str, Any]:
    """Reads what another node wrote. Returns `seconds` where it is that, else `error`, or `missing`."""
    url = storage.join(folder, name)
    until = time.monotonic() + (PATIENCE_S if storage.is_local(url) else 0)
    while True:
        started = time.perf_counter()
        try:
            data = storage.read_bytes(url)
            break
        except FileNotFoundError:
            if time.monotonic() >= until:
                return {"missing": True}
            time.sleep(0.2)
        except (OSError, ValueError) as error:
            return {"error": _first_line(error)}
    seconds = time.perf_counter() - started
    if hashlib.sha256(data).hexdigest() != sha256:
        return {"error": f"{name} has other bytes than were written"}
    return {"seconds": seconds}


def room_bytes(url: str) -> int | None:
    """Free space where a local path lies, or will lie, with what its checkpoints hold now: new ones take their place.

    None for an object store.
    """
    if not storage.is_local(url):
        return None
    path = storage.local_path(url)
    while not path.exists():
        path = path.parent
    held = sum(n for name, n in storage.sizes_under(url).items() if f"/{CHECKPOINT}" in f"/{name}")
    return shutil.disk_usage(path).free + held


def missing(folder: str, names: Mapping[str, str]) -> list[str]:
    """The nodes whose file is not in the folder, by the names of the files."""
    there = set(storage.files_under(folder))
    return [node for node, name in names.items() if name not in there]


def others(nodes: Sequence[str], home: str) -> dict[str, str]:
    """Whose file each node reads: all that of `home`, which itself reads that of the next node."""
    position = nodes.index(home)
    return dict.fromkeys(nodes, home) | {home: nodes[(position + 1) % len(nodes)]}


def judge(
    url: str,
    written: Mapping[str, Mapping[str, Any]],
    seen: Mapping[str, Mapping[str, Any]],
    unseen: Sequence[str],
    room: int | None,
    need: Need,
    *,
    n_bytes: int,
    home: str = "",
) -> list[Finding]:
    """Of what `write` and `read` said on every node, and `missing` on `home`, by whose storage the others are measured.

    `room` is what `room_bytes` said there.
    """
    findings = [
        Finding("storage", "refuse", f"{node} cannot write to {url}: {found['error']}", _fix(url))
        for node, found in written.items()
        if "error" in found
    ]
    findings += [
        Finding("storage", "refuse", f"{node} cannot read from {url}: {found['error']}", _fix(url))
        for node, found in seen.items()
        if "error" in found
    ]
    lacking = {node for node, found in seen.items() if node != home and "missing" in found}
    if blind := [node for node in written if node in lacking or node in unseen]:
        where = f"{count(len(blind), 'node')} of {len(written)} ({listed(blind)})"
        verb = "does" if len(blind) == 1 else "do"
        fix = SHARE if storage.is_local(url) else "give every node the same AWS_ENDPOINT_URL and region"
        findings.append(
            Finding("storage", "refuse", f"{url}: {where} {verb} not see what the others write there", fix)
        )
    needed = need.checkpoint_bytes * need.n_checkpoints
    if room is not None and needed > room:
        wanted = f"{need.n_checkpoints} checkpoints of {size(need.checkpoint_bytes)} need more"
        result = f"{size(room)} free at {url}; {wanted}"
        findings.append(
            Finding("storage", "refuse", result, "free some, lower pretrain.keep_last, or use another --run")
        )
    if findings:
        return findings
    speed = {
        "write": {node: n_bytes / found["seconds"] for node, found in written.items()},
        "read": {node: n_bytes / found["seconds"] for node, found in seen.items()},
    }
    for kind, speeds in speed.items():
        median = statistics.median(speeds.values()) if speeds else 0
        slow = [node for node, value in speeds.items() if value < median / SLOW]
        if slow and len(speeds) >= 3 and n_bytes >= TIMED_BYTES:
            result = f"{listed(slow)}: {kind} {min(speeds.values()) / 1e6:,.0f} MB/s, the median is {median / 1e6:,.0f}"
            findings.append(Finding("storage", "warn", result, "look at the network of these nodes"))
    told = ", ".join(
        f"{kind} {min(speeds.values()) / 1e6:,.0f} MB/s" for kind, speeds in speed.items() if speeds
    )
    who = "one node writes" if len(written) == 1 else f"each of {len(written)} nodes reads what another wrote"
    rest = f", {size(room)} free" if room is not None else ""
    return [*findings, Finding("storage", "ok", f"{who}; {told} at least, in files of {size(n_bytes)}{rest}")]


def _fix(url: str) -> str:
    if storage.is_local(url):
        return f"mount it there and let the user of Ray write to it, or {SHARE}"
    return (
        "give every node the keys or the role for that bucket (cluster/README.md), and a clock that is right"
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
