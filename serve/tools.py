"""Calls of functions: what a model is told of its tools, how it writes a call, and how calls are read from its text.

A call is `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, the form of Hermes and Qwen models. While an answer comes,
a grammar holds every call to the JSON Schema of its function, so whatever begins as a call is one.
"""

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from serve import bodies
from serve.schemas import ChatRequest, FunctionTool, Message, NamedTool

BEGIN, END = "<tool_call>", "</tool_call>"
NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}


def functions(request: ChatRequest) -> list[FunctionTool]:
    """Those that the answer may call."""
    choice = request.tool_choice
    if choice == "none" or not request.tools:
        return []
    found = [tool.function for tool in request.tools]
    return (
        [one for one in found if one.name == choice.function.name] if isinstance(choice, NamedTool) else found
    )


def turns(request: ChatRequest) -> list[dict[str, str]]:
    """The messages as the chat template knows them: the tools and their results become text.

    "developer" is OpenAI's newer name for "system"; a tool's result is told by the user.
    """
    found = [turn_of(message) for message in request.messages]
    if offered := functions(request):
        told = _instructions(offered)
        if found[0]["role"] == "system":
            found[0] = {"role": "system", "content": f"{found[0]['content']}\n\n{told}"}
        else:
            found.insert(0, {"role": "system", "content": told})
    return found


def turn_of(message: Message) -> dict[str, str]:
    """One message as the chat template knows it."""
    if message.role == "tool":
        return {"role": "user", "content": f"<tool_response>{message.text}</tool_response>"}
    text = message.text
    for call in message.tool_calls or ():
        name = json.dumps(call.function.name)
        text += f'{BEGIN}{{"name": {name}, "arguments": {call.function.arguments}}}{END}'
    return {"role": "system" if message.role == "developer" else message.role, "content": text}


def _instructions(offered: Sequence[FunctionTool]) -> str:
    lines = [
        json.dumps(one.model_dump(include={"name", "description", "parameters"}, exclude_none=True))
        for one in offered
    ]
    form = f'{BEGIN}{{"name": NAME, "arguments": ARGUMENTS}}{END}'
    return "\n".join(["You can call these functions:", *lines, f"To call one, write {form}"])


def grammar(request: ChatRequest, answer_schema: str | None) -> str | None:
    """What an answer may be, in llguidance's variant of Lark; None where there are no tools.

    With `tool_choice` auto it is text that may go over into calls or, with `answer_schema`, either JSON or calls; with
    "required" or a named function it is calls; one call where `parallel_tool_calls` is false.
    """
    offered = functions(request)
    if not offered:
        return None
    many = "" if request.parallel_tool_calls is False or isinstance(request.tool_choice, NamedTool) else "+"
    forced = request.tool_choice == "required" or isinstance(request.tool_choice, NamedTool)
    rules = []
    for number, one in enumerate(offered):
        begin = json.dumps(f'{{"name": {json.dumps(one.name)}, "arguments": ')
        rules.append(f'tool_{number}: {begin} args_{number} "}}{END}"')
        rules.append(f"args_{number}: %json {_schema(one.parameters or NO_ARGUMENTS)}")
    tool = " | ".join(f"tool_{number}" for number in range(len(offered)))
    call = f'call: "{BEGIN}" ({tool})'
    if forced:
        return "\n".join([f"start: call{many}", call, *rules])
    if answer_schema is not None:
        return "\n".join([f"start: call{many} | answer", f"answer: %json {answer_schema}", call, *rules])
    # The text up to a call is one lexeme that ends where the call begins, the text without a call another.
    text = [f"before[lazy]: /(.|\\n)*{BEGIN}/", "TEXT: /(.|\\n)*/", f"more: before ({tool})"]
    calls = f"more{'*' if many else '?'}"
    return "\n".join([f"start: {calls} TEXT", *text, *rules])


def _schema(schema: dict[str, Any] | bool) -> str:
    spaced = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
    return json.dumps({**schema, "x-guidance": spaced} if isinstance(schema, dict) else schema)


def answer_schema(schema: dict[str, Any] | bool) -> str:
    """A schema as `grammar` takes it."""
    return _schema(schema)


@dataclass
class CallReader:
    """Reads calls from the text of one answer as it comes. `push` gives the text that is none, and calls that are whole."""

    held: str = ""
    n_calls: int = 0

    def push(self, text: str, final: bool) -> tuple[str, list[bodies.ToolCallDelta]]:
        self.held += text
        plain, calls = "", list[bodies.ToolCallDelta]()
        while True:
            at = self.held.find(BEGIN)
            if at < 0:
                keep = 0 if final else _overlap(self.held, BEGIN)
                plain += self.held[: len(self.held) - keep]
                self.held = self.held[len(self.held) - keep :]
                return plain, calls
            plain, self.held = plain + self.held[:at], self.held[at:]
            end = self.held.find(END)
            call = None if end < 0 else self._call(self.held[len(BEGIN) : end])
            if call is not None:
                calls.append(call)
            elif end >= 0 or final:  # cut by `max_tokens`, or no call although it looks like one: it is text
                plain += self.held if end < 0 else self.held[: end + len(END)]
            if end < 0:
                self.held = "" if final else self.held
                return plain, calls
            self.held = self.held[end + len(END) :]

    def _call(self, text: str) -> bodies.ToolCallDelta | None:
        try:
            found = json.loads(text)
            name, arguments = found["name"], found["arguments"]
        except (ValueError, KeyError, TypeError):
            return None
        if not isinstance(name, str):
            return None
        function = bodies.FunctionCall(name=name, arguments=json.dumps(arguments, ensure_ascii=False))
        self.n_calls += 1
        return bodies.ToolCallDelta(
            index=self.n_calls - 1, id=f"call_{uuid.uuid4().hex[:24]}", type="function", function=function
        )


def _overlap(text: str, mark: str) -> int:
    """The longest end of `text` that is a beginning of `mark`."""
    return next((n for n in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:n])), 0)
