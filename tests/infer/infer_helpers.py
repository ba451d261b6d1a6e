"""Small models of every kind that the engine serves, prompts around their window, and a tokenizer of letters."""

import dataclasses
from collections.abc import Sequence

import torch
from small import as_transformers

from moxin.infer.engine import Engine
from moxin.infer.request import Event, Request
from moxin.infer.sampling import SamplingParams
from moxin.model.decoder import Decoder
from moxin.recipe import ModelConfig

V = 97
CONFIG = ModelConfig(
    n_layers=2, d_model=48, n_heads=6, n_kv_heads=2, d_ff=80, vocab_size=V, max_seq_len=96, sliding_window=8
)
MPT = dataclasses.replace(
    CONFIG,
    n_kv_heads=6,
    d_ff=192,
    sliding_window=None,
    norm="layer",
    activation="gelu",
    position="alibi",
    tie_embeddings=True,
)
MODELS = {
    "mistral": dataclasses.replace(CONFIG, sliding_window=None),
    "mistral, window": CONFIG,
    "mpt": MPT,
    "mpt, clipped": dataclasses.replace(MPT, clip_qkv=1.0),
}
OURS = {
    "windows by layer": dataclasses.replace(CONFIG, sliding_window=None, layer_windows=(3, 8)),
    "windows by layer, one full": dataclasses.replace(
        CONFIG, n_layers=3, sliding_window=None, layer_windows=(4, 0)
    ),
    "alibi, window, grouped": dataclasses.replace(MPT, n_kv_heads=2, sliding_window=8),
    "qk_norm": dataclasses.replace(CONFIG, qk_norm=True),
    "learned positions": dataclasses.replace(CONFIG, position="learned"),
    "no positions": dataclasses.replace(CONFIG, position="none"),
}
"""What transformers has no class for."""
ALL = {**MODELS, **OURS}
PROMPTS = [[5], [1, 2, 3], list(range(7)), list(range(8)), list(range(9)), [(7 * i) % V for i in range(40)]]
"""Shorter than the window of 8, at its border, and much longer."""


class Letters:
    """A tokenizer of one printable character per id."""

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(32 + token) for token in ids)


def decoder(config: ModelConfig = CONFIG) -> Decoder:
    model = Decoder(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter *= 8  # spreads the logits: greedy choices are clear, yet differ from token to token
    return model


@torch.no_grad()
def uncached(model: Decoder, prompt: Sequence[int], n: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(n):
        tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    return tokens[len(prompt) :]


def their_answers(model: Decoder, prompts: Sequence[Sequence[int]], n: int) -> list[list[int]]:
    """transformers' greedy answers, one prompt at a time."""
    theirs, found = as_transformers(model), []
    for prompt in prompts:
        ids = torch.tensor([list(prompt)])
        options = {"max_new_tokens": n, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        generated = theirs.generate(ids, attention_mask=torch.ones_like(ids), **options)
        found.append(generated[0, len(prompt) :].tolist())
    return found


def drain(engine: Engine) -> dict[tuple[str, int], list[Event]]:
    """All events to the end, by request and answer."""
    found: dict[tuple[str, int], list[Event]] = {}
    while engine.has_work:
        for event in engine.step():
            found.setdefault((event.id, event.index), []).append(event)
    return found


def tokens_of(events: Sequence[Event]) -> list[int]:
    return [event.token for event in events if event.token is not None]


def answer_all(engine: Engine, prompts: Sequence[Sequence[int]], params: SamplingParams) -> list[list[int]]:
    for number, prompt in enumerate(prompts):
        engine.add(Request(str(number), list(prompt), params))
    found = drain(engine)
    return [tokens_of(found[str(number), 0]) for number in range(len(prompts))]


def idle(engine: Engine) -> bool:
    """Whether the engine holds nothing any more: every page and row is free."""
    stats = engine.stats
    return (
        stats.num_free_pages == stats.num_pages
        and engine.cache.n_free_rows == engine.cache.n_rows
        and stats.num_requests_running == stats.num_requests_waiting == 0
    )
