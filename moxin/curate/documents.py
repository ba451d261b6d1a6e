"""What a document is in Arrow, and how a column of text becomes the flat arrays that the kernels take."""

import hashlib

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("id", "text", "source", "license", "url", "lang", "meta")]
)


def utf8_buffers(column: pa.Array | pa.ChunkedArray) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """A string column without nulls as (bytes uint8, offsets int64[n + 1]); the bytes of a single chunk are not copied."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    assert array.type == pa.string(), array.type
    assert array.null_count == 0
    if len(array) == 0:
        return np.frombuffer(b"", np.uint8), np.zeros(1, np.int64)
    _, offsets, data = array.buffers()
    ends = np.frombuffer(offsets, np.int32)[array.offset : array.offset + len(array) + 1].astype(np.int64)
    return np.frombuffer(data or b"", np.uint8), ends


def stable_hash(text: str) -> int:
    """A 64-bit number that is the same in every process (`hash` is salted)."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
