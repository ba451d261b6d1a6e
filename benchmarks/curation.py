#!/usr/bin/env python
"""Curation against its peers, in MB of UTF-8 text per second and core: kernels, then the whole stage on a local Ray.

benchmarks/curation.py --corpus FOLDER [--bytes 400e6] [--work FOLDER] [--only signatures …]

`--corpus` holds real documents (.jsonl.zst, .txt), of which a corpus of distinct documents with one near-duplicate in ten is
made (`curation_corpus.py`). Kernels run on one thread, warm, alternating with their peers on the same slice (peers get a
smaller one); medians of the rounds. The stage runs in a process of its own for each profile and number of cores.
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
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import pyarrow as pa
from common import hardware, write
from curation_corpus import batches, build, spread

from kernels import minhash
from moxin import console
from moxin.arrow import utf8_buffers
from moxin.curate import fuzzy, fuzzy_plan, fuzzy_shingles, verdicts
from moxin.curate.profiles import find_profile

SLICE, PEER_SLICE = 40e6, 1.5e6
PIPELINES = (("near-only", ()), ("fineweb", ()), ("dclm-baseline", ("classifier=off", "bloom.streams=2")))
TARGETS = {"signatures": 100, "signals": 20, "near-only": 20, "dclm-baseline": 10}


def rate(call: Callable[[], Any], n_bytes: float) -> float:
    started = time.perf_counter()
    call()
    return n_bytes / 1e6 / (time.perf_counter() - started)


def alternating(
    ours: Callable[[], Any], peers: dict[str, Callable[[], Any]], sizes: tuple[float, float], rounds: int
) -> dict[str, float]:
    """Median MB/s of ours and of every peer."""
    ours()
    found: dict[str, list[float]] = {"moxin": [], **{name: [] for name in peers}}
    for _ in range(rounds):
        found["moxin"].append(rate(ours, sizes[0]))
        for name, peer in peers.items():
            found[name].append(rate(peer, sizes[1]))
    return {name: statistics.median(values) for name, values in found.items()}


def signatures(columns: list[pa.Array], few: list[str], rounds: int) -> dict[str, float]:
    """Raw text to 112 permutations of word 5-grams."""
    import datasketch
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
    from datatrove.utils.hashing import HashConfig

    params = fuzzy_shingles.published("fineweb")
    # datatrove 0.10 hands text to xxhash, which since its version 4 takes bytes only.
    theirs = MinhashDedupSignature(
        "/nowhere", MinhashConfig(hash_config=HashConfig(hash_fc="sha1"), num_buckets=14, hashes_per_bucket=8)
    )

    def ours() -> None:
        for column in columns:
            fuzzy_shingles.signatures(fuzzy_shingles.shingles(column, params), params)

    def datatrove() -> None:
        for text in few:
            theirs.get_signature(theirs.get_shingles(text))

    def sketch() -> None:
        for text in few:
            words = text.lower().split()
            grams = {" ".join(words[k : k + 5]).encode() for k in range(max(len(words) - 4, 1))}
            datasketch.MinHash(num_perm=112).update_batch(list(grams))

    return alternating(ours, {"datatrove": datatrove, "datasketch": sketch}, _sizes(columns, few), rounds)


def signals(columns: list[pa.Array], few: list[str], rounds: int) -> dict[str, float]:
    """Gopher repetition and quality, C4 and FineWeb: all signals, edits and decisions."""
    from datatrove.data import Document
    from datatrove.pipeline import filters

    profile = find_profile("fineweb/datatrove")
    chain = [
        filters.GopherRepetitionFilter(),
        filters.GopherQualityFilter(),
        filters.C4QualityFilter(filter_no_terminal_punct=False),
        filters.FineWebQualityFilter(),
    ]

    def ours() -> None:
        for column in columns:
            verdicts.apply(profile, *utf8_buffers(column))

    def datatrove() -> None:
        for text in few:
            document = Document(text=text, id="")
            all(each.filter(document) is True for each in chain)

    return alternating(ours, {"datatrove": datatrove}, _sizes(columns, few), rounds)


def union_find(rounds: int) -> dict[str, float]:
    """Millions of edges per second, 5 million nodes and 6 million edges."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n, draw = 5_000_000, np.random.default_rng(0)
    pairs = draw.integers(0, n, (6_000_000, 2))
    few = [(int(a), int(b)) for a, b in pairs[:300_000]]

    def ours() -> None:
        parent = np.arange(n)
        minhash.unite(parent, pairs)
        minhash.flatten(parent)

    def scipy() -> None:
        connected_components(coo_array((np.ones(len(pairs), bool), pairs.T), shape=(n, n)), directed=False)

    def dictionary() -> None:
        parent: dict[int, int] = {}

        def find(x: int) -> int:
            while parent.get(x, x) != x:
                parent[x] = parent.get(parent[x], parent[x])
                x = parent[x]
            return x

        for a, b in few:
            a, b = find(a), find(b)
            if a != b:
                parent[max(a, b)] = min(a, b)

    ours()
    found: dict[str, list[float]] = {"moxin": [], "scipy": [], "dictionary": []}
    for _ in range(rounds):
        for name, call, size in (
            ("moxin", ours, 6e6),
            ("scipy", scipy, 6e6),
            ("dictionary", dictionary, 3e5),
        ):
            found[name].append(rate(call, size))
    return {name: statistics.median(values) for name, values in found.items()}


