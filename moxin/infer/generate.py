"""Many prompts at once, answered through the engine: what evaluation and scripts use."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from moxin.infer.detokenize import Detokenizer
from moxin.infer.engine import Engine, Request
from moxin.infer.sampling import SamplingParams
from moxin.model.decoder import Decoder


class Tokenizer(Protocol):
    """What is needed of `moxin.tokens.tokenizer.Tokenizer`."""

    def decode(self, ids: list[int]) -> str: ...


@dataclass(frozen=True)
class Completion:
    tokens: list[int]
    """The answer's tokens, without the stop id."""
    text: str
    """The answer, ending before a stop string."""
    finish_reason: str
    """"stop" or "length"."""


def generate(
    model: Decoder,
    tokenizer: Tokenizer,
    prompts: Sequence[list[int]],
    params: SamplingParams | None = None,
    max_batch: int = 32,
) -> list[Completion]:
    """The answers in the order of the prompts. Raises `ValueError` for a prompt or parameter that cannot be answered.

    Every prompt draws from its own random stream, seeded with `params.seed`: equal prompts have equal answers.
    """
    params = params or SamplingParams()
    engine = Engine(model, max_batch=max(1, min(max_batch, len(prompts))), decode=tokenizer.decode)
    for index, prompt in enumerate(prompts):
        engine.add(Request(str(index), prompt, params))
    tokens: list[list[int]] = [[] for _ in prompts]
    reasons = [""] * len(prompts)
    while engine.has_work:
        for event in engine.step():
            if event.token is not None:
                tokens[int(event.id)].append(event.token)
            reasons[int(event.id)] = event.finished or ""
    texts = []
    for answer in tokens:
        text = Detokenizer(tokenizer.decode, params.stop)
        texts.append("".join([text.push(token) for token in answer] + [text.finish()]))
    return [Completion(*parts) for parts in zip(tokens, texts, reasons, strict=True)]
