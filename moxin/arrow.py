"""A column of text as the flat arrays that the kernels take."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def utf8_buffers(column: pa.Array | pa.ChunkedArray) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """A string column as (bytes uint8, offsets int64[n + 1]), offsets into those bytes; a null is empty.

    The bytes of a single chunk are not copied.
    """
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    wide = pa.types.is_large_string(array.type)
    assert wide or pa.types.is_string(array.type), array.type
    if len(array) == 0:
        return np.frombuffer(b"", np.uint8), np.zeros(1, np.int64)
    if array.null_count:
        array = array.fill_null("")
    _, offsets, data = array.buffers()
    ends = np.frombuffer(offsets, np.int64 if wide else np.int32)[
        array.offset : array.offset + len(array) + 1
    ]
    return np.frombuffer(data or b"", np.uint8), ends.astype(np.int64)
