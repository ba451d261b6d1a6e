#!/usr/bin/env python
"""`python benchmarks/tokenization.py`: from Parquet to a finished token store on one core, Mistral's tokenizer and ours.

End to end, as `jobs/tokenize.py` does one part: read Parquet, tokenize, frame the documents, search for evaluation
questions, hash, write ids and offsets. Once with each back-end that is installed; beside it what the tokenizers alone make
of the same texts in memory: Hugging Face `tokenizers`, `sentencepiece`, `gigatoken`. All of them alternate in one process
on one thread; medians.

The text is the real corpora where they are (`--corpus FOLDER` of .jsonl.zst with a field `text`;
`../shared/data/corpus`), and in any case the sources of this Python. Mistral's tokenizer comes with the package
`mistral-common`. About five minutes. Prints a table and writes `benchmarks/results/tokenization-<date>.json`.
"""

import argparse
import io
import os
import statistics
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pyarrow as pa
import pyarrow.json
import pyarrow.parquet as pq
import zstandard

from benchmarks import common
from moxin.console import say, table
from moxin.tokens import part
from moxin.tokens.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parent.parent
REPEATS = 3
PIECE = 20_000
"""Longest document, in characters: a few of the corpora are books."""
QUESTIONS = ["In which town does Olga Brandt keep her silver compass?"] * 200


def corpus(folder: Path) -> list[tuple[str, str]]:
    """(source, text) of the real corpora and of this Python's sources."""
    documents = []
    for path in sorted(folder.glob("*.jsonl.zst")):
        with open(path, "rb") as handle, zstandard.ZstdDecompressor().stream_reader(handle) as stream:
            rows = pa.json.read_json(io.BytesIO(stream.read()), pa.json.ReadOptions(block_size=1 << 26))
        documents += [(path.name.split(".")[0], text) for text in rows["text"].to_pylist()]
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if "site-packages" not in path.parts:
            documents.append(("code", path.read_text(errors="ignore")))
    return [
        (source, text[start : start + PIECE])
        for source, text in documents
        for start in range(0, len(text), PIECE)
    ]


def write_part(folder: Path, documents: list[tuple[str, str]]) -> str:
    sources, texts = zip(*documents, strict=True)
    ids = [f"{number:08d}" for number in range(len(texts))]
    url = str(folder / "part-00000.parquet")
    pq.write_table(pa.table({"id": ids, "source": sources, "text": texts}), url, compression="zstd")
    return url


def peers(path: str, texts: list[str]) -> dict[str, Callable[[], Any]]:
    """What the tokenizers alone do, on texts in memory."""
    import sentencepiece

    found: dict[str, Callable[[], Any]] = {}
    tokenizer = Tokenizer.load(path)
    found["tokenizers alone"] = lambda: tokenizer.encode_batch(texts)
    processor = sentencepiece.SentencePieceProcessor(model_file=path)
    found["sentencepiece alone"] = lambda: processor.encode(texts, num_threads=1)
    column = pa.array(texts)
    for backend in ("numba", "gigatoken"):
        fast = Tokenizer.load(path)
        try:
            fast.choose(backend, column.slice(0, part.GATE))
        except ValueError as error:
            say(f"  {backend} alone: left out ({error})")
            continue
        found[f"{backend} alone"] = lambda fast=fast: fast.encode_arrow(column)
    return found


def seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measure(works: dict[str, Callable[[], Any]], n_bytes: int) -> dict[str, float]:
    """Median MB/s of each, taken in turns; the first turn warms up and does not count."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(REPEATS + 1):
        for name, work in works.items():
            took = seconds(work)
            if turn:
                times[name].append(took)
    return {name: n_bytes / 1e6 / statistics.median(taken) for name, taken in times.items()}


def end_to_end(
    path: str, part_url: str, folder: Path, backends: tuple[str, ...]
) -> dict[str, Callable[[], Any]]:
    """One part from Parquet to a store, by back-end; a tokenizer that a back-end does not cover is left out."""
    found: dict[str, Callable[[], Any]] = {}
    Tokenizer.load(path).save(str(folder / "tokenizer"))
    for backend in backends:
        try:
            Tokenizer.load(path).choose(backend, pa.array(["probe"]))
        except ValueError as error:
            say(f"  {backend}: left out ({error})")
            continue
        found[f"end to end, {backend}"] = lambda backend=backend: part.tokenize(
            part_url, 0, str(folder), backend, frozenset(), QUESTIONS
        )
    return found


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--corpus", type=Path, default=ROOT.parent / "shared" / "data" / "corpus")
    parsed = options.parse_args()
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}
    documents = corpus(parsed.corpus)
    texts = [text for _, text in documents]
    n_bytes = sum(len(text.encode()) for text in texts)
    say(f"{len(texts):,} documents, {n_bytes / 1e6:.0f} MB")
    mistral = str(files("mistral_common") / "data" / "tokenizer.model.v1")
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        part_url = write_part(folder, documents)
        works = end_to_end(mistral, part_url, folder / "mistral", ("numba", "gigatoken", "hf"))
        results["mistral (32,000)"] = measure(works | peers(mistral, texts), n_bytes)
        own = str(folder / "trained")
        Tokenizer.train(texts[::10], 16_000).save(own)
        works = end_to_end(own, part_url, folder / "own", ("numba", "hf"))
        results["our own BPE (16,000)"] = measure(works, n_bytes)
    rows = [(name, what, f"{rate:.1f}") for name, rates in results.items() for what, rate in rates.items()]
    table("MB/s of text on one core", ("tokenizer", "what", "MB/s"), rows)
    packages = ("tokenizers", "sentencepiece", "gigatoken", "pyarrow", "numba")
    common.write(
        "tokenization",
        {"documents": len(texts), "bytes": n_bytes, "mb_per_second": results},
        packages=packages,
    )


if __name__ == "__main__":
    main()
