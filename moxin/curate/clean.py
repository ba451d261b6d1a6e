"""Unicode clean-up of a column of text, in Arrow; applied twice it changes nothing more."""

import pyarrow as pa
import pyarrow.compute as pc

LINE_ENDS = "\r\n?|\u2028|\u2029"
CONTROLS = r"[\x00-\x08\x0b-\x1f\x7f-\x{9f}\x{200b}\x{feff}\x{fffe}\x{ffff}]"
"""C0 and C1 controls but tab and line feed, the byte-order mark, the zero-width space and non-characters."""
TRAILING_SPACE = r"[\pZ\t]+(\n|$)"
MANY_BLANK_LINES = "\n{4,}"


def clean(text: pa.Array) -> pa.Array:
    """Line ends become line feeds, control characters go, Unicode is put into NFC (UAX 15), spaces at line ends go, at most
    two blank lines follow one another, blank lines at both ends go. Indentation stays: it means something in code."""
    text = pc.replace_substring_regex(text, LINE_ENDS, "\n")
    text = pc.replace_substring_regex(text, CONTROLS, "")
    text = pc.utf8_normalize(text, "NFC")
    text = pc.replace_substring_regex(text, TRAILING_SPACE, r"\1")
    text = pc.replace_substring_regex(text, MANY_BLANK_LINES, "\n\n\n")
    return pc.ascii_trim(text, "\n")
