"""Fast back-ends: the reference's ids or the reference itself, and nobody is left in the dark about which."""

import json
import pickle
import sys
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from test_tokens_tokenizer import TEXTS, random_texts, save_neox

from moxin.tokens import backends, bpe
from moxin.tokens.tokenizer import CONTROL_TOKENS, Tokenizer

DOCUMENTS = [*TEXTS[:5], *random_texts(seed=7, n=300), *CONTROL_TOKENS, "", "a" * 300]


@pytest.fixture(scope="module")
def own():
    return Tokenizer.train(TEXTS, 600)


@pytest.fixture(scope="module")
def unigram():
    return Tokenizer.train(TEXTS, 600, "unigram")


@pytest.fixture(scope="module")
def neox(tmp_path_factory):
    return Tokenizer.load(str(save_neox(tmp_path_factory.mktemp("neox"))))


@pytest.fixture(scope="module")
def mistral():
    pytest.importorskip("sentencepiece")
    data = pytest.importorskip("mistral_common").__path__[0] + "/data"
    return Tokenizer.load(f"{data}/tokenizer.model.v1")


@pytest.fixture
def warnings(monkeypatch):
    said = []
    monkeypatch.setattr(backends.console, "warn", said.append)
    return said


def same(tokenizer, texts):
    """The ids of `encode_arrow`, after a check against those of `encode`."""
    ids, offsets = tokenizer.encode_arrow(texts)
    assert (ids.dtype, offsets.dtype) == (np.uint32, np.int64)
    assert offsets.tolist()[0] == 0
    got = [ids[start:end].tolist() for start, end in pairwise(offsets)]
    assert got == tokenizer.encode_batch([text or "" for text in texts.to_pylist()])
    return got


@pytest.mark.parametrize(
    ("which", "backend"),
    [
        *((which, "hf") for which in ("own", "unigram", "neox", "mistral")),
        *((which, "numba") for which in ("own", "neox", "mistral")),
        *((which, "gigatoken") for which in ("neox", "mistral")),
    ],
)
def test_every_back_end_gives_the_ids_of_encode(which, backend, request, warnings):
    if backend == "gigatoken":
        pytest.importorskip("gigatoken")
    tokenizer = pickle.loads(pickle.dumps(request.getfixturevalue(which)))
    texts = pa.array(DOCUMENTS)
    assert tokenizer.choose(backend, texts) == backend
    same(tokenizer, texts)
    same(tokenizer, texts.cast(pa.large_string()))
    same(tokenizer, texts.slice(3, 50))
    same(tokenizer, pa.array(["a", None, "", "b"]))
    same(tokenizer, pa.array([], pa.string()))
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy._choice == backend
    same(copy, texts)
    assert not warnings


def test_without_a_choice_it_is_the_reference(own):
    tokenizer = pickle.loads(pickle.dumps(own))
    same(tokenizer, pa.array(DOCUMENTS))
    assert isinstance(tokenizer._encode, backends._HF)


def fresh(tokenizer):
    """One that has built no back-end yet."""
    return pickle.loads(pickle.dumps(tokenizer))


def test_auto_takes_ours_else_gigatoken_else_the_reference_in_silence(
    own, unigram, mistral, monkeypatch, warnings
):
    pytest.importorskip("gigatoken")
    sample = pa.array(DOCUMENTS)
    assert fresh(own).choose("auto", sample) == "numba"
    assert fresh(unigram).choose("auto", sample) == "hf"

    def refuse(*_):
        raise bpe.Unsupported("not today")

    monkeypatch.setattr(bpe.Encoder, "__init__", refuse)
    assert fresh(mistral).choose("auto", sample) == "gigatoken"
    assert fresh(own).choose("auto", sample) == "hf"
    monkeypatch.setitem(sys.modules, "gigatoken", None)
    assert fresh(mistral).choose("auto", sample) == "hf"
    assert not warnings


def test_a_back_end_asked_for_by_name_that_cannot_be_used_says_why(own, unigram, mistral, monkeypatch):
    pytest.importorskip("gigatoken")
    sample = pa.array(DOCUMENTS)
    with pytest.raises(
        ValueError, match=r"backend = numba cannot be used: .*Unigram.*; or set tokenizer\.backend=auto"
    ):
        unigram.choose("numba", sample)
    with pytest.raises(
        ValueError, match=r"backend = gigatoken cannot be used: it does not cover this tokenizer \(.*Split"
    ):
        own.choose("gigatoken", sample)
    with pytest.raises(ValueError, match=r"tokenizer\.backend = 'rust': one of auto, hf, numba, gigatoken"):
        own.choose("rust", sample)
    monkeypatch.setitem(sys.modules, "gigatoken", None)
    with pytest.raises(ValueError, match=r'the package is not installed: pip install "moxin\[tokenizers\]"'):
        fresh(mistral).choose("gigatoken", sample)


