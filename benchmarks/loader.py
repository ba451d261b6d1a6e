#!/usr/bin/env python
"""`python benchmarks/loader.py`: how fast pretraining's data is read, and what a store of many shards costs.

1. Throughput: a store of 200M tokens out of the page cache, as rows with targets and document numbers, one thread, against
   numpy alone, which slices a memory-mapped file into rows and shifted targets at random places, without documents, order or
   mixture (as small training scripts do), alternating in the same process.
2. Size: stores of 10,000 and of 30,000 shards (the latter of two trillion tokens; the ids are holes in sparse files, the
   offsets are real): seconds from nothing to the first batch, memory, and the rate at which samples are found and read.
3. Waiting: a consumer that takes 1M tokens a second from the prefetching reader; the share of its time spent waiting.

The files, about 500 MB and 60,000 names, go below `--folder` and are deleted. About two minutes. Prints tables and writes
`benchmarks/results/loader-<date>.json`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch

from benchmarks import common
from moxin.console import table
from moxin.recipe import PhaseConfig
from moxin.tokens.loader import Curriculum, PhaseData
from moxin.tokens.store import OFFSETS, Shard, ShardWriter, tokens_by_length, write_description
from moxin.train.prefetch import Prefetched
from moxin.train.pretrain import PhaseBatches

VOCAB, TOKENS = 32_000, 200_000_000
ROWS = 16
REPEATS = 9


def lengths_of_documents(n_tokens: int, seed: int) -> np.ndarray:
    """Log-normal around 600 tokens, as web pages are."""
    rng = np.random.default_rng(seed)
    lengths = np.maximum(rng.lognormal(6.4, 1.1, n_tokens // 500).astype(np.int64), 3)
    kept = lengths[: np.searchsorted(np.cumsum(lengths), n_tokens)]
    return np.append(kept, n_tokens - kept.sum())


def write_real(folder: Path) -> str:
    """200M random tokens in four shards of two sources."""
    sources: dict[str, Any] = {}
    for name in ("web", "code"):
        shards = []
        for number in range(2):
            lengths = lengths_of_documents(TOKENS // 4, number)
            file = f"shards/{name}-{number:05d}.bin"
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            with open(folder / file, "wb") as handle:
                writer = ShardWriter(file, handle, np.dtype("<u2"))
                ids = np.random.default_rng(number).integers(0, VOCAB, TOKENS // 4, dtype=np.uint16)
                writer.append(ids, lengths)
            shard, offsets = writer.finish()
            (folder / shard.index).write_bytes(offsets)
            shards.append(shard)
        sources[name] = {"shards": shards}
    write_description(str(folder), VOCAB, "", {"pad": 0, "bos": 1, "eos": 2}, sources)
    return str(folder)


def write_sparse(folder: Path, n_shards: int, tokens: int) -> str:
    """`n_shards` shards of so many tokens each: holes on the disk, and one file of offsets with as many names."""
    lengths = lengths_of_documents(tokens, 0)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(OFFSETS)
    (folder / "shards").mkdir(parents=True)
    index = folder / "offsets"
    index.write_bytes(offsets.tobytes())
    longer = tokens_by_length(lengths)
    shards = []
    for number in range(n_shards):
        shard = Shard(f"shards/web-{number:05d}.bin", len(lengths), tokens, "0" * 64, "0" * 64, longer)
        with open(folder / shard.file, "wb") as handle:
            handle.truncate(2 * tokens)
        os.link(index, folder / shard.index)
        shards.append(shard)
    write_description(str(folder), VOCAB, "", {"pad": 0, "bos": 1, "eos": 2}, {"web": {"shards": shards}})
    return str(folder)


def curriculum(context: int, tokens: int, mix: dict[str, float]) -> Curriculum:
    return Curriculum((PhaseConfig("p", tokens, context, mix),), 1, max(context, 8192), 2**32)


def numpy_rows(ids: np.ndarray, context: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    starts = rng.integers(0, len(ids) - context - 1, ROWS)
    tokens = np.stack([ids[start : start + context].astype(np.int64) for start in starts])
    targets = np.stack([ids[start + 1 : start + 1 + context].astype(np.int64) for start in starts])
    return tokens, targets


def rate(make: Callable[[int], Any], context: int, n: int) -> float:
    """Tokens a second of `n` batches."""
    started = time.perf_counter()
    for i in range(n):
        make(i)
    return n * ROWS * context / (time.perf_counter() - started)


def measure_throughput(folder: Path) -> list[dict[str, Any]]:
    url = write_real(folder)
    ids = np.memmap(folder / "shards/web-00000.bin", np.uint16, mode="r")
    results = []
    for context in (2048, 8192, 65_536):
        data = PhaseData(url, curriculum(context, 10**12, {"web": 0.7, "code": 0.3}))
        rng = np.random.default_rng(0)
        n = max(2, 3_000_000 // (ROWS * context))

        def ours(i: int, data: PhaseData = data) -> list[torch.Tensor]:
            batch = data.batch(i * ROWS, ROWS)
            arrays = (batch.tokens_BT, batch.targets_BT, batch.segments_BT)
            tensors = [torch.from_numpy(array) for array in arrays]
            return [tensor.pin_memory() for tensor in tensors] if torch.cuda.is_available() else tensors

        def theirs(i: int, context: int = context, rng: np.random.Generator = rng) -> Any:
            return [torch.from_numpy(array) for array in numpy_rows(ids, context, rng)]

        rates: dict[str, list[float]] = {"moxin": [], "numpy": []}
        for _ in range(REPEATS):
            rates["moxin"].append(rate(ours, context, n))
            rates["numpy"].append(rate(theirs, context, n))
        medians = {name: statistics.median(found) for name, found in rates.items()}
        ratio = statistics.median(a / b for a, b in zip(rates["moxin"], rates["numpy"], strict=True))
        results.append({"context": context, "tokens_per_second": medians, "ratio": ratio})
    return results


def measure_size(url: str, n_tokens: int) -> dict[str, Any]:
    """In a fresh process: seconds to the first batch, without imports, memory, and rates."""
    started = time.perf_counter()
    data = PhaseData(url, curriculum(2048, 2 * 10**12, {"web": 1.0}), verify=False)
    opened = time.perf_counter()
    data.batch(0, ROWS)
    first = time.perf_counter()
    resident = resident_bytes()
    n = 200_000
    data._order.locate(np.arange(n))
    located = time.perf_counter()
    for i in range(1, 1 + n // 100 // ROWS):
        data.batch(i * ROWS, ROWS)
    read = time.perf_counter()
    return {
        "seconds_to_open": opened - started,
        "seconds_to_first_batch": first - started,
        "resident_bytes": resident,
        "samples_located_per_second": n / (located - first),
        "samples_read_per_second": n // 100 // ROWS * ROWS / (read - located),
    }


def resident_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) * 1024


def measure_waiting(url: str, tokens_per_second: int) -> dict[str, float]:
    """A consumer that needs a step of 2^18 tokens every so often, as one rank."""
    step_tokens = 2**18
    batches = PhaseBatches(url, curriculum(2048, 10**12, {"web": 0.7, "code": 0.3}), step_tokens, 2**15)
    waited, steps = 0.0, 40
    with Prefetched(batches, 0, 1, pin=torch.cuda.is_available()) as data:
        data.step(0)
        started = time.perf_counter()
        for i in range(1, steps + 1):
            begin = time.perf_counter()
            data.step(i)
            waited += data.waited
            time.sleep(max(0.0, step_tokens / tokens_per_second - (time.perf_counter() - begin)))
        seconds = time.perf_counter() - started
    return {"tokens_per_second": steps * step_tokens / seconds, "waited_share": waited / seconds}


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--folder", default=None, help="where the files go (default: the temporary folder)")
    options.add_argument("--size-of", default="", help=argparse.SUPPRESS)
    parsed = options.parse_args()
    if parsed.size_of:
        print(json.dumps(measure_size(parsed.size_of, 0)))
        return
    with tempfile.TemporaryDirectory(dir=parsed.folder) as temporary:
        folder = Path(temporary)
        throughput = measure_throughput(folder / "real")
        waiting = measure_waiting(str(folder / "real"), 1_000_000)
        sizes = {}
        for n_shards, tokens in ((10_000, 2_000_000), (30_000, 67_000_000)):
            url = write_sparse(folder / f"sparse-{n_shards}", n_shards, tokens)
            command = [sys.executable, __file__, "--size-of", url]
            runs = [
                json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                for _ in range(3)
            ]
            sizes[f"{n_shards} shards, {n_shards * tokens:.2g} tokens"] = {
                name: statistics.median(run[name] for run in runs) for name in runs[0]
            }
    columns = ("context", "moxin tokens/s", "numpy tokens/s", "moxin / numpy")
    rows = [
        (
            of["context"],
            of["tokens_per_second"]["moxin"],
            of["tokens_per_second"]["numpy"],
            f"{of['ratio']:.2f}",
        )
        for of in throughput
    ]
    table("Rows out of the page cache, one thread", columns, rows)
    table(
        "Large stores",
        ("store", "to open (s)", "to first batch (s)", "resident (MiB)", "located/s", "read/s"),
        [
            (
                name,
                f"{of['seconds_to_open']:.2f}",
                f"{of['seconds_to_first_batch']:.2f}",
                round(of["resident_bytes"] / 2**20),
                round(of["samples_located_per_second"]),
                round(of["samples_read_per_second"]),
            )
            for name, of in sizes.items()
        ],
    )
    table(
        "A consumer of 1M tokens/s",
        ("tokens/s", "share of time spent waiting"),
        [(round(waiting["tokens_per_second"]), f"{waiting['waited_share']:.3%}")],
    )
    common.write(
        "loader", {"throughput": throughput, "sizes": sizes, "waiting": waiting}, packages=("numpy", "numba")
    )


if __name__ == "__main__":
    main()
