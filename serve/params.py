"""From what a client asked to what the engine is asked: prompts as token ids, and how to answer them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from moxin.infer.sampling import SamplingParams
from moxin.tokens.tokenizer import Tokenizer
from serve import tools
from serve.engine_loop import Job
from serve.errors import ApiError
from serve.schemas import (
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
    Incoming,
    ResponseFormat,
    unsupported,
)

ANY_OBJECT = {"type": "object"}


@dataclass(frozen=True)
class ModelInfo:
    """What the HTTP side knows of a model."""

    name: str
    tokenizer: Tokenizer
    max_len: int
    """Longest prompt and answer together, in tokens."""
    created: int
    """Seconds since 1970."""
    d_model: int = 0
    """Length of an embedding."""


def refuse_unsupported(body: Incoming) -> None:
    if name := unsupported(body):
        raise ApiError(400, f"{name} is not supported by this server; leave it out", "unsupported", name)


def prompts_of(prompt: str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]], model: ModelInfo, field: str
               ) -> tuple[tuple[int, ...], ...]:  # fmt: skip
    """Token ids of the one or many prompts of a request; a text begins as every training document did."""
    tokenizer = model.tokenizer
    if isinstance(prompt, str):
        return (tuple(tokenizer.begin(prompt)),)
    if isinstance(prompt[0], int):
        prompt = [cast(Sequence[int], prompt)]
    prompts = []
    for one in cast(Sequence[str | Sequence[int]], prompt):
        tokens = tokenizer.begin(one) if isinstance(one, str) else one
        if max(tokens) >= tokenizer.vocab_size:
            told = f"{field}: the token id {max(tokens)} is outside the vocabulary of {tokenizer.vocab_size}"
            raise ApiError(400, told, param=field)
        prompts.append(tuple(tokens))
    return tuple(prompts)


def chat_job(body: ChatRequest, model: ModelInfo) -> Job:
    refuse_unsupported(body)
    tokens, _ = model.tokenizer.render(tools.turns(body), add_generation_prompt=True)
    schema = _schema_of(body.response_format)
    grammar = tools.grammar(body, None if schema is None else tools.answer_schema(json.loads(schema)))
    if grammar is not None and schema is None and _form(body.response_format):
        told = "response_format: beside tools it can be text, json_object or json_schema; or set tool_choice to none"
        raise ApiError(400, told, param="response_format")
    form = {"grammar": grammar} if grammar is not None else _constraint(body.response_format)
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    most = body.max_completion_tokens or body.max_tokens
    params = _params(body, (tuple(tokens),), most, model, "messages", logprobs, None, form)
    return Job((tuple(tokens),), params, body.cache_salt or "")


def completion_job(body: CompletionRequest, model: ModelInfo) -> Job:
    refuse_unsupported(body)
    prompts = prompts_of(body.prompt, model, "prompt")
    form = _constraint(body.response_format)
    of_prompt = body.logprobs if body.echo else None
    most = body.max_tokens if body.max_tokens != 0 else 1  # the engine makes one, which is not shown
    params = _params(body, prompts, most, model, "prompt", body.logprobs, of_prompt, form)
    return Job(prompts, params, body.cache_salt or "")


def _form(wanted: ResponseFormat | None) -> bool:
    return wanted is not None and wanted.type != "text"


def _schema_of(wanted: ResponseFormat | None) -> str | None:
    if wanted is None or wanted.type not in ("json_object", "json_schema"):
        return None
    return json.dumps(wanted.json_schema.schema_ if wanted.json_schema else ANY_OBJECT)


def _constraint(wanted: ResponseFormat | None) -> dict[str, str]:
    if wanted is None or wanted.type == "text":
        return {}
    if (schema := _schema_of(wanted)) is not None:
        return {"json_schema": schema}
    return {wanted.type: str(wanted.regex if wanted.type == "regex" else wanted.grammar)}


def _params(
    body: GenerationRequest,
    prompts: Sequence[Sequence[int]],
    max_tokens: int | None,
    model: ModelInfo,
    field: str,
    logprobs: int | None,
    prompt_logprobs: int | None,
    constraint: dict[str, str],
) -> SamplingParams:
    """Sampling as the engine takes it; `max_tokens` is cut to what the context has left."""
    longest = max(len(prompt) for prompt in prompts)
    room = model.max_len - longest
    if room < 1:
        message = (
            f"{field}: {longest} tokens, but the model's context holds {model.max_len} and the answer needs at "
            f"least 1; shorten {field} by {1 - room}"
        )
        raise ApiError(400, message, "context_length_exceeded", field)
    most = min(max_tokens or room, room)
    tokenizer = model.tokenizer
    if (body.min_tokens or 0) > most:
        told = f"min_tokens: {body.min_tokens}, but the answer can have {most} tokens at most"
        raise ApiError(400, told, param="min_tokens")
    bias = {int(name): value for name, value in (body.logit_bias or {}).items()}
    ends = () if body.ignore_eos else (tokenizer.eos_id, tokenizer.end_id)
    return SamplingParams(
        max_tokens=most,
        min_tokens=body.min_tokens or 0,
        temperature=1.0 if body.temperature is None else body.temperature,
        top_k=max(body.top_k or 0, 0),
        top_p=1.0 if body.top_p is None else body.top_p,
        min_p=body.min_p or 0.0,
        repetition_penalty=1.0 if body.repetition_penalty is None else body.repetition_penalty,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        logit_bias=bias,
        seed=body.seed,
        stop_ids=tuple(dict.fromkeys((*ends, *(body.stop_token_ids or ())))),
        stop=body.stop_strings,
        include_stop=bool(body.include_stop_str_in_output),
        ignore_eos=bool(body.ignore_eos),
        n=body.n or 1,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        **constraint,
    )
