"""The ids of Hugging Face `tokenizers` for whole Arrow columns, at many times its speed, from the same tokenizer.json.

Covered is byte pair encoding as most open models have it: tokenizers that `Tokenizer.train` makes, those of SentencePiece
style (Llama, Mistral: no split, a space is "▁", rare characters are bytes), and byte-level ones with the split of GPT-2
(GPT-NeoX, MPT). For anything else the constructor says what it does not cover. Control tokens (special added tokens) are
never read from a text, and truncation and padding that a file asks for are not applied, as with `Tokenizer`.
"""

import functools
import json
import threading
import unicodedata
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tokenizers
from numpy.typing import NDArray
from tokenizers import Regex, normalizers, pre_tokenizers

from kernels import bpe
from moxin.arrow import utf8_buffers

# Pieces that no merge reaches across in a tokenizer of our own: see moxin.tokens.tokenizer.
SPLIT = r" ?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+|\s*[\r\n]+|\s+(?!\S)|\s+"


class Unsupported(ValueError):  # noqa: N818
    """Says which part of a tokenizer.json is not covered."""


class Encoder:
    """Ids of texts. One call runs at a time: threads that encode at once need an encoder each, which a pickle makes.

    `cache_bytes` bounds the memory that words and their ids are kept in; the ids do not depend on it.
    """

    def __init__(self, spec: Mapping[str, Any], cache_bytes: int = 64 << 20) -> None:
        """`spec` is a parsed tokenizer.json. Raises `Unsupported` for what is not covered or is no tokenizer."""
        try:
            backend = tokenizers.Tokenizer.from_str(json.dumps(spec))
        except Exception as error:  # tokenizers raises nothing more specific
            raise Unsupported(f"tokenizers does not read it ({error})") from error
        self._spec, self._cache_bytes = backend.to_str(), cache_bytes
        # What tokenizers itself writes is complete: defaults and older spellings are resolved.
        self._model, self._nfc = _model(json.loads(self._spec), backend)
        self._cache = bpe.empty_cache(cache_bytes)
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickle, (self._spec, self._cache_bytes)

    def encode(self, texts: pa.Array) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """Ids of all documents one after another, uint32[n_tokens], and where each document's begin, int64[n_docs + 1].

        `texts` is of Arrow type `string` or `large_string`; null is an empty document.
        """
        data, offsets = _buffers(texts)
        if self._nfc:
            other = bpe.may_change(data, offsets, _nfc_classes())
            if other.any():
                normalize = normalizers.NFC().normalize_str
                normal = [normalize(text or "") for text in texts.filter(pa.array(other)).to_pylist()]
                data, offsets = _buffers(
                    pc.replace_with_mask(texts, pa.array(other), pa.array(normal, texts.type))
                )
        with self._lock:
            return bpe.encode(data, offsets, self._model, self._cache)


def _unpickle(spec: str, cache_bytes: int) -> Encoder:
    return Encoder(json.loads(spec), cache_bytes)


def _buffers(texts: pa.Array) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    data, offsets = utf8_buffers(texts)
    data.flags.writeable = False  # one type for numba, whoever made the buffer
    return data, offsets


def _model(spec: Mapping[str, Any], backend: tokenizers.Tokenizer) -> tuple[bpe.Model, bool]:
    """The kernel's tables, and whether texts are brought into normal form C first."""
    model = spec["model"]
    if model["type"] != "BPE":
        raise Unsupported(f"model.type is {model['type']}, not BPE")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model[name]:
            raise Unsupported(f"model.{name} is set")
    if max(model["vocab"].values(), default=0) >= 1 << 31:
        raise Unsupported("an id does not fit into 31 bits")
    style, prefix, nfc, every_space = _pieces(spec["normalizer"], spec["pre_tokenizer"])
    by_bytes, meta = style == bpe.GPT2, style == bpe.MERGES
    vocab: dict[str, int] = model["vocab"]
    fallback = np.full(256, -1, np.int32)
    if model["byte_fallback"]:
        if by_bytes:
            raise Unsupported("model.byte_fallback with a ByteLevel pre_tokenizer")
        fallback[:] = [vocab.get(f"<0x{byte:02X}>", -1) for byte in range(256)]
    unknown = -1
    if model["unk_token"] is not None:
        if model["unk_token"] not in vocab:
            raise Unsupported("model.unk_token is not in the vocabulary")
        unknown = vocab[model["unk_token"]]
    if by_bytes:
        chars = _byte_chars()
        initial = np.array([vocab.get(char, -1) for char in chars], np.int32)
    else:
        initial = np.full(bpe.N_CODE_POINTS, -1, np.int32)
        for token, id in vocab.items():
            if len(token) == 1:
                initial[ord(token)] = id
    if meta:
        if model["ignore_merges"]:
            raise Unsupported("model.ignore_merges without a split into words")
        if initial[bpe.META] < 0:
            raise Unsupported('"▁" is not in the vocabulary')
        initial[bpe.BLANK] = initial[bpe.META]  # "▁" is what it becomes
    whole = bpe.empty_cache(0)
    if model["ignore_merges"]:
        whole = _whole(vocab, by_bytes)
    merges = np.array([(vocab[left], vocab[right], vocab[left + right]) for left, right in model["merges"]])
    merges = merges.reshape(-1, 3).astype(np.uint64)
    left, right, merged = merges.T
    shift = np.uint64(32)
    joins = _joins(merges, initial, fallback, unknown)
    return (
        bpe.Model(
            style=style,
            by_bytes=by_bytes,
            initial=initial,
            fallback=fallback,
            unknown=unknown,
            fuse_unknown=model["fuse_unk"],
            classes=_classes(style == bpe.WORDS),
            pairs=bpe.pair_table(
                left << shift | right, np.arange(len(merges), dtype=np.uint64) << shift | merged
            ),
            joins=bpe.key_set(joins),
            ascii_joins=_ascii_joins(joins, initial, fallback),
            cut=not model["ignore_merges"],
            every_space=every_space,
            prefix=prefix,
            spaces=_space_tokens(spec["added_tokens"], backend, style),
            whole=whole,
        ),
        nfc,
    )


