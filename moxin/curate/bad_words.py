"""C4's page filter: pages with an entry of a list of bad words go (arXiv 1910.10683, §2.2; tensorflow_datasets `c4_utils`).

The list is the user's: LDNOOBW's is what C4 took. An entry must stand apart from letters, digits and underscores of any
script (`\\W` of Python's `re`), in any case; entries in Japanese, Thai or Chinese characters are found anywhere.
"""

import functools
import re
import sys
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from moxin import storage

_UNSPACED = re.compile("[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff]")


@functools.cache
def _edge() -> str:
    """Python's `\\W` as a class of RE2, whose own knows ASCII only."""
    words = [point for point in range(sys.maxunicode + 1) if chr(point).isalnum() or point == 0x5F]
    runs: list[list[int]] = []
    for point in words:
        if runs and runs[-1][1] == point - 1:
            runs[-1][1] = point
        else:
            runs.append([point, point])
    return "[^" + "".join(f"\\x{{{first:x}}}-\\x{{{last:x}}}" for first, last in runs) + "]"


def _lower(text: pa.Array) -> pa.Array:
    """As `str.lower`: Arrow's does not know final sigma, nor letters that become two."""
    foreign = pc.invert(pc.fill_null(pc.string_is_ascii(text), True))
    lowered = [value.lower() for value in text.filter(foreign).to_pylist()]
    return pc.replace_with_mask(pc.utf8_lower(text), foreign, pa.array(lowered, text.type))


@dataclass(frozen=True)
class BadWords:
    """The entries as one regular expression (RE2)."""

    pattern: str

    @staticmethod
    def read(url: str) -> "BadWords":
        """From a text file (UTF-8) with an entry per line; blank lines and those that begin with "#" are none.

        Raises `ValueError` for a file without entries.
        """
        lines = [line.strip().lower() for line in storage.read_text(url).removeprefix("\ufeff").splitlines()]
        entries = sorted({line for line in lines if line and not line.startswith("#")})
        if not entries:
            raise ValueError(f"{url} has no entries: give a text file with one per line, or leave it out")
        inside = [re.escape(entry) for entry in entries if _UNSPACED.search(entry)]
        apart = [re.escape(entry) for entry in entries if not _UNSPACED.search(entry)]
        parts = [f"(?:{_edge()}|^)(?:{'|'.join(apart)})(?:{_edge()}|$)"] * bool(apart) + inside
        return BadWords("|".join(parts))

    def holds(self, text: pa.Array) -> NDArray[np.bool_]:
        """Which texts hold an entry, bool[n]."""
        found = pc.match_substring_regex(_lower(text), self.pattern)
        return np.asarray(pc.fill_null(found, False).to_numpy(zero_copy_only=False))
