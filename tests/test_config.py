import json
from dataclasses import dataclass, field

import pytest

from moxin import config, recipes
from moxin.recipe import Recipe


@dataclass(frozen=True)
class Part:
    name: str
    weight: float = 1.0
    mix: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Whole:
    count: int = 3
    limit: int | None = None
    on: bool = False
    words: tuple[str, ...] = ("a",)
    parts: tuple[Part, ...] = (Part("first"), Part("second", mix={"x": 1.0}))


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("count", "1_000", lambda whole: whole.count == 1000),
        ("count", "2e6", lambda whole: whole.count == 2_000_000),
        ("limit", "7", lambda whole: whole.limit == 7),
        ("limit", "none", lambda whole: whole.limit is None),
        ("on", "true", lambda whole: whole.on is True),
        ("words", "en,de", lambda whole: whole.words == ("en", "de")),
        (
            "parts.second.weight",
            "0.5",
            lambda whole: whole.parts[1].weight == 0.5 and whole.parts[0].weight == 1,
        ),
        ("parts.0.weight", "2", lambda whole: whole.parts[0].weight == 2),
        ("parts.second.mix.y", "3", lambda whole: whole.parts[1].mix == {"x": 1.0, "y": 3.0}),
    ],
)
def test_an_override_sets_one_leaf(key, text, expected):
    before = Whole()
    assert expected(config.override(before, key, text))
    assert before == Whole(), "the original must not change"


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("cuont", "1", "did you mean 'count'"),
        ("parts.secnod.weight", "1", "did you mean 'second'"),
        ("parts", "1", "group of settings; name one of first, second"),
        ("parts.first", "1", "group of settings; name one of name, weight, mix"),
        ("count.deeper", "1", "nothing lies below"),
        ("count", "many", "expected int"),
        ("count", "1.5", "expected int"),
        ("on", "maybe", "expected bool"),
    ],
)
def test_a_wrong_override_says_what_is_right(key, text, message):
    with pytest.raises(ValueError, match=message):
        config.override(Whole(), key, text)


def test_an_override_without_a_value_shows_the_form():
    with pytest.raises(ValueError, match=r"dotted\.key=value"):
        config.parse_override("sft.epochs")


def test_a_digest_depends_on_content_only():
    assert config.digest({"b": 1, "a": (1, 2)}) == config.digest({"a": [1, 2], "b": 1})
    assert config.digest(Whole()) != config.digest(Whole(count=4))
    with pytest.raises(TypeError, match="cannot be written as JSON"):
        config.digest({"a": object()})


@pytest.mark.parametrize("name", sorted(recipes.RECIPES))
def test_every_recipe_is_valid_and_serialisable(name):
    recipe = recipes.load(name)
    recipe.validate()
    assert json.loads(config.canonical_json(recipe))["name"] == name
    assert config.from_jsonable(Recipe, json.loads(config.canonical_json(recipe))) == recipe


def test_a_recipe_of_another_version_is_refused_by_the_key_that_is_not_known():
    written = config.to_jsonable(recipes.load("smoke"))
    written["pretrain"]["phases"][0]["contxt"] = 3
    with pytest.raises(ValueError, match="PhaseConfig has no 'contxt'; did you mean 'context'"):
        config.from_jsonable(Recipe, written)


def test_a_length_may_be_part_of_a_key():
    key, value = config.parse_override("pretrain.phases.phase1.mix.prose>=4096=0.5")
    recipe = config.override(recipes.load("demo"), key, value)
    recipe.validate()
    assert recipe.pretrain.phases[0].mix["prose>=4096"] == 0.5
    assert config.parse_override("a.b=c=d") == ("a.b", "c=d")


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("model.n_heads", "5", "not a multiple of model.n_heads"),
        ("model.n_kv_heads", "4", "not a multiple of model.n_kv_heads"),
        ("model.n_layers", "0", "at least 1"),
        ("pretrain.phases.phase1.context", "512", "exceeds model.max_seq_len"),
        ("pretrain.phases.phase1.mix.prsoe", "1", "mix names .'prsoe'"),
        ("pretrain.global_batch", "1000", "must be a multiple of context"),
        ("scaling.n_workers", "3", "must be a multiple of context"),
        ("scaling.n_workers", "17", "fewer sequences of context = 128 than scaling.n_workers = 17"),
        ("pretrain.phases.phase1.mix.prose>=1000", "1", "write a power of two"),
        ("pretrain.phases.phase1.context", "0", "at least 1 token"),
        ("pretrain.shuffle_tokens", "0", "pretrain.shuffle_tokens = 0"),
        ("sources.prose.max_epochs", "-1", "sources.prose.max_epochs = -1"),
        ("tokenizer.vocab_size", "4096", "does not fit model.vocab_size"),
    ],
)
def test_a_recipe_that_cannot_run_is_refused(key, text, message):
    with pytest.raises(ValueError, match=message):
        config.override(recipes.load("demo"), key, text).validate()
