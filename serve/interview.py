"""A few questions asked over HTTP, as any client would: what a run shows of its model at the end."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import httpx

TIMEOUT_S = 120.0


def ask(questions: Sequence[Mapping[str, str]], base_url: str, max_tokens: int = 64) -> list[dict[str, Any]]:
    """Greedy answers of the model served at `base_url` to rows {question, answer}; the last one is streamed.

    Returns rows {question, answer, expected, right}. Raises `httpx.HTTPStatusError` where the server refuses.
    """
    key = os.environ.get("MOXIN_API_KEY", "")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    rows = []
    with httpx.Client(base_url=base_url, headers=headers, timeout=TIMEOUT_S, trust_env=False) as client:
        for number, row in enumerate(questions):
            body = {
                "messages": [{"role": "user", "content": row["question"]}],
                "temperature": 0,
                "max_tokens": max_tokens,
            }
            answer = (_streamed if number == len(questions) - 1 else _whole)(client, body).strip()
            named = rf"(?<!\w){re.escape(row['answer'])}(?!\w)"  # as whole words, as the evaluation judges
            right = bool(re.search(named, answer, re.IGNORECASE))
            rows.append(
                {"question": row["question"], "answer": answer, "expected": row["answer"], "right": right}
            )
    return rows


def _whole(client: httpx.Client, body: dict[str, Any]) -> str:
    response = client.post("/v1/chat/completions", json=body).raise_for_status()
    return str(response.json()["choices"][0]["message"]["content"])


def _streamed(client: httpx.Client, body: dict[str, Any]) -> str:
    text = ""
    with client.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            data = line.removeprefix("data: ")
            if data and data != "[DONE]":
                event = json.loads(data)
                if "error" in event:
                    raise RuntimeError(f"the stream ended early: {event['error']['message']}")
                text += "".join(choice["delta"].get("content", "") for choice in event["choices"])
    return text
