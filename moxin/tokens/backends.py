"""What turns text into ids: `tokenizers` as the reference, and faster encoders that first prove that they agree with it.

`numba` is our own (`moxin.tokens.bpe`), `gigatoken` the package of that name. `auto` takes the first of them that covers
the tokenizer, else the reference, `hf`. A fast one is used only after it has given the reference's ids for a sample of the
documents at hand and for texts that tempt to mistakes.
"""

import json
import os
from collections.abc import Callable, Iterable
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import tokenizers
from numpy.typing import NDArray

from moxin import console
from moxin.arrow import utf8_buffers

Name = Literal["auto", "hf", "gigatoken", "numba"]
FAST: tuple[Name, ...] = ("numba", "gigatoken")
"""In the order in which `auto` tries them."""
Ids = tuple[NDArray[np.uint32], NDArray[np.int64]]
"""Ids of all documents one after another, and where each document's begin: int64[n_documents + 1]."""
Encode = Callable[[pa.Array], Ids]

SLICE = 512
"""Documents that the reference encodes at a time; it returns them as Python lists."""
CACHE_TEXT_BYTES = 64_000_000
"""Text after which gigatoken is made anew, in 0.07 s for 32,000 tokens: version 0.10.0 keeps every piece it has seen."""
SHOWN_CHARS, SHOWN_IDS = 40, 6
"""How much is shown around a mismatch."""
TEMPTING = (
    [*"\0\t\n\r ▁\u0301\u1161\u3000\u200b\ufeff\ufffd\U0010ffff"]
    + ["", "   ", "\n\n", "\r\n", " \n ", " ▁", "▁▁ a", "e\u0301", "\u0301a", "\u1100\u1161", "😀👩\u200d👩"]
    + ["<0x41>", "a<0xFF>b", "<0x0", "It's we'll I'M", "  def f(x):\n\treturn x  \n"]
    + ["x" * 2000, "ab" * 500, "1234567890" * 20, " " * 300, "\n" * 100, "a " * 200, "!?" * 200, "東京" * 100]
)


class UnsupportedError(ValueError):
    """A back-end that is not installed or does not cover a tokenizer."""


def build(name: str, backend: tokenizers.Tokenizer) -> Encode:
    """The encoder of a back-end. Raises `UnsupportedError` where it is not installed or does not cover the tokenizer."""
    if name == "hf":
        return _HF(backend)
    spec = json.loads(backend.to_str())
    # Neither knows `encode_special_tokens`: what is no added token is not searched for in texts.
    spec["added_tokens"] = [token for token in spec["added_tokens"] if not token["special"]]
    if name == "gigatoken":
        return _Gigatoken(spec)
    assert name == "numba", name
    from moxin.tokens import bpe  # it compiles, and imports the tokenizer's constants

    try:
        return bpe.Encoder(spec).encode
    except bpe.Unsupported as error:
        raise UnsupportedError(str(error)) from error


def choose(
    wanted: str,
    backend: tokenizers.Tokenizer,
    sample: pa.Array,
    control: Iterable[str],
    built: dict[str, Encode],
) -> tuple[str, Encode]:
    """The back-end to use, by name, and its encoder; `sample` are documents of the corpus, `control` the control tokens.
    Encoders that are made are put into `built`, and taken from there.

    Other ids than the reference's for a single text print that text, and the reference is used. Raises `ValueError` for a
    back-end that is asked for by name and is not installed or does not cover the tokenizer.
    """
    reference = _HF(backend)
    names = list(control)
    hard = [*TEMPTING, *names, *(f"a{name}b {name}" for name in names)]
    for name in FAST if wanted == "auto" else () if wanted == "hf" else (wanted,):
        if name not in FAST:
            raise ValueError(f"tokenizer.backend = {name!r}: one of auto, hf, {', '.join(FAST)}")
        try:
            encode = built.get(name) or built.setdefault(name, build(name, backend))
        except UnsupportedError as error:
            if wanted == "auto":
                continue
            raise ValueError(
                f"tokenizer.backend = {name} cannot be used: {error}; or set tokenizer.backend=auto"
            ) from error
        for texts in (pa.array(hard, pa.large_string()), sample):
            if difference := _difference(name, texts, encode(texts), reference(texts), backend):
                console.warn(f"{difference}; hf is used instead")
                return "hf", reference
        return name, encode
    return "hf", reference


