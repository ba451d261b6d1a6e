"""A token by itself as text and as bytes, for log-probabilities: half a character is no text."""

import json
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from moxin.infer.sampling import Logprobs
from moxin.tokens.tokenizer import Tokenizer
from serve import bodies

MAX_KNOWN = 2**17


def _byte_of() -> dict[str, int]:
    """The characters that byte-level vocabularies write bytes with (GPT-2's table)."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


class TokenText:
    """Tokens of one vocabulary. `bytes_of(id)` are what it stands for, `text_of(id)` the same as text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        spec: dict[str, Any] = json.loads(tokenizer.spec)
        vocabulary = spec["model"]["vocab"]
        pairs = (
            vocabulary.items()
            if isinstance(vocabulary, dict)
            else ((entry[0], i) for i, entry in enumerate(vocabulary))
        )
        self._names: dict[int, str] = {id: name for name, id in pairs}
        self._special: dict[int, str] = {token["id"]: token["content"] for token in spec["added_tokens"]}
        parts = json.dumps([spec.get("pre_tokenizer"), spec.get("decoder"), spec.get("normalizer")])
        self._byte_of = _byte_of() if '"ByteLevel"' in parts else None
        self._metaspace = "▁" in parts
        self.bytes_of = lru_cache(MAX_KNOWN)(self._bytes_of)
        self.text_of = lru_cache(MAX_KNOWN)(self._text_of)

    def _bytes_of(self, id: int) -> bytes:
        if id in self._special:
            return self._special[id].encode()
        name = self._names.get(id, "")
        if match := re.fullmatch(r"<0x([0-9A-F]{2})>", name):
            return bytes([int(match[1], 16)])
        if self._byte_of is not None:
            return bytes(self._byte_of[char] for char in name)
        return (name.replace("▁", " ") if self._metaspace else name).encode()

    def _text_of(self, id: int) -> str:
        raw = self.bytes_of(id)
        try:
            return raw.decode()
        except UnicodeDecodeError:  # OpenAI's spelling, which keeps different tokens different
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    def chat(self, found: Logprobs) -> bodies.TokenLogprob:
        alternatives = [self._one(id, logprob) for id, logprob in found.top]
        one = self._one(found.token, found.logprob)
        return bodies.TokenLogprob(**one.model_dump(), top_logprobs=alternatives)

    def _one(self, id: int, logprob: float) -> bodies.TopLogprob:
        return bodies.TopLogprob(
            token=self.text_of(id), logprob=_finite(logprob), bytes=list(self.bytes_of(id))
        )

    def completion(
        self, ids: Sequence[int], found: Sequence[Logprobs | None], offset: int
    ) -> bodies.TextLogprobs:
        """Of tokens that begin `offset` characters into the text. A text's first token has none: nothing is before it."""
        offsets = []
        for id in ids:
            offsets.append(offset)
            offset += len(self.text_of(id))
        top: list[dict[str, float] | None] = []
        for one in found:
            if one is None:
                top.append(None)
                continue
            alternatives = {self.text_of(id): _finite(logprob) for id, logprob in one.top}
            # The token itself is always among them, as at OpenAI's.
            top.append(alternatives | {self.text_of(one.token): _finite(one.logprob)})
        return bodies.TextLogprobs(
            tokens=[self.text_of(id) for id in ids],
            token_logprobs=[None if one is None else _finite(one.logprob) for one in found],
            top_logprobs=top,
            text_offset=offsets,
        )


def _finite(logprob: float) -> float:
    """JSON has no infinity; OpenAI writes -9999 for what cannot come."""
    return max(logprob, -9999.0)
