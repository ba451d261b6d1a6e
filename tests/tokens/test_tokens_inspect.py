"""What `moxin inspect tokens` shows: every token of a sample, under the document that it is from."""

import numpy as np
import pytest
from stores import curriculum, write_store

from moxin.recipe import PhaseConfig
from moxin.tokens import inspect
from moxin.tokens.loader import PhaseData
from moxin.tokens.tokenizer import Tokenizer

TEXTS = [
    "The kite is in the river town, and the compass is not.",
    "def walk(x):\n    return x + 1\n",
    "A document with [bold]markup[/bold] and an \x1b[31mescape\x1b[0m sequence, \x07 and 東京.",
    "short",
] * 5


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(TEXTS, 400)


@pytest.fixture
def data(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    documents = [[tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id] for text in TEXTS]
    url = write_store(str(tmp_path / "store"), {"a": [documents[:9], documents[9:]]}, tokenizer.vocab_size)
    return PhaseData(url, curriculum(PhaseConfig("p", 320, 32, {"a": 1.0}), grain=32))


def test_the_pieces_of_a_sample_are_its_documents_texts(data, tokenizer):
    for i in range(data.n_samples):
        batch = data.batch(i, 1)
        found = inspect.pieces(data, tokenizer, i)
        assert sum(piece.length for piece in found) == 32
        for piece in found:
            span = slice(piece.position, piece.position + piece.length)
            shown = batch.tokens_BT[0, span].tolist()
            if batch.targets_BT[0, span][-1] >= 0:
                shown.append(int(batch.targets_BT[0, span][-1]))
            text = TEXTS[piece.document + (9 if piece.shard.endswith("00001.bin") else 0)]
            whole = [tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id]
            assert shown == whole[piece.first_token : piece.first_token + len(shown)]
            assert (piece.read == "<s>") == (piece.first_token == 0)
        assert (np.diff([piece.position for piece in found]) > 0).all()


def test_a_sample_is_printed_with_borders_origin_and_mask(data, tokenizer, capsys):
    outputs = []
    for i in range(data.n_samples):
        inspect.show_sample(data, tokenizer, i, rows_per_step=4)
        outputs.append(capsys.readouterr().out)
    assert "p, sample 5 of 10" in outputs[5]
    assert "step 2, row 2 of 4; source a, pass 1 over it" in outputs[5]
    everything = "".join(outputs)
    assert "shards/a-00001.bin, document 3" in everything
    assert "[bold]markup[/bold]" in everything
    assert "⟦<s>⟧" in everything
    assert "\x1b" not in everything  # a document does not steer the reader's terminal
    assert "\x07" not in everything
    assert "␛[31mescape␛[0m" in everything


def test_a_step_is_printed_in_one_line_a_sample(data, tokenizer, capsys):
    inspect.show_step(data, tokenizer, 2, rows_per_step=4)
    lines = capsys.readouterr().out.strip().splitlines()
    assert [line.split()[0] for line in lines[-4:]] == ["4", "5", "6", "7"]


@pytest.mark.parametrize(
    ("show", "number"), [("show_sample", 10), ("show_sample", -1), ("show_step", 3), ("show_step", 0)]
)
def test_what_a_phase_does_not_have_is_said(data, tokenizer, show, number):
    with pytest.raises(ValueError, match=rf"p has the (samples 0 to 9|steps 1 to 2), not {number}"):
        getattr(inspect, show)(data, tokenizer, number, 4)
