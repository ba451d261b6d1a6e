"""The GPUs of every node as `nvidia-smi` tells: kind, driver, memory errors, what slows them, who uses them."""

import csv
import io
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Mapping
from typing import Any

from moxin.doctor.finding import Finding, Level, by_value, count, listed
from moxin.doctor.need import Need

QUERY_S = 20.0
"""A driver that hangs must not hang the check."""
FIELDS = {
    "name": "name",
    "driver": "driver_version",
    "memory_mib": "memory.total",
    "used_mib": "memory.used",
    "mig": "mig.mode.current",
    "uncorrected": "ecc.errors.uncorrected.volatile.total",
    "pending_pages": "retired_pages.pending",
    "pending_rows": "remapped_rows.pending",
    "failed_rows": "remapped_rows.failure",
    "throttle": "clocks_event_reasons.active",
}
OLDER = {"clocks_event_reasons.active": "clocks_throttle_reasons.active"}
"""Names before driver 535."""
UNKNOWN = re.compile(r'Field "([^"]+)" is not a valid field')
BROKEN = re.compile(r"^\[.*(error|reset|lost).*\]$", re.IGNORECASE)
"""What stands in a column where the GPU does not answer, as `[GPU requires reset]`; `[N/A]` is harmless."""
SLOWED = {
    0x08: "hardware slowdown",
    0x20: "too hot (software)",
    0x40: "too hot (hardware)",
    0x80: "power brake",
}
"""Bits of NVML's clock event reasons that mean trouble; idle, a power cap and set clocks are usual."""
IN_USE_MIB = 1024


