"""Unicode clean-up of a column of text, in Arrow; applied twice it changes nothing more."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kernels.cleanliness import CHARACTERS, suspects
from moxin.arrow import utf8_buffers

LINE_ENDS = "\r\n?|\u2028|\u2029"
CONTROLS = r"[\x00-\x08\x0b-\x1f\x7f-\x{9f}\x{200b}\x{feff}\x{fffe}\x{ffff}]"
"""C0 and C1 controls but tab and line feed, the byte-order mark, the zero-width space and non-characters."""
TRAILING_SPACE = r"[\pZ\t]+(\n|$)"
MANY_BLANK_LINES = "\n{4,}"


def clean(text: pa.Array) -> pa.Array:
    """Line ends become line feeds, control characters go, Unicode is put into NFC (UAX 15), spaces at line ends go, at most
    two blank lines follow one another, blank lines at both ends go. Indentation stays: it means something in code."""
    found = suspects(*utf8_buffers(text))
    for work, dirty in ((_characters, found & CHARACTERS), (_layout, found)):
        rows = np.flatnonzero(dirty)
        if len(rows) == len(text):
            text = work(text)
        elif len(rows):
            text = pc.replace_with_mask(text, pa.array(dirty > 0), work(text.take(pa.array(rows))))
    return text


def _characters(text: pa.Array) -> pa.Array:
    text = pc.replace_substring_regex(text, LINE_ENDS, "\n")
    text = pc.replace_substring_regex(text, CONTROLS, "")
    return pc.utf8_normalize(text, "NFC")


def _layout(text: pa.Array) -> pa.Array:
    text = pc.replace_substring_regex(text, TRAILING_SPACE, r"\1")
    text = pc.replace_substring_regex(text, MANY_BLANK_LINES, "\n\n\n")
    return pc.ascii_trim(text, "\n")
