"""SentencePiece models: the ids and texts of SentencePiece itself and of transformers' own conversion."""

import io
import json
import random
import re
import sys
from pathlib import Path

import pytest
import tokenizers
import zstandard
from test_tokens_tokenizer import BYTE_TOKENS, CHAT, TEXTS, by_transformers, random_texts

from moxin.tokens.sentencepiece import convert
from moxin.tokens.tokenizer import Tokenizer

spm = pytest.importorskip("sentencepiece")
CORPUS = Path(__file__).resolve().parents[3] / "shared" / "data" / "corpus"
NAMES = ["<unk>", "<s>", "</s>", "<sep>", *BYTE_TOKENS]


def mistral_file(name):
    return Path(pytest.importorskip("mistral_common").__path__[0]) / "data" / name


@pytest.fixture(scope="module")
def file():
    """Mistral's 32,000 pieces."""
    return mistral_file("tokenizer.model.v1")


@pytest.fixture(scope="module")
def mistral(file):
    return Tokenizer.load(str(file))


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """A file with a SentencePiece model that was trained with some options."""
    folder = tmp_path_factory.mktemp("spm")
    rng = random.Random(8)
    words = re.findall(r"\S+", " ".join(TEXTS[:5])) + [
        "".join(rng.choices("abcdeéß東0123", k=5)) for _ in range(300)
    ]
    lines = [" ".join(rng.choices(words, k=12)) for _ in range(2000)]

    def make(**options):
        path = folder / f"{len(list(folder.iterdir()))}.model"
        defaults = {
            "model_type": "bpe",
            "vocab_size": 450,
            "hard_vocab_limit": False,
            "byte_fallback": True,
            "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False,
            "minloglevel": 2,
            "num_threads": 1,
        }
        writer = io.BytesIO()
        spm.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=writer, **(defaults | options)
        )
        path.write_bytes(writer.getvalue())
        return path

    return make


def differing(path, tokenizer, texts):
    theirs = spm.SentencePieceProcessor(str(path)).encode(texts)
    ours = tokenizer.encode_batch(texts)
    return [text for text, a, b in zip(texts, theirs, ours, strict=True) if a != b]


HARD = [
    "",
    " ",
    "   ",
    "▁",
    " a",
    "a ",
    "a  b",
    "\n",
    "\t",
    "<s>",
    "a</s>b",
    "<unk>",
    "<0x41>",
    "e\u0301",
    "x" * 3000,
]


@pytest.mark.parametrize("version", ["tokenizer.model.v1", "mistral_instruct_tokenizer_240323.model.v3"])
def test_mistral_has_the_ids_and_texts_of_sentencepiece(version):
    path = mistral_file(version)
    tokenizer, judge = Tokenizer.load(str(path)), spm.SentencePieceProcessor(str(path))
    assert tokenizer.vocab_size == judge.get_piece_size()
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, 2)
    assert tokenizer.frame_ids == ([1], [2])
    assert tokenizer.control_ids == {i for i in range(judge.get_piece_size()) if judge.is_control(i)}
    texts = [*HARD, *TEXTS[:5], *random_texts(seed=9, n=3000)]
    assert differing(path, tokenizer, texts) == []
    ids = tokenizer.encode_batch(texts)
    assert tokenizer.decode_batch(ids) == judge.decode(ids)
    assert tokenizer.control_ids.isdisjoint(id for row in ids for id in row)
    assert tokenizer.round_trip(texts) == [i for i, text in enumerate(texts) if "▁" in text]


@pytest.mark.skipif(not CORPUS.is_dir(), reason="../shared/data/corpus is not there")
def test_mistral_has_the_ids_of_sentencepiece_on_real_documents(file, mistral):
    texts = []
    for path in sorted(CORPUS.glob("*.zst")):
        with zstandard.open(path, "rt", encoding="utf-8") as lines:
            texts += [json.loads(line)["text"][:20_000] for _, line in zip(range(60), lines, strict=False)]
    assert len(texts) > 200
    assert differing(file, mistral, texts) == []
    assert mistral.round_trip(texts) == [i for i, text in enumerate(texts) if "▁" in text]


def test_mistral_is_transformers_own_conversion(file, mistral, tmp_path):
    """Its merges by score, in its Llama tokenizer; a "▁" before a text's own blank is what published files say otherwise."""
    from transformers import LlamaTokenizer
    from transformers.convert_slow_tokenizer import generate_merges

    judge = spm.SentencePieceProcessor(str(file))
    pieces = [judge.id_to_piece(id) for id in range(judge.get_piece_size())]
    scores = {piece: judge.get_score(id) for id, piece in enumerate(pieces)}
    vocab = {piece: id for id, piece in enumerate(pieces)}
    merges = generate_merges(vocab, scores)
    ours = [tuple(pair) for pair in json.loads(mistral._backend.to_str())["model"]["merges"]]
    assert sorted(ours) == sorted(merges)
    theirs = LlamaTokenizer(vocab=vocab, merges=merges, legacy=True)
    texts = [
        text for text in [*HARD, *TEXTS[:5], *random_texts(seed=10, n=1000)] if text[:1] not in (" ", "▁")
    ]
    texts = [text for text in texts if not any(name in text for name in NAMES[:3])]
    assert [theirs(text, add_special_tokens=False).input_ids for text in texts] == mistral.encode_batch(texts)

    mistral.save(str(tmp_path))
    saved = by_transformers(tmp_path)
    texts += [" a", "   ", "▁"]
    assert [saved(text).input_ids for text in texts] == [[1, *ids] for ids in mistral.encode_batch(texts)]
    assert [saved.decode(ids) for ids in mistral.encode_batch(texts)] == mistral.decode_batch(
        mistral.encode_batch(texts)
    )
    assert Tokenizer.load(str(tmp_path)).fingerprint == mistral.fingerprint
    ids, _ = mistral.render(CHAT)
    assert saved.apply_chat_template(CHAT, return_dict=True)["input_ids"] == ids


