"""Answers of a given form: JSON of a schema, a regular expression, a grammar, through llguidance
(github.com/guidance-ai/llguidance), which says for every state what tokens may come."""

import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import llguidance
import numpy as np
import torch
from torch import Tensor

from moxin.infer.sampling import SamplingParams

MAX_COMPILED = 64
"""Compiled grammars that are kept; the longest unused one goes first. Requests bring them, so there may be any number."""
COMPACT: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""How JSON is spaced. Where any white space may come, a weak model loses itself in it until its tokens are used up."""
MAX_SOURCE_CHARS = 200_000
"""Longest text of a schema, expression or grammar."""


class Grammars:
    """Compiles for one tokenizer. `tokenizer_json` is the text of its `tokenizer.json`, `eos_ids` end an answer.

    Threads may share one: a service compiles what a request brings beside the engine's thread, so that no answer waits.
    """

    def __init__(self, tokenizer_json: str, vocab_size: int, eos_ids: Sequence[int]) -> None:
        if not eos_ids:
            raise ValueError(
                "constrained answers need eos_ids: without a token that ends them they could not end"
            )
        self.vocab_size = vocab_size
        self._tokenizer = llguidance.LLTokenizer(tokenizer_json, n_vocab=vocab_size, eos_token=list(eos_ids))
        self._compiled: OrderedDict[tuple[str, str], llguidance.LLMatcher] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def n_compiled(self) -> int:
        return len(self._compiled)

    def matcher(self, params: SamplingParams) -> "Matcher":
        """A fresh matcher for what `params` ask. Raises `ValueError`, naming the field, for what cannot be compiled."""
        name = next(name for name in ("json_schema", "regex", "grammar") if getattr(params, name) is not None)
        source = str(getattr(params, name))
        if len(source) > MAX_SOURCE_CHARS:
            raise ValueError(f"{name} has {len(source)} characters: at most {MAX_SOURCE_CHARS}")
        key = (name, source)
        with self._lock:
            found = self._compiled.get(key)
        if found is None:
            found = self._compile(name, source)
        with self._lock:
            self._compiled[key] = found
            self._compiled.move_to_end(key)
            if len(self._compiled) > MAX_COMPILED:
                self._compiled.popitem(last=False)
            return Matcher(found.deep_copy(), self.vocab_size)

    def _compile(self, name: str, source: str) -> llguidance.LLMatcher:
        make = llguidance.LLMatcher
        try:
            if name == "json_schema":
                if not isinstance(json.loads(source), (dict, bool)):
                    raise ValueError("a schema is a JSON object")
                text = make.grammar_from_json_schema(source, overrides=COMPACT)
            else:
                text = make.grammar_from_regex(source) if name == "regex" else make.grammar_from_lark(source)
        except ValueError as error:
            raise ValueError(f"{name} cannot be compiled: {error}") from error
        matcher = make(self._tokenizer, text, log_level=0)
        if matcher.is_error():
            raise ValueError(f"{name} cannot be compiled: {matcher.get_error().strip()}")
        return matcher


class Matcher:
    """Where one answer stands in its grammar."""

    def __init__(self, matcher: llguidance.LLMatcher, vocab_size: int) -> None:
        self._matcher, self.vocab_size = matcher, vocab_size

    @property
    def complete(self) -> bool:
        """Whether nothing more can come."""
        return self._matcher.is_stopped()

    def forbid(self, logits_V: Tensor) -> Tensor:
        """The logits with minus infinity for every token that cannot come."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            raise RuntimeError(f"the grammar's matcher failed: {self._matcher.get_error()}")
        allowed = np.zeros(len(logits_V), bool)
        said = np.unpackbits(bits, bitorder="little")[: self.vocab_size].astype(bool)
        allowed[: len(said)] = said
        return logits_V.masked_fill(~torch.from_numpy(allowed).to(logits_V.device), -torch.inf)

    def accept(self, token: int) -> None:
        if not self._matcher.consume_token(token):
            raise RuntimeError(f"token {token} is none that the grammar allows: {self._matcher.get_error()}")