def _pieces(normalizer: Any, pre_tokenizer: Any) -> tuple[int, int, bool, bool]:
    """The kernel's style and prefix, whether there is NFC, and whether every "▁" begins a piece."""
    kind = pre_tokenizer["type"] if pre_tokenizer else None
    if kind == "Split":
        wanted = {"pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": False}
        if {key: pre_tokenizer[key] for key in wanted} != wanted:
            raise Unsupported("pre_tokenizer.pattern is not that of Tokenizer.train")
        if normalizer is not None:
            raise Unsupported(f"normalizer {normalizer['type']} with pre_tokenizer Split")
        return bpe.WORDS, 0, False, False
    if kind == "ByteLevel":
        if pre_tokenizer["add_prefix_space"] or not pre_tokenizer["use_regex"]:
            raise Unsupported("pre_tokenizer ByteLevel with add_prefix_space or without use_regex")
        if normalizer is not None and normalizer["type"] != "NFC":
            raise Unsupported(f"normalizer {normalizer['type']} with pre_tokenizer ByteLevel")
        return bpe.GPT2, 0, normalizer is not None, False
    if kind == "Metaspace":
        if pre_tokenizer["replacement"] != "▁":
            raise Unsupported("pre_tokenizer.replacement is not ▁")
        if normalizer is not None:
            raise Unsupported(f"normalizer {normalizer['type']} with pre_tokenizer Metaspace")
        prefix = 0 if pre_tokenizer["prepend_scheme"] == "never" else 2
        return bpe.MERGES, prefix, False, pre_tokenizer["split"]
    if kind is not None:
        raise Unsupported(f"pre_tokenizer {kind}")
    steps = [] if normalizer is None else normalizer.get("normalizers", [normalizer])
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    if steps == [{"type": "Prepend", "prepend": "▁"}, replace]:
        return bpe.MERGES, 1, False, False
    if steps == [replace]:
        return bpe.MERGES, 0, False, False
    raise Unsupported("without pre_tokenizer, a normalizer other than Prepend ▁ and Replace space by ▁")


