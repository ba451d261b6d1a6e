"""Bytes per token: counted one text at a time as the judge."""

from importlib.util import find_spec

import pyarrow as pa
import pytest
from test_tokens_tokenizer import TEXTS, random_texts

from moxin.tokens import fertility
from moxin.tokens.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def ours():
    return {kind: Tokenizer.train(TEXTS, 600, kind) for kind in ("bpe", "unigram")}


def test_bytes_per_token_of_every_group(ours):
    texts = [*TEXTS[:5], "", None, *random_texts(seed=13, n=200)]
    groups = [("web", "en") if i % 3 else ("books", "de") for i in range(len(texts))]
    rows = fertility.measure(ours, pa.array(texts), groups)
    assert [group for group, _, _ in rows] == [("books", "de"), ("web", "en")]
    for group, n_bytes, ratios in rows:
        members = [text or "" for text, other in zip(texts, groups, strict=True) if other == group]
        assert n_bytes == sum(len(text.encode()) for text in members)
        for kind, tokenizer in ours.items():
            n_tokens = sum(len(tokenizer.encode(text)) for text in members)
            assert ratios[kind] == pytest.approx(n_bytes / n_tokens)


def test_it_counts_through_the_chosen_back_end(ours, monkeypatch):
    texts = pa.array(TEXTS[:5])
    before = fertility.measure(ours, texts, ["all"] * 5)
    assert ours["bpe"].choose("numba", texts) == "numba"
    monkeypatch.setattr(Tokenizer, "encode_batch", None)
    assert fertility.measure(ours, texts, ["all"] * 5) == before


def test_groups_without_text_are_left_out_and_a_group_is_needed_for_each_text(ours):
    assert fertility.measure(ours, pa.array(["", "a"]), ["empty", "full"]) == [
        ("full", 1, {"bpe": 1.0, "unigram": 1.0})
    ]
    with pytest.raises(ValueError, match="1 groups for 2 texts"):
        fertility.measure(ours, pa.array(["a", "b"]), ["one"])


def test_references_are_named_by_their_folders_and_mistral_is_one_where_it_is_installed(
    ours, tmp_path, monkeypatch
):
    paths = [str(tmp_path / where) for where in ("a/neox", "b/neox", "llama")]
    for path in paths:
        ours["bpe"].save(path)
    found = fertility.references(paths)
    wanted = {*paths[:2], "llama"}
    if find_spec("mistral_common") and find_spec("sentencepiece"):
        assert found[fertility.MISTRAL].vocab_size == 32_000
        wanted.add(fertility.MISTRAL)
    assert set(found) == wanted
    monkeypatch.setattr(fertility, "find_spec", lambda name: None)
    assert set(fertility.references(paths[2:])) == {"llama"}
    assert fertility.references([]) == {}
    with pytest.raises(ValueError, match="no such tokenizer"):
        fertility.references([str(tmp_path / "none")])