def _sizes(columns: list[pa.Array], few: list[str]) -> tuple[float, float]:
    whole = sum(int(utf8_buffers(column)[1][-1]) for column in columns)
    return whole, sum(len(text.encode()) for text in few)


def in_process(script: str, *options: str) -> dict[str, Any]:
    """What a run of this file in a process of its own prints last."""
    done = subprocess.run(
        [sys.executable, __file__, script, *options], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:] or done.stdout[-2000:])
    return json.loads(done.stdout.strip().splitlines()[-1])  # type: ignore[no-any-return]


def pipeline(corpus: str, profile: str, overrides: str, n_cpus: str) -> dict[str, Any]:
    """The whole stage, read to write."""
    from moxin import artifact, recipes, session
    from moxin.curate import run
    from moxin.recipe import SourceConfig
    from moxin.tinyworld import stage as tinyworld

    smoke = recipes.load("smoke")
    settings = tuple(each for each in overrides.split(",") if each)
    recipe = replace(
        smoke,
        sources=(SourceConfig("web", "folder", path=corpus),),
        curate=replace(smoke.curate, profile=profile, overrides=settings),
    )
    with tempfile.TemporaryDirectory(prefix="moxin-bench-", dir=Path(corpus).parent) as folder:
        world = artifact.make(tinyworld.stage(recipe), folder)
        session.start(int(n_cpus))
        started = time.perf_counter()
        made = artifact.make(run.stage(recipe, world), folder)
        seconds = time.perf_counter() - started
        session.stop()
    counts = made.counts
    return {
        "seconds": seconds,
        "MB/s": counts["bytes_in"] / 1e6 / seconds,
        "kept": counts["documents_out"] / counts["documents_in"],
        "steps": {
            name: counts["bytes_in"] / 1e6 / max(each, 1e-3) for name, each in counts["seconds"].items()
        },
    }


