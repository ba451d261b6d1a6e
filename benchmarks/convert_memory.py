#!/usr/bin/env python
"""`python benchmarks/convert_memory.py`: how much memory it takes to convert a model folder, against its largest shard.

Writes a preset (default `1.3b`, once in bfloat16, once in float32) tensor by tensor, converts it to bfloat16 in a process of
its own, and reads how far that process's resident memory rose above what it was after the imports (`VmHWM` and `VmRSS` of
Linux's /proc). The folders are deleted at once; 8 GB must be free under `--folder`. About a minute on local disk.

Prints a table and writes `benchmarks/results/convert_memory-<date>.json` with hardware, versions and the command.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks import common
from moxin.console import table
from moxin.model import checkpoint
from moxin.model.convert import convert
from moxin.model.presets import PRESETS


def resident_bytes(field: str) -> int:
    """`VmRSS`, resident now, or `VmHWM`, the most so far. (`ru_maxrss` would begin with that of the parent process.)"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024


def convert_here(source: str, target: str, dtype: str, max_shard_bytes: int) -> dict[str, float]:
    before, started = resident_bytes("VmRSS"), time.monotonic()
    convert(source, target, dtype, max_shard_bytes)
    seconds = time.monotonic() - started
    return {"before_bytes": before, "rise_bytes": resident_bytes("VmHWM") - before, "seconds": seconds}


def largest_file(folder: Path) -> int:
    return max(path.stat().st_size for path in folder.glob("*.safetensors"))


def measure(preset: str, dtypes: tuple[str, str], max_shard_bytes: int, folder: Path) -> dict[str, Any]:
    source, target = folder / "source", folder / "target"
    checkpoint.write(
        PRESETS[preset],
        str(source),
        lambda piece: torch.zeros(piece.shape, dtype=checkpoint.DTYPES[dtypes[0]]),
        dtypes[0],
        max_shard_bytes,
    )
    command = [sys.executable, __file__, "--child", str(source), str(target), dtypes[1], str(max_shard_bytes)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    measured = json.loads(done.stdout.splitlines()[-1])
    shard = largest_file(target)
    return {
        "preset": preset,
        "from": dtypes[0],
        "to": dtypes[1],
        "model_bytes": sum(path.stat().st_size for path in source.glob("*.safetensors")),
        "shards": len(list(target.glob("*.safetensors"))),
        "largest_shard_bytes": shard,
        **measured,
        "rise_per_largest_shard": measured["rise_bytes"] / shard,
    }


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        source, target, dtype, max_shard_bytes = sys.argv[2:]
        print(json.dumps(convert_here(source, target, dtype, int(max_shard_bytes))))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--preset", default="1.3b", choices=PRESETS)
    parser.add_argument(
        "--from-dtype", action="append", choices=checkpoint.DTYPES, help="(bfloat16, float32)"
    )
    parser.add_argument("--dtype", default="bfloat16", choices=checkpoint.DTYPES)
    parser.add_argument("--max-shard-mb", default=500, type=int, metavar="MB", help="largest file (500)")
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="where the models are written")
    parser.add_argument("--results", default=str(common.RESULTS), help="where the JSON is written")
    options = parser.parse_args()
    conversions, rows = [], []
    for given in options.from_dtype or ("bfloat16", "float32"):
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            shard = options.max_shard_mb * 1_000_000
            found = measure(options.preset, (given, options.dtype), shard, Path(folder))
        conversions.append(found)
        sizes = (f"{found[name] / 1e6:,.0f}" for name in ("model_bytes", "largest_shard_bytes", "rise_bytes"))
        rows.append((given, *sizes, f"{found['rise_per_largest_shard']:.2f}", f"{found['seconds']:.1f}"))
    table(
        f"Converting {options.preset} to {options.dtype}",
        ("from", "model, MB", "largest shard, MB", "memory above imports, MB", "of the shard", "seconds"),
        rows,
    )
    common.write("convert_memory", {"conversions": conversions}, options.results)


if __name__ == "__main__":
    main()
