"""What clients may send, in OpenAI's wire format (https://platform.openai.com/docs/api-reference) with vLLM's extensions.

Fields that we do not know are tolerated, as clients send many; wrong types are not. Known fields that would change the
answer and that we do not support are refused by `unsupported`, so that none is ignored without a word.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from moxin.infer.sampling import MAX_N, MAX_STOPS

MAX_LOGPROBS = 20
"""Most alternatives to a token; OpenAI's limit for chats."""
MAX_PROMPTS = 128
MAX_MESSAGES = 4096
MAX_TOOLS = 128


def _encodable(text: str) -> str:
    """JSON can spell half of a surrogate pair ("\\ud800"), which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"not valid Unicode at character {error.start} (a lone surrogate)") from None
    return text


Text = Annotated[str, AfterValidator(_encodable)]
TokenId = Annotated[int, Field(ge=0)]
Tokens = Annotated[list[TokenId], Field(min_length=1)]


class Incoming(BaseModel):
    """What clients send: no silent conversion, no NaN, unknown fields kept for `unsupported`."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="allow")


class TextPart(Incoming):
    type: Literal["text"]
    text: Text


class FunctionCall(Incoming):
    name: Text
    arguments: Text
    """A JSON text."""


class ToolCall(Incoming):
    id: Text
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(Incoming):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | list[TextPart] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: Text | None = None

    @model_validator(mode="after")
    def _says_something(self) -> "Message":
        if self.content is None and not (self.role == "assistant" and self.tool_calls):
            raise ValueError(f"a message of the role {self.role} needs content, which is missing or None")
        return self

    @property
    def text(self) -> str:
        if self.content is None or isinstance(self.content, str):
            return self.content or ""
        return "".join(part.text for part in self.content)


class StreamOptions(Incoming):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    """vLLM's: the counts so far in every event."""


class GenerationRequest(Incoming):
    """What chat and text completions have in common. A null stands for the default, as in OpenAI's API."""

    model: Text | None = None
    """None is the model named first in the server's settings."""
    max_tokens: int | None = Field(None, ge=1)
    """Most tokens of the answer; what does not fit the context is cut with `finish_reason` "length"."""
    min_tokens: int | None = Field(None, ge=0)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    """0 and -1 are no limit."""
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=100)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Text | Annotated[list[Text], Field(max_length=MAX_STOPS)] | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=MAX_STOPS - 4)] | None = None
    include_stop_str_in_output: bool | None = None
    n: int | None = Field(None, ge=1, le=MAX_N)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    ignore_eos: bool | None = None
    """Go on to `max_tokens` through the end tokens: what load generators ask for."""
    cache_salt: Text | None = None
    """Only requests with the same one share remembered prompts."""

    @field_validator("stop")
    @classmethod
    def _stop_is_not_empty(cls, stop: str | list[str] | None) -> str | list[str] | None:
        if stop == "" or (isinstance(stop, list) and "" in stop):
            raise ValueError("a stop string must not be empty")
        return stop

    @field_validator("logit_bias")
    @classmethod
    def _bias_names_tokens(cls, bias: dict[str, float] | None) -> dict[str, float] | None:
        for name in bias or {}:
            if not (name.isascii() and name.isdecimal() and len(name) < 10):
                raise ValueError("its keys are token ids, written as strings")
        return bias

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def continuous_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.continuous_usage_stats)


class JsonSchema(Incoming):
    name: Text | None = None
    schema_: dict[str, Any] | bool = Field(True, alias="schema")
    strict: bool | None = None


class ResponseFormat(Incoming):
    """OpenAI's three, and two more that the engine has: a regular expression and llguidance's variant of Lark."""

    type: Literal["text", "json_object", "json_schema", "regex", "grammar"]
    json_schema: JsonSchema | None = None
    regex: Text | None = None
    grammar: Text | None = None

    @model_validator(mode="after")
    def _has_what_it_names(self) -> "ResponseFormat":
        if self.type in ("json_schema", "regex", "grammar") and getattr(self, self.type) is None:
            raise ValueError(f"the type {self.type} needs a field {self.type}")
        return self


class FunctionTool(Incoming):
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    """JSON Schema of the arguments; none takes no arguments."""
    strict: bool | None = None


class Tool(Incoming):
    type: Literal["function"]
    function: FunctionTool


class NamedFunction(Incoming):
    name: Text


class NamedTool(Incoming):
    type: Literal["function"]
    function: NamedFunction


class ChatRequest(GenerationRequest):
    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = Field(None, ge=1)
    """The newer name of `max_tokens`; it wins."""
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> "ChatRequest":
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        if isinstance(self.tool_choice, NamedTool):
            name = self.tool_choice.function.name
            if all(name != tool.function.name for tool in self.tools or ()):
                raise ValueError("tool_choice names a function that is not among tools")
        elif self.tool_choice == "required" and not self.tools:
            raise ValueError("tool_choice is required, but there are no tools")
        return self


class CompletionRequest(GenerationRequest):
    prompt: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS)]
        | Tokens
        | Annotated[list[Tokens], Field(min_length=1, max_length=MAX_PROMPTS)]
    )
    """A string, token ids, or a list of either; every prompt has `n` answers."""
    max_tokens: int | None = Field(16, ge=0)
    """With `echo` 0 is allowed: the prompt's log-probabilities alone."""
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    best_of: int | None = None
    response_format: ResponseFormat | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> "CompletionRequest":
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ValueError("best_of is not supported; leave it out, and choose among n answers")
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens is 0, which gives something only with echo: true")
        return self


class EmbeddingRequest(Incoming):
    model: Text | None = None
    input: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS)]
        | Tokens
        | Annotated[list[Tokens], Field(min_length=1, max_length=MAX_PROMPTS)]
    )
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None


class TokenizeRequest(Incoming):
    """A `prompt`, or `messages` as the model would read them."""

    model: Text | None = None
    prompt: Text | None = None
    add_special_tokens: bool = True
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)] | None = None
    add_generation_prompt: bool = True
    return_token_strs: bool | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> "TokenizeRequest":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("prompt: give either prompt or messages")
        return self


class DetokenizeRequest(Incoming):
    model: Text | None = None
    tokens: list[TokenId]


NEUTRAL: dict[str, tuple[Any, ...]] = {
    "suffix": ("",),
    "functions": ([],),
    "function_call": ("none",),
    "audio": (),
    "modalities": (["text"],),
    "web_search_options": (),
    "prompt_logprobs": (),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    "length_penalty": (1,),
    "lora": (),
}
"""Known fields without support, with the values that leave the answer as it is; null always does."""


def unsupported(request: Incoming) -> str | None:
    """The first field of a request that would change the answer and that this server cannot do."""
    for name, value in (request.model_extra or {}).items():
        # By type too, for in Python 0 == False.
        neutral = any(value == item and isinstance(value, bool) == isinstance(item, bool)
                      for item in NEUTRAL.get(name, (value,)))  # fmt: skip
        if value is not None and not neutral:
            return name
    return None
