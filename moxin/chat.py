"""`moxin chat`: a talk in the terminal with any server that speaks OpenAI's API."""

import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx

from moxin import console

TIMEOUT_S = 600.0
HELP = "/new begins anew · /again asks for another answer · /system TEXT · /quit · Ctrl-C stops an answer"


@dataclass
class Talk:
    """A chat with the model `model` at `client`; `settings` go with every request."""

    client: httpx.Client
    model: str
    settings: dict[str, Any]
    system: str = ""
    turns: list[dict[str, str]] = field(default_factory=list)
    n_tokens: int = 0
    """Of the last answer."""
    seconds: float = 0.0
    """From its first to its last token."""

    def ask(self, question: str) -> Iterator[str]:
        """The answer in pieces. Raises `ValueError` with what the server says where it refuses or fails on the way.

        What has come when the iterator is closed counts as the answer.
        """
        self.turns.append({"role": "user", "content": question})
        yield from self._answer()

    def again(self) -> Iterator[str]:
        """Another answer to the last question; `ValueError` where there is none."""
        if not self.turns:
            raise ValueError("nothing was asked yet")
        if self.turns[-1]["role"] == "assistant":
            self.turns.pop()
        yield from self._answer()

    def _answer(self) -> Iterator[str]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        body = {"model": self.model, "messages": [*system, *self.turns], "stream": True, **self.settings,
                "stream_options": {"include_usage": True}}  # fmt: skip
        said, first, ended = "", 0.0, False
        self.n_tokens = 0
        try:
            with self.client.stream("POST", "/v1/chat/completions", json=body) as response:
                _check(response)
                for event in _events(response):
                    if "error" in event:
                        raise ValueError(event["error"]["message"])
                    first = first or time.monotonic()
                    self.n_tokens = (event.get("usage") or {}).get("completion_tokens", self.n_tokens)
                    for choice in event["choices"]:
                        if piece := choice["delta"].get("content"):
                            said += piece
                            yield piece
                        ended = ended or choice["finish_reason"] is not None
            if not ended:
                raise ValueError("the connection was lost before the answer was complete")
        except httpx.HTTPError as error:
            raise ValueError(f"{self.client.base_url} does not answer: {error}") from error
        finally:
            self.seconds = time.monotonic() - first if first else 0.0
            if said:
                self.turns.append({"role": "assistant", "content": said})
            elif self.turns and self.turns[-1]["role"] == "user" and not ended:
                self.turns.pop()  # it may be asked again


def open_talk(url: str, model: str, system: str, settings: dict[str, Any]) -> Talk:
    """A talk with a server, whose first model is meant where `model` is empty. The key is MOXIN_API_KEY's.

    Raises `ValueError` where the server cannot be reached, refuses, or has no such model.
    """
    key = os.environ.get("MOXIN_API_KEY", "").partition(",")[0]
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    base = url.rstrip("/").removesuffix("/v1")
    try:
        client = httpx.Client(base_url=base, headers=headers, timeout=TIMEOUT_S, trust_env=False)
        response = client.get("/v1/models")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ValueError(
            f"{url} does not answer ({error}); start it with jobs/deploy.py, or name another URL"
        ) from error
    _check(response)
    served = [str(card["id"]) for card in response.json()["data"]]
    if model and model not in served:
        raise ValueError(f"--model {model}: {url} serves {', '.join(served)}")
    return Talk(client, model or served[0], settings, system)


def chat(talk: Talk) -> None:
    """Reads questions until the end of the input; on a terminal with a prompt, else answers alone."""
    shown = sys.stdin.isatty()
    if shown:
        console.say(f"{talk.model} at {talk.client.base_url}", style="bold")
        console.say(HELP, style="dim")
    while True:
        try:
            line = input("\n› " if shown else "").strip()
        except (EOFError, KeyboardInterrupt):
            return
        if line == "/quit":
            return
        if line == "/new":
            talk.turns.clear()
        elif line.startswith("/system"):
            talk.system = line.removeprefix("/system").strip()
        elif line == "/again" or not line.startswith("/"):
            if line:
                _say(talk, talk.again() if line == "/again" else talk.ask(line), shown)
        else:
            console.warn(f"{line.split()[0]}: no such command. {HELP}")


def _say(talk: Talk, pieces: Iterator[str], shown: bool) -> None:
    try:
        for piece in pieces:
            # Escape sequences in an answer would command the terminal.
            print("".join(char for char in piece if char.isprintable() or char in "\n\t"), end="", flush=True)
    except KeyboardInterrupt:
        pieces.close()  # type: ignore[attr-defined]
    except ValueError as error:
        print()
        console.warn(str(error))
        return
    print()
    if shown and talk.n_tokens > 1 and talk.seconds:
        console.say(f"{talk.n_tokens} tokens, {(talk.n_tokens - 1) / talk.seconds:.1f} tokens/s", style="dim")


def _check(response: httpx.Response) -> None:
    if response.is_success:
        return
    response.read()
    try:
        told = response.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        told = response.text[:200]
    hint = "; set MOXIN_API_KEY" if response.status_code == 401 else ""
    raise ValueError(f"{response.url}: {told}{hint}")


def _events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    for line in response.iter_lines():
        data = line.removeprefix("data: ")
        if data == "[DONE]":
            return
        if data and data != line:
            yield json.loads(data)
