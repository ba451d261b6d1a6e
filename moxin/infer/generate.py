"""Many prompts at once, answered through the engine: what evaluation and scripts use."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from moxin.infer.engine import Engine
from moxin.infer.model import InferenceModel
from moxin.infer.request import Request
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
    model: Decoder | InferenceModel,
    tokenizer: Tokenizer,
    prompts: Sequence[list[int]],
    params: SamplingParams | None = None,
    max_batch: int = 32,
    **settings: Any,
) -> list[Completion]:
    """The answers in the order of the prompts; `settings` are those of `Engine`.

    Every prompt draws from its own random stream, seeded with `params.seed`: equal prompts have equal answers. Raises
    `ValueError` for a prompt or parameter that cannot be answered, and for `params.n` other than 1.
    """
    params = params or SamplingParams()
    if params.n != 1:
        raise ValueError(
            f"n = {params.n}: generate gives one answer a prompt; give the prompt n times, with other seeds"
        )
    engine = Engine(
        model, max_batch=max(1, min(max_batch, len(prompts))), decode=tokenizer.decode, **settings
    )
    for index, prompt in enumerate(prompts):
        engine.add(Request(str(index), prompt, params))
    tokens: list[list[int]] = [[] for _ in prompts]
    texts = [""] * len(prompts)
    reasons = [""] * len(prompts)
    while engine.has_work:
        for event in engine.step():
            number = int(event.id)
            if event.token is not None:
                tokens[number].append(event.token)
            texts[number] += event.text
            reasons[number] = event.finished or ""
    return [Completion(*parts) for parts in zip(tokens, texts, reasons, strict=True)]
