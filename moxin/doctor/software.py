"""The same software on every node: versions, our code, and the settings of the collectives."""

import functools
import hashlib
import os
import platform
from collections.abc import Mapping
from importlib import metadata, util
from pathlib import Path
from typing import Any

from moxin import __version__
from moxin.doctor.finding import Finding, by_value, count

PACKAGES = ("torch", "ray", "deepspeed", "numpy", "pyarrow", "nvidia-nccl-cu12", "nvidia-nccl-cu13")
DECISIVE = ("python", "moxin", "code", "torch", "ray", "deepspeed")
"""With other versions of these a group does not start, or computes something else on one of its workers."""
PREFIXES = ("NCCL_", "TORCH_NCCL_", "GLOO_", "FI_")
"""Environment variables of the collectives: NCCL's, PyTorch's, gloo's, libfabric's (EFA)."""
OURS = ("moxin", "kernels", "serve")


def collect() -> dict[str, Any]:
    """`versions` ("" where a package is not installed) and `environment`, the variables of the collectives."""
    versions = {"python": platform.python_version(), "moxin": __version__, "code": code_hash()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = ""
    environment = {name: value for name, value in os.environ.items() if name.startswith(PREFIXES)}
    return {"versions": versions, "environment": environment}


@functools.cache
def code_hash() -> str:
    """SHA-256 of our packages' Python files as they would be imported here; its first 12 digits."""
    total = hashlib.sha256()
    for package in OURS:
        spec = util.find_spec(package)
        for folder in spec.submodule_search_locations or () if spec else ():
            for file in sorted(Path(folder).rglob("*.py")):
                total.update(f"{package}/{file.relative_to(folder).as_posix()}\0".encode())
                total.update(hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()[:12]


def judge(facts: Mapping[str, Mapping[str, Any]], driver: Mapping[str, Any]) -> list[Finding]:
    """Of what `collect` said on every node, and in the process that starts the run."""
    versions = {node: fact["versions"] for node, fact in {**facts, "the driver": driver}.items()}
    names = sorted({name for found in versions.values() for name in found})
    differing = [name for name in names if len({found.get(name, "") for found in versions.values()}) > 1]
    findings = []
    for name in differing:
        told = by_value({node: found.get(name, "") for node, found in versions.items()})
        what = "moxin's code" if name == "code" else name
        fix = (
            "submit the job with --working-dir, or install the same checkout on every node"
            if name in ("code", "moxin")
            else f"install the same {name} on every node, then `ray stop` and `ray start` there"
        )
        findings.append(Finding("versions", "refuse" if name in DECISIVE else "warn", f"{what}: {told}", fix))
    if not differing:
        first = next(iter(versions.values()))
        told = ", ".join(f"{name} {first[name]}" for name in DECISIVE if first.get(name))
        findings.append(Finding("versions", "ok", told))
    return findings + _environment({node: fact["environment"] for node, fact in facts.items()})


def _environment(environments: Mapping[str, Mapping[str, str]]) -> list[Finding]:
    names = sorted({name for found in environments.values() for name in found})
    fix = "set it alike before `ray start` on every node, or in the job's runtime_env"
    findings = []
    for name in names:
        values = {node: found.get(name, "") for node, found in environments.items()}
        if len(set(values.values())) > 1:
            findings.append(Finding("environment", "warn", f"{name}: {by_value(values)}", fix))
    if names and not findings:
        findings.append(
            Finding(
                "environment", "ok", f"{count(len(names), 'variable')} of NCCL and gloo, alike everywhere"
            )
        )
    return findings
