"""Which documents are kept out of the shards for perplexity: decided by a hash of their ids, not by where they stand."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

MAX_SHARE = 0.05
"""Largest part of a source's bytes that is held out."""


class Candidate(NamedTuple):
    """A document that may be held out; those with the smallest `draw` come first."""

    draw: float
    id: str
    bytes: int


def draw(id: str, purpose: str) -> float:
    """A number in [0, 1) that depends on the document's id and the purpose alone."""
    digest = hashlib.blake2b(f"{purpose}\0{id}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) / 2**53


def candidates(documents: Sequence[tuple[str, int]], max_bytes: int) -> list[Candidate]:
    """The documents (id, bytes) of one part that `choose` may need to hold out `max_bytes`.

    A source with more than max_bytes / MAX_SHARE is limited by `max_bytes`, so that much of a part always suffices.
    """
    ordered = sorted(Candidate(draw(id, "heldout"), id, size) for id, size in documents if size <= max_bytes)
    kept, total = [], 0
    for candidate in ordered:
        if total > max_bytes / MAX_SHARE:
            break
        kept.append(candidate)
        total += candidate.bytes
    return kept


def choose(of_all_parts: Sequence[Candidate], source_bytes: int, max_bytes: int) -> list[str]:
    """Ids of the documents to hold out: in the order of their draws, as many as fit `max_bytes` and `MAX_SHARE`."""
    room = min(max_bytes, int(source_bytes * MAX_SHARE))
    chosen = []
    for candidate in sorted(of_all_parts):
        if candidate.bytes <= room:
            chosen.append(candidate.id)
            room -= candidate.bytes
    return chosen