def collect() -> dict[str, Any]:
    """`gpus`, each a dictionary with the keys of `FIELDS`, and `trouble`, what nvidia-smi said when it failed.

    Without nvidia-smi there is no GPU and no trouble. Fields that the driver does not know are None.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        return {"gpus": [], "trouble": ""}
    fields = dict(FIELDS)
    for _ in range(len(FIELDS) + len(OLDER)):
        command = [program, f"--query-gpu={','.join(fields.values())}", "--format=csv,nounits"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=QUERY_S)
        except subprocess.TimeoutExpired:
            return {"gpus": [], "trouble": f"nvidia-smi gave no answer in {QUERY_S:.0f} s"}
        told = " ".join(f"{done.stdout} {done.stderr}".split())
        if unknown := UNKNOWN.search(told):
            key = next(key for key, name in fields.items() if name == unknown[1])
            if newer := OLDER.get(fields[key]):
                fields[key] = newer
            else:
                del fields[key]
            continue
        if done.returncode:
            return {"gpus": [], "trouble": f"nvidia-smi ended with {done.returncode}: {told[:200]}"}
        return {"gpus": parse(done.stdout, list(fields)), "trouble": ""}
    raise AssertionError(fields)


def parse(text: str, keys: list[str]) -> list[dict[str, Any]]:
    """The rows of `nvidia-smi --format=csv,nounits`, whose columns are `keys`. What it does not know becomes None."""
    rows = list(csv.reader(io.StringIO(text), skipinitialspace=True))
    gpus = []
    for row in rows[1:]:
        if len(row) != len(keys):
            raise ValueError(f"nvidia-smi: {len(keys)} columns were asked for, {len(row)} came: {row}")
        found = dict.fromkeys(FIELDS) | {
            key: None if cell.startswith(("[", "N/A")) else cell.strip()
            for key, cell in zip(keys, row, strict=True)
        }
        found["broken"] = next((cell.strip("[]") for cell in row if BROKEN.search(cell)), "")
        for key in ("memory_mib", "used_mib", "uncorrected", "throttle"):
            value = found[key]
            found[key] = None if value is None else int(value, 16 if value.startswith("0x") else 10)
        gpus.append(found)
    return gpus


def judge(facts: Mapping[str, Mapping[str, Any]], need: Need) -> list[Finding]:
    """Of what `collect` said on every node, with `ray_gpus` beside it: how many Ray was told of."""
    findings = [
        Finding(
            "GPU",
            "refuse",
            f"{node}: {fact['trouble']}",
            "repair the driver there (dmesg | grep NVRM), or drain it",
        )
        for node, fact in facts.items()
        if fact["trouble"]
    ]
    gpus = {node: fact["gpus"] for node, fact in facts.items()}
    total = sum(len(found) for found in gpus.values())
    if need.use_gpu and total < need.n_workers:
        lacking = f"{count(total, 'GPU')} now, {count(need.n_workers, 'worker')} asked for"
        fix = "add nodes (an autoscaler may), or lower scaling.n_workers" if total else "add nodes with GPUs"
        findings.append(Finding("GPU", "warn", lacking, fix))
    if not total:
        return (
            findings
            if need.use_gpu
            else [*findings, Finding("GPU", "ok", "none; training runs on CPU cores")]
        )
    for node, fact in facts.items():
        if fact["ray_gpus"] != len(gpus[node]) and not fact["trouble"]:
            result = f"{node}: {count(len(gpus[node]), 'GPU')}, but Ray was told of {fact['ray_gpus']:g}"
            findings.append(
                Finding(
                    "GPU",
                    "warn",
                    result,
                    "give `ray start` there the right --num-gpus, or check that all work",
                )
            )
    findings += _alike(gpus) + _health(gpus)
    family = need.accelerator.partition("-")[0]
    names = Counter(str(gpu["name"]) for found in gpus.values() for gpu in found)
    if need.use_gpu and family and not any(family.lower() in name.lower() for name in names):
        result = f"scaling.accelerator = {need.accelerator}, but there is {', '.join(names)}"
        findings.append(
            Finding("GPU", "refuse", result, "set scaling.accelerator to what is there, or add such nodes")
        )
    if not findings:
        told = ", ".join(f"{n} x {name}" for name, n in names.most_common())
        drivers = {str(gpu["driver"]) for found in gpus.values() for gpu in found}
        findings.append(Finding("GPU", "ok", f"{told}, driver {', '.join(sorted(drivers))}"))
    return findings


def _alike(gpus: Mapping[str, list[dict[str, Any]]]) -> list[Finding]:
    findings = []
    holders = {node: found for node, found in gpus.items() if found}
    for key, what, fix in (
        ("name", "kind", "train on nodes of one kind: the slowest sets the pace"),
        ("driver", "driver", "install the same driver on every node"),
    ):
        values = {
            node: ", ".join(sorted({str(gpu[key]) for gpu in found})) for node, found in holders.items()
        }
        if len(set(values.values())) > 1:
            findings.append(Finding("GPU", "warn", f"{what}: {by_value(values)}", fix))
    return findings


def _health(gpus: Mapping[str, list[dict[str, Any]]]) -> list[Finding]:
    reset = "take the node out and reset the GPU (nvidia-smi -r); if it comes again, have it replaced"
    dead: list[str] = []
    broken: list[str] = []
    pending: list[str] = []
    slow: list[str] = []
    used: list[str] = []
    cut: list[str] = []
    for node, found in gpus.items():
        for number, gpu in enumerate(found):
            name = f"{node} GPU {number}"
            if gpu["broken"]:
                dead.append(f"{name} ({gpu['broken']})")
            if gpu["failed_rows"] in ("Yes", "1"):
                dead.append(f"{name} (a memory row could not be remapped)")
            if gpu["uncorrected"]:
                broken.append(f"{name} ({gpu['uncorrected']})")
            if {gpu["pending_pages"], gpu["pending_rows"]} & {"Yes", "1"}:
                pending.append(name)
            if reasons := [word for bit, word in SLOWED.items() if (gpu["throttle"] or 0) & bit]:
                slow.append(f"{name} ({', '.join(reasons)})")
            if (gpu["used_mib"] or 0) >= IN_USE_MIB:
                used.append(f"{name} ({gpu['used_mib']:,} MiB)")
            if gpu["mig"] == "Enabled":
                cut.append(name)
    told: tuple[tuple[Level, list[str], str, str], ...] = (
        ("refuse", dead, "not usable", reset),
        ("refuse", broken, "uncorrected memory errors", reset),
        (
            "warn",
            pending,
            "bad memory waits to be taken out of use",
            "reset the GPU (nvidia-smi -r) before a long run",
        ),
        ("warn", slow, "slowed down", "check its cooling and power; one slow GPU slows all"),
        ("warn", used, "memory is in use", "end what uses it (nvidia-smi shows it)"),
        ("warn", cut, "MIG is on", "nvidia-smi -mig 0: NCCL takes whole GPUs"),
    )
    return [
        Finding("GPU", level, f"{what}: {listed(names)}", fix) for level, names, what, fix in told if names
    ]
