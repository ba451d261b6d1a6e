"""The part of OpenAI's wire format that this server speaks (https://platform.openai.com/docs/api-reference).

Fields that we do not know are tolerated, as clients send many; wrong types are not. Known fields that would change the
answer and that we do not support are refused by `unsupported`, so that none is ignored without a word.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator


def _encodable(text: str) -> str:
    """JSON can spell half of a surrogate pair ("\\ud800"), which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"not valid Unicode at character {error.start} (a lone surrogate)") from None
    return text


Text = Annotated[str, AfterValidator(_encodable)]


class Incoming(BaseModel):
    """What clients send: no silent conversion, no NaN, unknown fields kept for `unsupported`."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="allow")


class TextPart(Incoming):
    type: Literal["text"]
    text: Text


class Message(Incoming):
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart]

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)

    def as_turn(self) -> dict[str, str]:
        """The message as the chat template knows it; "developer" is OpenAI's newer name for "system"."""
        return {"role": "system" if self.role == "developer" else self.role, "content": self.text}


class StreamOptions(Incoming):
    include_usage: bool | None = None


class GenerationRequest(Incoming):
    """What chat and text completions have in common. A null stands for the default, as in OpenAI's API."""

    model: str | None = None
    """None is the served model."""
    max_tokens: int | None = Field(None, ge=1)
    """Most tokens of the answer; what does not fit the context is cut with `finish_reason` "length"."""
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0)
    """0 is no limit."""
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Text | list[Text] | None = None
    n: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    ignore_eos: bool | None = None
    """Go on to `max_tokens` through the end tokens: what load generators ask for."""

    @field_validator("n")
    @classmethod
    def _one_choice(cls, n: int | None) -> int | None:
        if n not in (None, 1):
            raise ValueError("only n = 1 is supported; send the request again with another seed")
        return n

    @field_validator("stop")
    @classmethod
    def _stop_is_not_empty(cls, stop: str | list[str] | None) -> str | list[str] | None:
        if stop == "" or (isinstance(stop, list) and "" in stop):
            raise ValueError("a stop string must not be empty")
        return stop

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


class ChatRequest(GenerationRequest):
    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    """The newer name of `max_tokens`; it wins."""


class CompletionRequest(GenerationRequest):
    prompt: Text | list[Text] | list[int] | list[list[int]]
    """One prompt: a string, its token ids, or a list with one of these."""
    max_tokens: int | None = Field(16, ge=1)


NEUTRAL: dict[str, tuple[Any, ...]] = {
    "logprobs": (False,),
    "top_logprobs": (),
    "echo": (False,),
    "best_of": (1,),
    "suffix": ("",),
    "logit_bias": ({},),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "min_p": (0,),
    "min_tokens": (0,),
    "tools": ([],),
    "functions": ([],),
    "response_format": ({"type": "text"},),
    "audio": (),
}
"""Known fields without support, with the values that leave the answer as it is; null always does."""


def unsupported(request: GenerationRequest) -> str | None:
    """The first field of a request that would change the answer and that this server cannot do."""
    for name, value in (request.model_extra or {}).items():
        # By type too, for in Python 0 == False, and `logprobs: 0` asks for log-probabilities.
        neutral = any(value == item and isinstance(value, bool) == isinstance(item, bool)
                      for item in NEUTRAL.get(name, (value,)))  # fmt: skip
        if value is not None and not neutral:
            return name
    return None


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


FinishReason = str
""""stop" or "length"."""


class ChatMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str


class ChatChoice(BaseModel):
    index: int = 0
    message: ChatMessage
    logprobs: None = None
    finish_reason: FinishReason


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class Delta(BaseModel):
    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChunkChoice(BaseModel):
    index: int
    delta: Delta
    finish_reason: FinishReason | None


class ChatChunk(BaseModel):
    """One event of a chat stream; written without its unset fields."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


class TextChoice(BaseModel):
    index: int = 0
    text: str
    logprobs: None = None
    finish_reason: FinishReason | None


class Completion(BaseModel):
    """A text completion, or one event of its stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage | None = None


class ModelCard(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "moxin"
    max_model_len: int
    """Longest prompt and answer together, in tokens."""


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    error: ErrorDetail