def peak() -> int:
    """Largest resident memory so far, in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def memory(corpus: str, n_bytes: str) -> dict[str, Any]:
    """Peak memory of the near-duplicate search, one task after another, over so much text."""
    import pyarrow.parquet as pq

    params, budget = fuzzy_shingles.published("fineweb"), 32 * 2**20
    files = sorted((Path(corpus) / "parquet").iterdir())
    units, total, wanted = [], 0, float(n_bytes)

    def texts_of(unit: fuzzy.Unit) -> Any:
        for path, group in places[unit.number]:
            yield pq.ParquetFile(path).read_row_group(group, columns=["text"])["text"].combine_chunks()

    places: list[list[tuple[Path, int]]] = []
    for path in files:
        for group in range(pq.ParquetFile(path).num_row_groups):
            if total >= wanted:
                break
            size = int(
                utf8_buffers(pq.ParquetFile(path).read_row_group(group, columns=["text"])["text"])[1][-1]
            )
            if not places or len(places[-1]) == 3:
                places.append([])
            places[-1].append((path, group))
            total += size
    fuzzy.find([["warm up with these few words and some more of them"] * 2], params)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = peak()
    with tempfile.TemporaryDirectory(prefix="moxin-bench-") as folder:
        for number in range(len(places)):
            unit = fuzzy.Unit(0, 0, number, 0, folder)
            units.append(fuzzy.write_keys(folder, 0, 0, number, texts_of(unit), params))
        n = sum(unit.documents for unit in units)
        n_ranges = max(-(-64 * n * params.bands // budget), 1)
        fuzzy.run(fuzzy.Search(folder, tuple(units), params, n_ranges), texts_of)
    after = peak()
    rows = {name: value for name, value, _ in fuzzy_plan.rows(n, total, params, n_ranges, len(units))}
    formula = {name: value for name, value in rows.items() if name.startswith("memory")}
    return {
        "MB": total / 1e6,
        "documents": n,
        "ranges": n_ranges,
        "above_start_MB": (after - before) / 1e3,
        "formula": formula,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", required=True, help="folder with real documents")
    parser.add_argument("--bytes", type=float, default=400e6)
    parser.add_argument("--work", default="", help="where the made corpus is kept (a temporary folder)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--only", nargs="*", default=["signatures", "signals", "union_find", "memory", "pipeline"]
    )
    parser.add_argument("--out", default="", help="folder for the JSON file (none is written)")
    options = parser.parse_args()
    pa.set_cpu_count(1)
    work = Path(options.work or tempfile.mkdtemp(prefix="moxin-bench-"))
    corpus = build(Path(options.corpus), work, int(options.bytes))
    result: dict[str, Any] = {
        "corpus": {"documents": corpus.documents, "copies": corpus.copies, "bytes": corpus.bytes}
    }
    columns = batches(corpus, SLICE)
    few = spread(columns, PEER_SLICE)
    rows: list[tuple[Any, ...]] = []
    for name, call in (("signatures", signatures), ("signals", signals)):
        if name in options.only:
            found = result[name] = call(columns, few, options.rounds)
            peers = ", ".join(f"{peer} {value:.2f}" for peer, value in found.items() if peer != "moxin")
            rows.append((name, f"{found['moxin']:.1f} MB/s", f">= {TARGETS[name]}", peers))
    if "union_find" in options.only:
        found = result["union_find"] = union_find(options.rounds)
        peers = f"scipy {found['scipy']:.1f}, dictionary {found['dictionary']:.2f}"
        rows.append(("union-find", f"{found['moxin']:.1f} M edges/s", ">= 10", peers))
    if "memory" in options.only:
        result["memory"] = []
        for times in (1, 4, 16):
            got = in_process("memory", str(corpus.folder), str(options.bytes / 16 * times))
            result["memory"].append(got)
            rows.append(
                (
                    f"memory, {got['MB']:.0f} MB",
                    f"{got['above_start_MB']:.0f} MB",
                    "flat",
                    f"{got['ranges']} ranges; formula {', '.join(f'{k[8:]} {v}' for k, v in got['formula'].items())}",
                )
            )
    if "pipeline" in options.only:
        result["pipeline"] = {}
        for profile, overrides in PIPELINES:
            one, two = (
                in_process("pipeline", str(corpus.folder / "parquet"), profile, ",".join(overrides), n)
                for n in "12"
            )
            result["pipeline"][profile] = {"1": one, "2": two, "scaling": one["seconds"] / two["seconds"]}
            rows.append(
                (
                    profile,
                    f"{one['MB/s']:.1f} MB/s on 1 core, {two['MB/s']:.1f} on 2",
                    f">= {TARGETS[profile]} a core" if profile in TARGETS else "",
                    f"scaling {one['seconds'] / two['seconds']:.2f}, kept {one['kept']:.0%}",
                )
            )
    console.table(
        f"Curation, {corpus.bytes / 1e6:,.0f} MB, {hardware()['cpu']}",
        ("what", "moxin", "target", "beside"),
        rows,
    )
    if options.out:
        packages = ("datatrove", "datasketch", "numba", "pyarrow", "ray", "scipy")
        console.say(write("curation", result, options.out, packages))


if __name__ == "__main__":
    if sys.argv[1:2] == ["pipeline"]:
        print(json.dumps(pipeline(*sys.argv[2:])))
    elif sys.argv[1:2] == ["memory"]:
        print(json.dumps(memory(*sys.argv[2:])))
    else:
        main()
