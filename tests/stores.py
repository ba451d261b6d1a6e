"""Token stores of made-up documents, and the curricula that read them."""

import random
from collections.abc import Mapping, Sequence

import numpy as np

from moxin.recipe import PhaseConfig
from moxin.tokens.loader import Curriculum
from moxin.tokens.store import dtype_for, write_description, writing

BOS, EOS = 1, 2
Documents = Sequence[Sequence[int]]


def documents(seed: int, n: int, longest: int = 30, vocab_size: int = 1000) -> list[list[int]]:
    rng = random.Random(seed)
    return [
        [BOS, *(rng.randrange(7, vocab_size) for _ in range(rng.randrange(longest))), EOS] for _ in range(n)
    ]


def write_store(url: str, sources: Mapping[str, Sequence[Documents]], vocab_size: int = 1000) -> str:
    """A store of `{source: [shard: [document: ids]]}`; returns `url`."""
    described = {}
    for name, shards in sources.items():
        written = []
        for number, content in enumerate(shards):
            with writing(url, f"shards/{name}-{number:05d}.bin", dtype_for(vocab_size)) as (writer, finished):
                for document in content:
                    writer.append(np.array(document), np.array([len(document)]))
            written += finished
        described[name] = {"shards": written}
    write_description(url, vocab_size, "fingerprint", {"pad": 0, "bos": BOS, "eos": EOS}, described)
    return url


def curriculum(
    *phases: PhaseConfig, seed: int = 1, grain: int = 64, shuffle_tokens: int = 2**32
) -> Curriculum:
    return Curriculum(phases, seed, grain, shuffle_tokens)
