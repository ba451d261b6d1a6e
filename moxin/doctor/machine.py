"""What a node has besides GPUs: memory, shared memory, open files, disk, and the network that it would use."""

import os
import re
import resource
import shutil
import socket
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from moxin.doctor.finding import Finding, by_value, count, listed, size
from moxin.doctor.need import Need

SHM = Path("/dev/shm")
SHM_BYTES = 2**30
"""NCCL takes some 10 MB for every pair of GPUs of a node, PyTorch's and Ray's objects lie there too; Docker gives 64 MiB."""
OPEN_FILES = 8192
"""Ray opens a connection for every worker, and recommends this itself."""
CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def collect() -> dict[str, Any]:
    """`memory` and `available`, `shm`, `disk` (free, where temporary files go): bytes; `open_files`; `host`, `host_ip` (what
    the host's own name resolves to), `link` (bytes/s of the fastest network of the node, 0 where nothing tells)."""
    memory = psutil.virtual_memory()
    total, available = memory.total, memory.available
    for name in CGROUP_LIMITS:  # of a container, which psutil does not know
        if Path(name).exists() and (text := Path(name).read_text().strip()).isdigit() and int(text) < total:
            total, available = int(text), min(available, int(text))
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    try:
        host_ip = socket.gethostbyname(socket.gethostname())
    except OSError:
        host_ip = ""
    return {
        "cpus": os.cpu_count() or 1,
        "memory": total,
        "available": available,
        "shm": shutil.disk_usage(SHM).total if SHM.exists() else None,
        "temporary": tempfile.gettempdir(),
        "disk": shutil.disk_usage(tempfile.gettempdir()).free,
        "open_files": None if soft == resource.RLIM_INFINITY else soft,
        "host": socket.gethostname(),
        "host_ip": host_ip,
        "link": link_bytes_per_s(),
    }


def link_bytes_per_s(sys: Path = Path("/sys/class")) -> float:
    """All InfiniBand and EFA ports together, else the fastest Ethernet card, as the kernel tells; 0 where it does not."""
    rates = [float(file.read_text().split()[0]) * 1e9 / 8 for file in sys.glob("infiniband/*/ports/*/rate")]
    if rates:
        return sum(rates)
    speeds = [0.0]
    for file in sys.glob("net/*/speed"):
        try:
            speeds.append(float(file.read_text()) * 1e6 / 8)
        except (OSError, ValueError):
            continue  # the kernel answers so for a card that is down, or a virtual one
    return max(speeds)


def judge(facts: Mapping[str, Mapping[str, Any]], need: Need, *, remote: bool) -> list[Finding]:
    """Of what `collect` said on every node, with `ip` and `n_gpus` beside it. `remote`: the run lies in an object store."""
    findings = []
    for node, fact in facts.items():
        if fact["shm"] is not None and fact["shm"] < SHM_BYTES:
            spoilt = fact["n_gpus"] > 1
            result = f"{node}: /dev/shm has {size(fact['shm'])}" + (" and NCCL needs more" if spoilt else "")
            fix = "start the container with --shm-size=16g or --ipc=host (Kubernetes: an emptyDir with medium: Memory)"
            findings.append(Finding("shared memory", "refuse" if spoilt else "warn", result, fix))
        if fact["open_files"] is not None and fact["open_files"] < OPEN_FILES:
            result = f"{node}: {fact['open_files']:,} a process"
            findings.append(
                Finding(
                    "open files", "warn", result, f"`ulimit -n {8 * OPEN_FILES}` before `ray start` there"
                )
            )
        if need.weights_bytes > fact["available"]:
            result = f"{node}: {size(fact['available'])} free, the gathered weights take {size(need.weights_bytes)}"
            findings.append(
                Finding("memory", "refuse", result, "end what uses it, or take nodes with more memory")
            )
        # A worker writes its part of a checkpoint there before it goes to the object store.
        part = need.checkpoint_bytes / max(len(facts), 1)
        if remote and part > fact["disk"]:
            result = f"{node}: {size(fact['disk'])} free at {fact['temporary']}, its part of a checkpoint takes {size(part)}"
            findings.append(
                Finding("disk", "refuse", result, "free some, or point TMPDIR to a larger disk there")
            )
    findings += _names(facts, need)
    if not findings and facts:
        least = {name: min(fact[name] for fact in facts.values()) for name in ("available", "disk", "cpus")}
        result = (
            f"{count(len(facts), 'node')} with at least {count(least['cpus'], 'CPU')}, {size(least['available'])} free "
            f"memory and {size(least['disk'])} free disk"
        )
        findings.append(Finding("machines", "ok", result))
    return findings


def _names(facts: Mapping[str, Mapping[str, Any]], need: Need) -> list[Finding]:
    """gloo listens at the address of the host's name, unless GLOO_SOCKET_IFNAME names a card."""
    if len({fact["ip"] for fact in facts.values()}) < 2:
        return []
    loops = {
        node: fact["host_ip"] or "nothing"
        for node, fact in facts.items()
        if re.match(r"127\.|$", fact["host_ip"]) and "GLOO_SOCKET_IFNAME" not in fact["environment"]
    }
    if not loops:
        return []
    where = listed(list(loops)) if len(set(loops.values())) == 1 else by_value(loops)
    result = f"the host's name resolves to {next(iter(loops.values()))} on {where}: gloo listens where no node reaches it"
    fix = "set GLOO_SOCKET_IFNAME to the network card (ip route), or correct /etc/hosts"
    return [Finding("network", "warn" if need.use_gpu else "refuse", result, fix)]