def _byte_chars() -> list[str]:
    """The characters that stand for bytes in a byte-level vocabulary."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    chars = {byte: chr(byte) for byte in shown} | {byte: chr(256 + k) for k, byte in enumerate(hidden)}
    return [chars[byte] for byte in range(256)]


def _whole(vocab: Mapping[str, int], by_bytes: bool) -> bpe.Cache:
    """The vocabulary by its text, which under `ignore_merges` goes before the merges."""
    byte_of = {char: byte for byte, char in enumerate(_byte_chars())}
    texts, ids = [], []
    for token, id in vocab.items():
        if not token:
            continue
        if not by_bytes:
            texts.append(token.encode())
        elif all(char in byte_of for char in token):
            texts.append(bytes(byte_of[char] for char in token))
        else:
            continue  # no text becomes it
        ids.append(id)
    if max(map(len, texts), default=0) > bpe.MAX_CACHED:
        raise Unsupported(f"model.ignore_merges with a token of more than {bpe.MAX_CACHED} bytes")
    data = np.frombuffer(b"".join(texts), np.uint8)
    offsets = np.cumsum([0] + [len(text) for text in texts])
    whole = bpe.empty_cache(256 * len(texts) + 8 * data.size)
    bpe.whole_pieces(data, offsets, np.array(ids, np.uint32), whole)
    return whole


def _joins(
    merges: NDArray[np.uint64], initial: NDArray[np.int32], fallback: NDArray[np.int32], unknown: int
) -> NDArray[np.uint64]:
    """The pairs of symbols, left id << 32 | right id, that some merge reaches across.

    A merge of tokens A and B joins the last symbol of A and the first of B. A token has more than one first symbol only
    where a vocabulary spells the name of a byte token in characters, too.
    """
    symbols = {int(id) for id in (*initial[initial >= 0], *fallback[fallback >= 0], unknown)}
    firsts: dict[int, set[int]] = {id: {id} for id in symbols}
    lasts: dict[int, set[int]] = {id: {id} for id in symbols}
    nothing: set[int] = set()
    rows = merges.tolist()
    while True:  # a merge may come before those that make its parts; then once more
        grown = False
        for left, right, merged in rows:
            for edges, part in ((firsts, left), (lasts, right)):
                new = edges.get(part, nothing)
                old = edges.get(merged)
                if old is None:
                    if new:
                        edges[merged] = new
                        grown = True
                elif old is not new and not new <= old:
                    edges[merged] = old | new
                    grown = True
        if not grown:
            break
    joins = {
        last << 32 | first
        for left, right, _ in rows
        for last in lasts.get(left, nothing)
        for first in firsts.get(right, nothing)
    }
    return np.array(sorted(joins), np.uint64)


def _ascii_joins(
    joins: NDArray[np.uint64], initial: NDArray[np.int32], fallback: NDArray[np.int32]
) -> NDArray[np.uint8]:
    """uint8[128 * 128] by both codes: whether a merge reaches across two characters; where one is unknown, it may."""
    spelled = fallback[:128] if fallback.min() >= 0 else np.full(128, -1, np.int32)
    ids = np.where(initial[:128] >= 0, initial[:128], spelled).astype(np.int64)
    keys = ids[:, None] << 32 | np.maximum(ids, 0)
    may = np.isin(keys.astype(np.uint64), joins) | (ids[:, None] < 0) | (ids < 0)
    return may.astype(np.uint8).ravel()


def _space_tokens(added: Any, backend: tokenizers.Tokenizer, style: int) -> NDArray[np.int32]:
    """`Model.spaces`: added tokens that are not special, which are cut out of a text before all else."""
    plain = [token for token in added if not token["special"]]
    for token in plain:
        is_run = token["content"].strip(" ") == "" and len(token["content"]) > 1
        if style != bpe.GPT2 or not is_run or token["lstrip"] or token["rstrip"] or token["single_word"]:
            raise Unsupported(
                f"added token {token['content']!r}, which is neither special nor a run of spaces"
            )
        if token["normalized"] != plain[0]["normalized"]:
            raise Unsupported("added tokens of which only some are normalized")
    if plain and any(" " in token["content"] for token in added if token["special"]):
        raise Unsupported("a special added token with a space beside runs of spaces")
    contents = [token["content"] for token in plain]
    spaces = np.full(max(map(len, contents), default=-1) + 1, -1, np.int32)
    for content in contents:
        id = backend.token_to_id(content)
        assert id is not None
        spaces[len(content)] = id
    return spaces


@functools.cache
def _classes(marks_are_letters: bool) -> NDArray[np.uint8]:
    """The class of every code point, uint8[N_CODE_POINTS], as the regular expressions of `tokenizers` see it.

    Their Unicode is not Python's: they are asked. The planes that have no letters, numbers and spaces are left out.
    """
    points = np.array([*range(0xD800), *range(0xE000, 0x40000), *range(0xE0000, 0xE0200)])
    text = "".join(map(chr, points.tolist()))
    classes = np.full(bpe.N_CODE_POINTS, bpe.OTHER, np.uint8)
    letters = r"[\p{L}\p{M}]+" if marks_are_letters else r"\p{L}+"
    for pattern, kind in ((letters, bpe.LETTER), (r"\p{N}+", bpe.NUMBER), (r"\s+", bpe.SPACE)):
        inside = np.ones(points.size, bool)
        for _, (start, end) in pre_tokenizers.Split(Regex(pattern), "removed").pre_tokenize_str(text):
            inside[start:end] = False
        classes[points[inside]] = kind
    classes[[0x0A, 0x0D]] = bpe.LINE_END
    return classes


@functools.cache
def _nfc_classes() -> NDArray[np.uint8]:
    """What `may_change` needs for normal form C, uint8[N_CODE_POINTS].

    What Python's Unicode does not know is 255. Of the characters that it knows, what is normal in one version is so in all
    later ones, and an older one leaves alone what it does not know: the answer holds for any version in `tokenizers`.
    """
    classes = np.full(bpe.N_CODE_POINTS, 255, np.uint8)
    seconds = {*range(0x1161, 0x1176), *range(0x11A7, 0x11C3)}  # Hangul vowels and finals
    for point in range(0x20000):  # ideographs beyond are few
        char = chr(point)
        if unicodedata.category(char) != "Cn" and unicodedata.is_normalized("NFC", char):
            classes[point] = unicodedata.combining(char)
        parts = unicodedata.decomposition(char).split()
        if len(parts) == 2 and not parts[0].startswith("<"):
            seconds.add(int(parts[1], 16))
    classes[sorted(seconds)] = 255  # they may combine with what is before
    return classes
