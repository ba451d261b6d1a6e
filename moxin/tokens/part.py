"""What is done to one part (one Parquet file) of the curated documents. `run.py` spreads these functions with Ray Data."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from itertools import islice, pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from moxin import storage
from moxin.tokens import heldout
from moxin.tokens.absence import QuestionIndex
from moxin.tokens.store import OFFSETS, ShardWriter, dtype_for, index_file, writing
from moxin.tokens.tokenizer import Tokenizer

ROWS = 512
"""Documents that are in memory at a time."""


def batches(url: str) -> Iterator[pa.RecordBatch]:
    """Columns id, source, text of a Parquet file, `ROWS` at a time."""
    with storage.open_read(url) as handle:
        yield from pq.ParquetFile(handle).iter_batches(ROWS, columns=["id", "source", "text"])


def survey(url: str, heldout_bytes: int) -> dict[str, dict[str, Any]]:
    """Per source of a part: documents, UTF-8 bytes of text, and candidates to be held out."""
    sizes: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for batch in batches(url):
        lengths = pc.binary_length(batch["text"]).to_pylist()
        for id, source, length in zip(
            batch["id"].to_pylist(), batch["source"].to_pylist(), lengths, strict=True
        ):
            sizes[source].append((id, length))
    return {
        source: {
            "documents": len(documents),
            "bytes": sum(length for _, length in documents),
            "candidates": heldout.candidates(documents, heldout_bytes),
        }
        for source, documents in sizes.items()
    }


def sample(url: str, rates: Mapping[str, float], held: frozenset[str]) -> list[str]:
    """The texts of a part that a tokenizer is trained on: of every source the given share of its documents."""
    texts = []
    for batch in batches(url):
        for row, (id, source) in enumerate(
            zip(batch["id"].to_pylist(), batch["source"].to_pylist(), strict=True)
        ):
            if id not in held and heldout.draw(id, "tokenizer") < rates[source]:
                texts.append(batch["text"][row].as_py())
    return texts


def tokenize(url: str, number: int, store_url: str, held: frozenset[str]) -> dict[str, Any]:
    """Writes the shards of one part, one per source in it, and returns what they hold, with the held-out texts.

    The documents keep their order, so the bytes do not depend on who does it or when.
    """
    tokenizer = Tokenizer.load(storage.join(store_url, "tokenizer"))
    kept_out: list[dict[str, str]] = []
    text_bytes: dict[str, int] = defaultdict(int)
    writers: dict[str, ShardWriter] = {}
    with ExitStack() as stack:
        for batch in batches(url):
            ids, sources, texts = (batch[name].to_pylist() for name in ("id", "source", "text"))
            lengths = pc.binary_length(batch["text"]).to_pylist()
            for id, source, text, length, encoded in zip(
                ids, sources, texts, lengths, tokenizer.encode_batch(texts), strict=True
            ):
                if id in held:
                    kept_out.append({"source": source, "text": text})
                    continue
                if source not in writers:
                    file = f"shards/{source}-{number:05d}.bin"
                    writers[source] = stack.enter_context(
                        writing(store_url, file, dtype_for(tokenizer.vocab_size))
                    )
                writers[source].append([tokenizer.bos_id, *encoded, tokenizer.eos_id])
                text_bytes[source] += length
    shards = {
        source: {"shard": asdict(writer.shard), "bytes": text_bytes[source]}
        for source, writer in writers.items()
    }
    return {"part": number, "sources": shards, "heldout": kept_out}


def search(store_url: str, file: str, questions: Sequence[str]) -> list[int]:
    """Numbers of the questions that occur in the decoded documents of one shard, ascending."""
    tokenizer, index = Tokenizer.load(storage.join(store_url, "tokenizer")), QuestionIndex(questions)
    ids = np.frombuffer(storage.read_bytes(storage.join(store_url, file)), dtype_for(tokenizer.vocab_size))
    offsets = np.frombuffer(storage.read_bytes(storage.join(store_url, index_file(file))), OFFSETS).tolist()
    documents = (ids[start:stop].tolist() for start, stop in pairwise(offsets))
    found: set[int] = set()
    while block := list(islice(documents, ROWS)):
        for text in tokenizer.decode_batch(block):
            found |= index.found_in(text)
    return sorted(found)
