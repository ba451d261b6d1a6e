"""Text for `benchmarks/curation.py`: as much as is wanted of distinct documents, out of a few dozen megabytes of real ones.

A document is runs of paragraphs from random places of one original (which keeps its language and its kind), of log-normal
length as web pages have it. One word in ten gives way to another of its paragraph, so that documents that share a paragraph
share about a third of its 5-grams, and few of its 13-grams. One document in ten is a copy of one before it, with as many
words changed as bring the Jaccard similarity of their word 5-grams to a value between 0.5 and 0.95.

The same originals and number of bytes give the same corpus. It is written once, as Parquet and as JSON lines, in parts of
equal size, and found again.
"""

import hashlib
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from moxin.curate.reading import BATCH_BYTES

MADE_BY = 1
"""Raised when the same originals give another corpus."""
PARTS = 16
MEDIAN_CHARS, SIGMA, MIN_CHARS, MAX_CHARS = 2500, 1.0, 200, 60_000
CHANGED = 0.1
COPIES, LEAST_SIMILAR, MOST_SIMILAR = 0.1, 0.5, 0.95
PARAGRAPH_CHARS = 600
"""A paragraph that is longer is cut at line ends, and before that many characters nothing is."""
BLANK_LINE, SPACE = re.compile(r"\n\s*\n"), re.compile(r"(\s+)")
SCHEMA = pa.schema(
    [("id", pa.string()), ("source", pa.string()), ("text", pa.large_string())]
    + [("copy_of", pa.string()), ("similarity", pa.float64())]
)


@dataclass(frozen=True)
class Corpus:
    """Where a corpus is, and how much it is."""

    folder: Path
    parts: int
    documents: int
    copies: int
    bytes: int
    """Of text, UTF-8."""

    def part(self, number: int, form: str = "parquet") -> Path:
        ending = {"parquet": "parquet", "jsonl": "jsonl.zst"}[form]
        return self.folder / form / f"part-{number:05d}.{ending}"

    def texts(self, number: int) -> Iterator[pa.Array]:
        """The text of a part, by row groups of about `BATCH_BYTES`."""
        with open(self.part(number), "rb") as handle:
            file = pq.ParquetFile(handle)
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=["text"], use_threads=False)
                yield table["text"].combine_chunks()


def originals(folder: Path) -> list[tuple[str, str]]:
    """(source, text) of the files of a folder: `.jsonl.zst` with a field `text`, `.txt`. Raises `ValueError` for none."""
    found = []
    for path in sorted(folder.iterdir()):
        name = path.name.split(".")[0]
        if path.name.endswith(".jsonl.zst"):
            with open(path, "rb") as handle, zstandard.ZstdDecompressor().stream_reader(handle) as stream:
                found += [(name, json.loads(line)["text"]) for line in io.TextIOWrapper(stream, "utf-8")]
        elif path.suffix == ".txt":
            found.append((name, path.read_text(encoding="utf-8")))
    if not found:
        raise ValueError(f"--corpus {folder}: no .jsonl.zst and no .txt file is there")
    return found


def paragraphs(text: str) -> list[str]:
    """What lies between blank lines; what is long, by its lines."""
    out = []
    for block in BLANK_LINE.split(text.replace("\r\n", "\n")):
        gathered: list[str] = []
        for line in block.split("\n") if len(block) > PARAGRAPH_CHARS else [block]:
            gathered.append(line)
            if sum(map(len, gathered)) >= PARAGRAPH_CHARS:
                out.append("\n".join(gathered))
                gathered = []
        out.append("\n".join(gathered))
    return [paragraph for paragraph in out if paragraph.strip()]


def changed(text: str, rate: float, rng: np.random.Generator) -> str:
    """The text with this share of its words replaced by others of it; white space stays."""
    pieces = SPACE.split(text)  # words and white space in turn
    n_words = (len(pieces) + 1) // 2
    n = rng.binomial(n_words, rate)
    for at, other in 2 * rng.integers(0, n_words, (n, 2)):
        pieces[at] = pieces[other]
    return "".join(pieces)


def rate_of(similarity: float) -> float:
    """The share of changed words that leaves this Jaccard similarity of 5-grams: of two sets of equal size that share s of
    their members it is s / (2 - s), and a 5-gram stays if five words do."""
    return float(1 - (2 * similarity / (1 + similarity)) ** (1 / 5))