def test_a_folder_may_hold_the_model(file, mistral, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(file.read_bytes())
    assert Tokenizer.load(str(tmp_path)).fingerprint == mistral.fingerprint
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"pad_token": "<unk>"}))
    assert Tokenizer.load(str(tmp_path)).pad_id == 0


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("squeeze", [False, True])
@pytest.mark.parametrize("prefix", [False, True])
def test_settings_of_a_model_give_the_ids_of_sentencepiece(train, kind, squeeze, prefix):
    path = train(model_type=kind, remove_extra_whitespaces=squeeze, add_dummy_prefix=prefix)
    tokenizer = Tokenizer.load(str(path))
    texts = [*HARD[:-1], "  a  b \n c ▁ ", *TEXTS[:5], *random_texts(seed=11, n=1000)]
    assert differing(path, tokenizer, texts) == []
    ids = tokenizer.encode_batch(texts)
    assert tokenizer.control_ids.isdisjoint(id for row in ids for id in row)
    if not squeeze:
        assert tokenizer.round_trip(texts) == [i for i, text in enumerate(texts) if "▁" in text]


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_normalisation_is_taken_along(train, kind):
    path = train(model_type=kind, normalization_rule_name="nmt_nfkc")
    texts = ["ﬁne ① Ｗｉｄｅ\tgap", "a\u00a0b", "½ x²", *TEXTS[:2]]
    tokenizer = Tokenizer.load(str(path))
    assert differing(path, tokenizer, texts) == []
    assert tokenizer.round_trip(texts)[:3] == [0, 1, 2]


def test_pieces_defined_by_the_author_are_read_in_texts_and_control_pieces_are_not(train):
    path = train(user_defined_symbols=["<sep>"], control_symbols=["<cls>"], add_dummy_prefix=False)
    tokenizer, judge = Tokenizer.load(str(path)), spm.SentencePieceProcessor(str(path))
    texts = ["a<sep>b", "<sep>", " <sep> <sep>x", "<cls>", "a<cls><sep>", *random_texts(seed=12, n=300)]
    assert differing(path, tokenizer, texts) == []
    assert judge.piece_to_id("<sep>") in tokenizer.encode("a<sep>b")
    assert judge.piece_to_id("<cls>") not in tokenizer.encode("a<cls>b")
    assert judge.piece_to_id("<cls>") in tokenizer.control_ids


def test_names_that_the_model_gives_its_document_tokens_are_used(train):
    path = train(pad_id=3, bos_id=-1, eos_piece="<end>", pad_piece="<fill>")
    tokenizer, judge = Tokenizer.load(str(path)), spm.SentencePieceProcessor(str(path))
    assert tokenizer.bos_id is None
    assert (tokenizer.eos_id, tokenizer.pad_id) == (judge.eos_id(), judge.pad_id())
    assert tokenizer.frame_ids == ([], [judge.eos_id()])


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"byte_fallback": False}, "byte_fallback = false"),
        ({"model_type": "char"}, "model_type = 4"),
        ({"treat_whitespace_as_suffix": True}, "treat_whitespace_as_suffix"),
    ],
)
def test_what_has_no_equal_tokenizer_json_is_refused(train, options, why):
    with pytest.raises(ValueError, match=rf"model with .*{why}.* has no equal tokenizer\.json"):
        Tokenizer.load(str(train(**options)))


def test_what_is_no_model_is_named(tmp_path):
    for data in (b"", b"IQ== 0\nIg== 1\n", b"\x0a\xff", b"{}"):
        (tmp_path / "tokenizer.model").write_bytes(data)
        with pytest.raises(ValueError, match=r"tokenizer\.model: not a SentencePiece model"):
            Tokenizer.load(str(tmp_path))


@pytest.mark.parametrize("missing", ["sentencepiece", "google.protobuf"])
def test_without_the_packages_the_fix_is_named(missing, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("sentencepiece")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ValueError, match=r'here: .*pip install "moxin\[tokenizers\]"'):
        convert(b"", "here")


def test_the_specification_is_what_tokenizers_writes(file):
    spec, names = convert(file.read_bytes(), "here")
    assert names == {"bos": "<s>", "eos": "</s>"}
    written = json.loads(tokenizers.Tokenizer.from_str(json.dumps(spec)).to_str())
    assert written == spec
