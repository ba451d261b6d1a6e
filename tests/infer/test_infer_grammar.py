"""Constrained answers of a model with random weights: JSON that jsonschema accepts, text that `re` matches."""

import json
import re

import jsonschema
import pytest
from infer_helpers import answer_all, decoder, drain, idle

from moxin.infer import grammar
from moxin.infer.engine import Engine
from moxin.infer.grammar import Grammars
from moxin.infer.request import Request
from moxin.infer.sampling import SamplingParams
from moxin.recipe import ModelConfig
from moxin.tokens.tokenizer import Tokenizer

TOKENIZER = Tokenizer.train(['{"name": "Ada", "age": 36} The quick brown fox. '] * 20, vocab_size=320)
VOCAB = 384
"""More rows than the tokenizer has tokens, as padded vocabularies have."""
MODEL = decoder(
    ModelConfig(n_layers=2, d_model=32, n_heads=4, n_kv_heads=2, d_ff=64, vocab_size=VOCAB, max_seq_len=256)
)
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def engine() -> Engine:
    grammars = Grammars(TOKENIZER._backend.to_str(), VOCAB, [TOKENIZER.eos_id])
    return Engine(
        MODEL,
        max_batch=4,
        decode=TOKENIZER.decode,
        eos_ids=[TOKENIZER.eos_id],
        grammars=grammars,
        speculate=3,
    )


def answers(engine: Engine, params: SamplingParams) -> list[tuple[str, str | None]]:
    engine.add(Request("a", [1, 2, 3], params))
    found = [
        ("".join(event.text for event in events), events[-1].finished) for events in drain(engine).values()
    ]
    assert idle(engine)
    return found


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_json_is_of_its_schema(temperature: float) -> None:
    params = SamplingParams(
        max_tokens=200,
        temperature=temperature,
        seed=1,
        n=4,
        json_schema=json.dumps(SCHEMA),
        repetition_penalty=1.5,
    )
    for text, finished in answers(engine(), params):
        assert finished == "stop"
        jsonschema.validate(json.loads(text), SCHEMA)


def test_a_regular_expression_is_matched() -> None:
    pattern = r"(yes|no), [0-9]{3}-[a-c]{2,4}\."
    found = answers(engine(), SamplingParams(max_tokens=100, temperature=1.0, seed=2, n=6, regex=pattern))
    assert len({text for text, _ in found}) > 1
    for text, finished in found:
        assert finished == "stop"
        assert re.fullmatch(pattern, text), text


def test_a_grammar_is_followed() -> None:
    lark = 'start: "(" item ("+" item)* ")"\nitem: /[0-9]/'
    for text, _ in answers(
        engine(), SamplingParams(max_tokens=150, temperature=1.0, seed=3, n=3, grammar=lark)
    ):
        assert re.fullmatch(r"\(\d(\+\d)*\)?.*", text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"json_schema": "{"}, "json_schema cannot be compiled"),
        ({"json_schema": "[1]"}, "json_schema cannot be compiled: a schema is a JSON object"),
        ({"json_schema": '{"type": "nonsense"}'}, "json_schema cannot be compiled"),
        ({"regex": "("}, "regex cannot be compiled"),
        ({"grammar": "start: nothing"}, "grammar cannot be compiled"),
        ({"regex": "a" * 300_000}, "regex has 300000 characters"),
    ],
)
def test_what_cannot_be_compiled_is_refused_and_harms_nothing(options: dict[str, str], message: str) -> None:
    service = engine()
    with pytest.raises(ValueError, match=message):
        service.add(Request("a", [1], SamplingParams(**options)))
    assert not service.has_work
    assert len(answer_all(service, [[1, 2]], SamplingParams(max_tokens=5))[0]) <= 5


def test_compiled_grammars_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar, "MAX_COMPILED", 3)
    grammars = Grammars(TOKENIZER._backend.to_str(), VOCAB, [TOKENIZER.eos_id])
    for i in range(10):
        grammars.matcher(SamplingParams(regex=f"a{{{i + 1}}}"))
        grammars.matcher(SamplingParams(regex="kept"))
    assert grammars.n_compiled == 3
    with pytest.raises(ValueError, match="need eos_ids"):
        Grammars(TOKENIZER._backend.to_str(), VOCAB, [])
