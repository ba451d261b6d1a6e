"""Which documents of a batch a Unicode clean-up could change at all, in one numba pass: most need none, and it is slow.

A batch is as in `kernels.spans`. The GIL is released.
"""

import functools
import sys
import unicodedata

import numpy as np
from numba import njit
from numpy.typing import NDArray

from kernels.memory import pointer
from kernels.text import N_CODE_POINTS, next_code_point

CHARACTERS, LAYOUT = np.uint8(1), np.uint8(2)
_HANGUL_VOWELS, _HANGUL_FINALS = range(0x1161, 0x1176), range(0x11A8, 0x11C3)


@functools.cache
def _unsafe() -> NDArray[np.bool_]:
    """Per code point whether NFC may change text with it, or a clean-up takes it out: bool[N_CODE_POINTS].

    Safe is what composes with nothing before it, is in its composed form and is no combining mark (UAX #15, §9). Code points
    that Python's table does not know may be marks in a newer one, and are not safe.
    """
    unsafe = np.zeros(N_CODE_POINTS, np.bool_)
    for point in range(min(N_CODE_POINTS, sys.maxunicode + 1)):
        char = chr(point)
        parts = unicodedata.decomposition(char).split()
        if len(parts) == 2 and not parts[0].startswith("<"):
            unsafe[int(parts[1], 16)] = True
        if (
            unicodedata.combining(char)
            or unicodedata.category(char) in ("Cn", "Cc", "Cs")
            or (parts and not parts[0].startswith("<") and unicodedata.normalize("NFC", char) != char)
        ):
            unsafe[point] = True
    unsafe[[*_HANGUL_VOWELS, *_HANGUL_FINALS, 0x200B, 0x2028, 0x2029, 0xFEFF, 0xFFFE, 0xFFFF]] = True
    unsafe[0x20:0x7F] = False
    unsafe[[9, 10]] = False
    return unsafe


@functools.cache
def _space() -> NDArray[np.bool_]:
    space = np.zeros(N_CODE_POINTS, np.bool_)
    space[9] = True
    for point in range(min(N_CODE_POINTS, sys.maxunicode + 1)):
        if unicodedata.category(chr(point)).startswith("Z"):
            space[point] = True
    return space


def suspects(data: NDArray[np.uint8], offsets: NDArray[np.int64]) -> NDArray[np.uint8]:
    """What a document may need, uint8[n_docs]; 0 is as clean as can be.

    CHARACTERS: it has a control or combining character, or text that may not be in NFC. LAYOUT: white space at a line's end,
    more than two blank lines in a row, or a blank line at either end.
    """
    return _suspects(np.ascontiguousarray(data), offsets, _unsafe(), _space())


@njit(nogil=True, cache=True)
def _suspects(
    data: NDArray[np.uint8], offsets: NDArray[np.int64], unsafe: NDArray[np.bool_], space: NDArray[np.bool_]
) -> NDArray[np.uint8]:
    out = np.zeros(len(offsets) - 1, np.uint8)
    text = pointer(data)
    for doc in range(len(out)):
        at, end = offsets[doc], offsets[doc + 1]
        n_line_feeds, after_space, found = 1, False, np.uint8(0)
        while at < end:
            byte = text[at]
            if byte == 10:
                n_line_feeds += 1
                if after_space or n_line_feeds > 3 or at == offsets[doc]:
                    found |= LAYOUT
                after_space = False
                at += 1
                continue
            n_line_feeds = 0
            if byte < 128:
                after_space = byte == 32 or byte == 9
                if (byte < 32 and byte != 9) or byte == 127:
                    found |= CHARACTERS
                    break
                at += 1
                continue
            point, at = next_code_point(data, at)
            if point >= N_CODE_POINTS or unsafe[point]:
                found |= CHARACTERS
                break
            after_space = space[point]
        if end > offsets[doc] and (after_space or text[end - 1] == 10):
            found |= LAYOUT
        out[doc] = found
    return out
