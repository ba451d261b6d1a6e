"""What a document is in Arrow."""

import hashlib

import pyarrow as pa

SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("id", "text", "source", "license", "url", "lang", "meta")]
)


def stable_hash(text: str) -> int:
    """A 64-bit number that is the same in every process (`hash` is salted)."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