@pytest.mark.parametrize("wanted", ["auto", "numba"])
def test_a_mismatch_prints_the_text_and_the_reference_is_used(own, wanted, monkeypatch, warnings):
    tokenizer = pickle.loads(pickle.dumps(own))
    honest = bpe.Encoder.encode

    def lies(self, texts):
        ids, offsets = honest(self, texts)
        for row, text in enumerate(texts.to_pylist()):
            if text == "The lazy\ndog. " * 30:
                ids[offsets[row + 1] - 1] = 7
        return ids, offsets

    monkeypatch.setattr(bpe.Encoder, "encode", lies)
    sample = pa.array(["fine", "The lazy\ndog. " * 30])
    assert tokenizer.choose(wanted, sample) == "hf"
    (said,) = warnings
    assert "back-end numba gives other ids than hf" in said
    assert r"lazy\ndog. '" in said  # the end of the text, where the lie is
    assert "of a text of 420 characters" in said
    assert len(said) < 300
    theirs = tokenizer.encode("The lazy\ndog. " * 30)
    assert f"from token {len(theirs) - 1} " in said
    assert f"[{theirs[-2]}, 7], hf {theirs[-2:]}; hf is used instead" in said
    same(tokenizer, sample)


def test_the_gate_tries_texts_that_no_sample_has(own, monkeypatch, warnings):
    honest = bpe.Encoder.encode

    def reads_control_tokens(self, texts):
        ids, offsets = honest(self, texts)
        parts = [
            np.array([own.end_id], np.uint32) if text == "<|end|>" else ids[offsets[row] : offsets[row + 1]]
            for row, text in enumerate(texts.to_pylist())
        ]
        return np.concatenate(parts), np.cumsum([0, *map(len, parts)])

    monkeypatch.setattr(bpe.Encoder, "encode", reads_control_tokens)
    assert pickle.loads(pickle.dumps(own)).choose("auto", pa.array(["harmless"])) == "hf"
    assert "'<|end|>'" in warnings[0]


def test_gigatoken_would_read_control_tokens_in_texts_and_is_not_told_of_them(mistral):
    gigatoken = pytest.importorskip("gigatoken")
    spec = mistral._backend.to_str()
    assert mistral.eos_id in gigatoken.Tokenizer.from_json(spec).encode("</s>").tolist()
    encode = backends.build("gigatoken", mistral._backend)
    assert mistral.eos_id not in encode(pa.array(["</s> <s>"]))[0]


def test_the_cache_of_gigatoken_is_kept_in_bounds(mistral):
    pytest.importorskip("gigatoken")
    encode = backends._Gigatoken(
        json.loads(mistral._backend.to_str()) | {"added_tokens": []}, cache_text_bytes=1000
    )
    made, make = [], encode._make
    encode._make = lambda spec: made.append(1) or make(spec)
    texts = [f"document {i} " * 10 for i in range(50)] + ["x" * 5000, "", "end"]
    for _ in range(2):
        ids, offsets = encode(pa.array(texts))
        got = [ids[start:end].tolist() for start, end in pairwise(offsets)]
        assert got == mistral.encode_batch(texts)
    n_bytes = 2 * sum(map(len, texts))
    assert n_bytes // (1000 + 5000) <= len(made) <= n_bytes // 1000 + 4
    whole = backends._Gigatoken(json.loads(mistral._backend.to_str()) | {"added_tokens": []})
    assert all(np.array_equal(a, b) for a, b in zip(whole(pa.array(texts)), (ids, offsets), strict=True))


@pytest.mark.parametrize(
    ("setting", "wanted"), [("false", False), ("0", False), ("true", None), (None, None)]
)
def test_gigatoken_respects_tokenizers_parallelism(mistral, setting, wanted, monkeypatch):
    pytest.importorskip("gigatoken")
    if setting is None:
        monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    else:
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", setting)
    encode = backends.build("gigatoken", mistral._backend)
    asked = []
    real = encode._tokenizer

    class Spy:
        def encode_batch(self, texts, parallel):
            asked.append(parallel)
            return real.encode_batch(texts, parallel=parallel)

    encode._tokenizer = Spy()
    encode(pa.array(["a", "b"]))
    assert asked == [wanted]
