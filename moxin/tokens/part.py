"""What is done to one part (one Parquet file) of the curated documents. `run.py` spreads these functions with Ray Data."""

import functools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kernels import tokens as kernels
from moxin import console, storage
from moxin.arrow import utf8_buffers
from moxin.tokens import heldout
from moxin.tokens.absence import QuestionIndex
from moxin.tokens.store import Shard, ShardWriter, dtype_for, writing
from moxin.tokens.tokenizer import Tokenizer

ROWS = 512
"""Documents that are in memory at a time."""
GATE = 64
"""Documents of a part on which a fast back-end has to agree with the reference before it is used; later one in `ROWS`."""


def batches(url: str, *columns: str) -> Iterator[pa.RecordBatch]:
    """Columns of a Parquet file, `ROWS` at a time; a column that the file does not have is left out."""
    with storage.open_read(url) as handle:
        file = pq.ParquetFile(handle)
        yield from file.iter_batches(
            ROWS, columns=[name for name in columns if name in file.schema_arrow.names]
        )


def survey(url: str, heldout_bytes: int) -> dict[str, dict[str, Any]]:
    """Per source of a part: documents, UTF-8 bytes of text, and candidates to be held out."""
    sizes: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for batch in batches(url, "id", "source", "text"):
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


def sample(url: str, rates: Mapping[str, float], held: frozenset[str]) -> list[tuple[str, str, str]]:
    """(source, language, text) of the given share of every source's documents, chosen by their ids.

    What a tokenizer is trained on. The language is empty where the documents have none.
    """
    chosen = []
    for batch in batches(url, "id", "source", "text", "lang"):
        languages = batch["lang"].to_pylist() if "lang" in batch.schema.names else [""] * len(batch)
        for row, (id, source) in enumerate(
            zip(batch["id"].to_pylist(), batch["source"].to_pylist(), strict=True)
        ):
            if id not in held and heldout.draw(id, "tokenizer") < rates[source]:
                chosen.append((source, languages[row] or "", batch["text"][row].as_py()))
    return chosen


class MismatchError(Exception):
    """A fast back-end gave other ids than the reference."""


def tokenize(
    url: str, number: int, store_url: str, backend: str, held: frozenset[str], questions: Sequence[str]
) -> dict[str, Any]:
    """Writes the shards of one part, one per source in it. Returns what they hold, the held-out texts, and which of the
    questions occur in the others.

    The documents keep their order, so the bytes do not depend on who does it or when, nor on the back-end: one that does not
    agree with the reference on a document is told off and the part is made again with the reference.
    """
    url_of_tokenizer = storage.join(store_url, "tokenizer")
    tokenizer = _loaded(url_of_tokenizer, storage.sha256(storage.join(url_of_tokenizer, "tokenizer.json")))
    try:
        return _tokenize(tokenizer, url, number, store_url, backend, held, questions)
    except MismatchError as error:
        console.warn(f"{url}: {error}; the part is made again with the reference back-end hf")
        return _tokenize(tokenizer, url, number, store_url, "hf", held, questions)


@functools.lru_cache(maxsize=1)
def _loaded(url: str, sha256: str) -> Tokenizer:
    """A process that does many parts reads its tokenizer and builds its back-end once: 1 s for Mistral's."""
    return Tokenizer.load(url)


def _tokenize(
    tokenizer: Tokenizer,
    url: str,
    number: int,
    store_url: str,
    backend: str,
    held: frozenset[str],
    questions: Sequence[str],
) -> dict[str, Any]:
    index = QuestionIndex(questions)
    held_ids = pa.array(sorted(held), pa.string())
    prefix, suffix = (np.array(ids, np.int64) for ids in tokenizer.frame_ids)
    dtype, chosen = dtype_for(tokenizer.vocab_size), ""
    kept_out: list[dict[str, str]] = []
    found: set[int] = set()
    counts: dict[str, dict[str, np.ndarray]] = defaultdict(lambda: defaultdict(lambda: np.zeros(3, np.int64)))
    writers: dict[str, tuple[ShardWriter, list[Shard]]] = {}
    with ExitStack() as stack:
        for batch in batches(url, "id", "source", "text", "lang"):
            texts = batch["text"]
            if not chosen:
                chosen = tokenizer.choose(backend, texts.slice(0, GATE))
            ids, offsets = tokenizer.encode_arrow(texts)
            if chosen != "hf":
                _compare(tokenizer, chosen, texts, ids, offsets)
            out = pc.is_in(batch["id"], value_set=held_ids).to_numpy(zero_copy_only=False)
            for row in np.flatnonzero(out).tolist():
                kept_out.append({"source": batch["source"][row].as_py(), "text": texts[row].as_py()})
            found |= {question for row, question in index.found_in(texts) if not out[row]}
            measures = np.stack(
                [np.ones(len(texts), np.int64), np.diff(utf8_buffers(texts)[1]), np.diff(offsets)]
            )
            measures[2] += len(prefix) + len(suffix)
            languages = _codes(
                batch["lang"] if "lang" in batch.schema.names else pa.nulls(len(texts), pa.string())
            )
            for source, rows in _rows_by(_codes(batch["source"]), ~out).items():
                if source not in writers:
                    file = f"shards/{source}-{number:05d}.bin"
                    writers[source] = stack.enter_context(writing(store_url, file, dtype))
                framed = np.empty(int(measures[2, rows].sum()), dtype)
                lengths = kernels.frame(ids, offsets, rows, prefix, suffix, framed)
                writers[source][0].append(framed, lengths)
                for language, of_language in _rows_by(
                    languages, np.isin(np.arange(len(texts)), rows)
                ).items():
                    counts[source][language] += measures[:, of_language].sum(1)
    return {
        "part": number,
        "backend": chosen,
        "sources": {
            source: {
                "shard": asdict(finished[0]),
                "bytes": int(sum(count[1] for count in counts[source].values())),
                "languages": {language: count.tolist() for language, count in counts[source].items()},
            }
            for source, (_, finished) in writers.items()
        },
        "heldout": kept_out,
        "questions": sorted(found),
    }


def _codes(column: pa.Array) -> pa.DictionaryArray:
    """A column of names as codes and their dictionary; a missing name is empty."""
    return column.fill_null("").dictionary_encode()


def _rows_by(names: pa.DictionaryArray, kept: np.ndarray) -> dict[str, np.ndarray]:
    """The kept rows of every name that has one, ascending, in order of the names' first rows."""
    codes = names.indices.to_numpy(zero_copy_only=False)
    rows = {
        name: np.flatnonzero((codes == code) & kept) for code, name in enumerate(names.dictionary.to_pylist())
    }
    return {name: found for name, found in rows.items() if len(found)}


def _compare(
    tokenizer: Tokenizer, backend: str, texts: pa.Array, ids: np.ndarray, offsets: np.ndarray
) -> None:
    """Raises `MismatchError` where the document in the middle of a batch has other ids than the reference gives."""
    row = len(texts) // 2
    text = texts[row].as_py() or ""
    if ids[offsets[row] : offsets[row + 1]].tolist() != tokenizer.encode(text):
        raise MismatchError(f"the back-end {backend} gives other ids than the reference for {text[:200]!r}")