def documents(found: list[tuple[str, str]], n_bytes: int) -> Iterator[dict[str, Any]]:
    """Rows of `SCHEMA`, as many as have that many bytes of text."""
    rng = np.random.default_rng(0)
    pool = [(source, paragraphs(text)) for source, text in found]
    sizes = np.array([sum(map(len, own)) for _, own in pool], float)
    drawn = iter(np.empty(0, np.int64))
    made: list[tuple[str, str, str]] = []
    total, number = 0, 0
    while total < n_bytes:
        name, row = f"{number:08d}", dict[str, Any]()
        if made and rng.random() < COPIES:
            of, source, text = made[rng.integers(len(made))]
            similarity = rng.uniform(LEAST_SIMILAR, MOST_SIMILAR)
            text = changed(text, rate_of(similarity), rng)
            row = {"copy_of": of, "similarity": similarity}
        else:
            chosen = next(drawn, None)
            if chosen is None:
                drawn = iter(rng.choice(len(pool), 4096, p=sizes / sizes.sum()))
                chosen = next(drawn)
            source, own = pool[chosen]
            wanted = np.clip(rng.lognormal(np.log(MEDIAN_CHARS), SIGMA), MIN_CHARS, MAX_CHARS)
            text = _spliced(own, min(wanted, sizes[chosen] / 2), rng)
            made.append((name, source, text))
        total, number = total + len(text.encode()), number + 1
        yield {"copy_of": "", "similarity": 0.0, "id": name, "source": source, "text": text} | row


def _spliced(own: list[str], wanted: float, rng: np.random.Generator) -> str:
    out, length = [], 0
    while length < wanted:
        start = rng.integers(len(own))
        for paragraph in own[start : start + rng.integers(1, 7)]:
            out.append(changed(paragraph, CHANGED, rng))
            length += len(out[-1]) + 2
            if length >= wanted:
                break
    return "\n\n".join(out)


def build(originals_folder: Path, folder: Path, n_bytes: int) -> Corpus:
    """The corpus in `folder`, made now if it is not there or is another one."""
    found = originals(originals_folder)
    digest = hashlib.sha256(json.dumps([MADE_BY, n_bytes, found]).encode()).hexdigest()
    about = folder / "about.json"
    if about.exists():
        told = json.loads(about.read_text())
        if told.pop("digest") == digest:
            return Corpus(folder, **told)
        about.unlink()
    for form in ("parquet", "jsonl"):
        (folder / form).mkdir(parents=True, exist_ok=True)
        for path in (folder / form).glob("part-*"):
            path.unlink()
    part_bytes, rows, waiting = n_bytes / PARTS, list[dict[str, Any]](), 0
    counts = {"parts": 0, "documents": 0, "copies": 0, "bytes": 0}
    for row in documents(found, n_bytes):
        size = len(row["text"].encode())
        counts["documents"] += 1
        counts["copies"] += bool(row["copy_of"])
        counts["bytes"] += size
        rows.append(row)
        waiting += size
        if counts["bytes"] >= part_bytes * (counts["parts"] + 1):
            _write(Corpus(folder, **counts), counts["parts"], rows, waiting)
            counts["parts"] += 1
            rows, waiting = [], 0
    if rows:  # rounding of `part_bytes` alone
        _write(Corpus(folder, **counts), counts["parts"], rows, waiting)
        counts["parts"] += 1
    about.write_text(json.dumps(counts | {"digest": digest}))
    return Corpus(folder, **counts)


def _write(corpus: Corpus, number: int, rows: list[dict[str, Any]], n_bytes: int) -> None:
    table = pa.Table.from_pylist(rows, SCHEMA)
    per_group = max(len(rows) * BATCH_BYTES // n_bytes, 1)
    pq.write_table(table, corpus.part(number), compression="zstd", row_group_size=per_group)
    with (
        open(corpus.part(number, "jsonl"), "wb") as handle,
        zstandard.ZstdCompressor().stream_writer(handle) as stream,
    ):
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")


def batches(corpus: Corpus, n_bytes: float) -> list[pa.Array]:
    """Batches of text, those of the first parts, of about that many bytes together."""
    out, total = [], 0
    for number in range(corpus.parts):
        for text in corpus.texts(number):
            out.append(text)
            total += text.nbytes
            if total >= n_bytes:
                return out
    return out


def spread(found: list[pa.Array], n_bytes: float) -> list[str]:
    """Every k-th of these documents, of about that many bytes together."""
    texts = [text for batch in found for text in batch.to_pylist()]
    step = max(round(sum(len(text.encode()) for text in texts) / n_bytes), 1)
    return texts[::step]