def _difference(name: str, texts: pa.Array, ids: Ids, wanted: Ids, backend: tokenizers.Tokenizer) -> str:
    """Where two encodings first differ, in words; empty where they do not."""
    for row in range(len(texts)):
        ours, theirs = (part[ends[row] : ends[row + 1]].tolist() for part, ends in (ids, wanted))
        if ours == theirs:
            continue
        same = next(
            (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b),
            min(len(ours), len(theirs)),
        )
        text = texts[row].as_py() or ""
        start = max(0, len(backend.decode(theirs[:same], skip_special_tokens=False)) - SHOWN_CHARS // 2)
        shown = slice(max(0, same - 1), same + SHOWN_IDS)
        return (
            f"the back-end {name} gives other ids than hf from token {same} of a text of {len(text):,} characters on, at "
            f"{text[start : start + SHOWN_CHARS]!r}: {ours[shown]}, hf {theirs[shown]}"
        )
    return ""


class _HF:
    """On as many threads as `TOKENIZERS_PARALLELISM` and `RAYON_NUM_THREADS` allow."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend

    def __call__(self, texts: pa.Array) -> Ids:
        parts, lengths = [np.empty(0, np.uint32)], []
        for start in range(0, len(texts), SLICE):
            block = [text or "" for text in texts.slice(start, SLICE).to_pylist()]
            for encoding in self._backend.encode_batch_fast(block, add_special_tokens=False):
                parts.append(np.array(encoding.ids, np.uint32))
                lengths.append(len(parts[-1]))
        return np.concatenate(parts), np.cumsum([0, *lengths], dtype=np.int64)


class _Gigatoken:
    """https://github.com/marcelroed/gigatoken with its cache in bounds; on one thread where `TOKENIZERS_PARALLELISM` is
    off."""

    def __init__(self, spec: Any, cache_text_bytes: int = CACHE_TEXT_BYTES) -> None:
        try:
            import awkward
            import gigatoken
        except ImportError as error:
            raise UnsupportedError(
                f'the package is not installed: pip install "moxin[tokenizers]" ({error})'
            ) from error
        self._awkward, self._make = awkward, gigatoken.Tokenizer.from_json
        self._spec, self._limit, self._seen = json.dumps(spec), cache_text_bytes, 0
        try:
            self._tokenizer = self._make(self._spec)
        except (RuntimeError, ValueError) as error:
            raise UnsupportedError(
                f"it does not cover this tokenizer ({str(error).splitlines()[0]})"
            ) from error

    def __call__(self, texts: pa.Array) -> Ids:
        data, ends = utf8_buffers(texts)
        parts, lengths = [np.empty(0, np.uint32)], [np.zeros(1, np.int64)]
        start = 0
        while start < len(texts):
            if self._seen >= self._limit:
                self._tokenizer, self._seen = self._make(self._spec), 0
            room = int(np.searchsorted(ends, ends[start] + self._limit - self._seen, "right")) - 1
            stop = max(start + 1, room)
            self._seen += int(ends[stop] - ends[start])
            off = os.environ.get("TOKENIZERS_PARALLELISM", "true").lower() in ("false", "off", "no", "0")
            encoded = self._tokenizer.encode_batch(
                self._strings(data, ends[start : stop + 1]), parallel=False if off else None
            ).layout
            bounds = np.asarray(encoded.offsets.data, np.int64)
            parts.append(np.asarray(encoded.content.data, np.uint32)[bounds[0] : bounds[-1]])
            lengths.append(np.diff(bounds))
            start = stop
        return np.concatenate(parts), np.cumsum(np.concatenate(lengths))

    def _strings(self, data: NDArray[np.uint8], ends: NDArray[np.int64]) -> Any:
        """An array of strings for awkward, which copies nothing."""
        contents, index = self._awkward.contents, self._awkward.index
        chars = contents.NumpyArray(data, parameters={"__array__": "char"})
        layout = contents.ListOffsetArray(index.Index64(ends), chars, parameters={"__array__": "string"})
        return self._awkward.Array(layout)
