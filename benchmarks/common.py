"""What every benchmark writes beside its numbers: hardware, versions, command and date."""

import os
import platform
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from moxin import storage
from moxin.console import say

RESULTS = Path(__file__).resolve().parent / "results"


def processor() -> str:
    """The CPU's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def hardware() -> dict[str, Any]:
    """CPU, cores, threads that PyTorch uses, instruction set, and the GPU where there is one."""
    found: dict[str, Any] = {
        "cpu": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "isa": torch.backends.cpu.get_cpu_capability(),
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
        found["gpu_capability"] = list(torch.cuda.get_device_capability())
    return found


def versions(*packages: str) -> dict[str, str]:
    """Python's, PyTorch's, CUDA's, and those of the named packages that are installed."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def write(
    name: str, result: dict[str, Any], folder: str | Path = RESULTS, packages: tuple[str, ...] = ()
) -> str:
    """Writes `<name>-<date>.json` with the conditions in front, and returns where it is."""
    conditions = {
        "benchmark": name,
        "command": " ".join(["python", *sys.argv]),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "hardware": hardware(),
        "load_average_at_end": os.getloadavg(),
        "versions": versions(*packages),
    }
    url = str(Path(folder) / f"{name}-{time.strftime('%Y-%m-%d', time.gmtime())}.json")
    storage.write_json(url, conditions | result)
    say(f"wrote {url}")
    return url
