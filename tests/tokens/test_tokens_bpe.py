"""The encoder against Hugging Face `tokenizers`, id by id: nasty texts, odd vocabularies, every code point, long words."""

import copy
import functools
import importlib.util
import io
import itertools
import json
import pickle
import random
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tokenizers
import zstandard
from tokenizers import AddedToken, models, normalizers, pre_tokenizers, trainers

from kernels import bpe as kernels
from moxin.tokens import bpe
from moxin.tokens.bpe import Encoder, Unsupported
from moxin.tokens.tokenizer import BYTE_TOKENS, CONTROL_TOKENS, SPLIT, Tokenizer

ROOT = Path(__file__).resolve().parents[2]
CORPUS = ROOT.parent / "shared" / "data" / "corpus"
SMALL = 1 << 20
PREPEND = {
    "type": "Sequence",
    "normalizers": [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ],
}
EDGES = [
    *[
        "",
        " ",
        "  ",
        "   ",
        "\n",
        "\0",
        "▁",
        "▁▁",
        " ▁",
        "▁ ",
        "a",
        " a",
        "  a",
        "a ",
        "a  ",
        "▁a",
        " \n",
        "\n ",
    ],
    *[
        "\n\n",
        "\r\n \t\r x",
        "a \n b",
        "  \n  \n  x",
        "\u00a0 x",
        "\u2003\u2003x",
        "\u2003 x ",
        "1 2  3",
        "12345 6",
    ],
    *[
        "don't we'll I'm they'Re 've'",
        "'s 't'LL",
        "''s",
        " 's",
        "'",
        "a'",
        "e\u0301\u0323 \u0323\u0301",
        "Å\u212b",
    ],
    *[
        "\u1100\u1161\u11a8",
        "<s>",
        "</s><unk>",
        "<0x41>",
        " <0x0A><|user|>",
        "<|endoftext|>x",
        "abcdefghijklmno",
    ],
    *["abcdefghijklmnop", "=" * 99, "東京" * 40, "東", "😀👩‍👩‍👧‍👦🇲🇽", "naïve Straße", "नमस्ते दुनिया"],
    *["\ufeffx", "\U0010ffff", "\ue000", "x" * 15 + "é"],
]
_TEXT = """the of and to in is that for it as was with be by on not he his but at are this have from or had an they which
one you were all her she there would their we him been has when who will no more if out so up said what its about than into
them can only other new some could time these two may then do first any my now such like our over man me even most made
after also did many off before must well back through years where much your way down should because long each just state
people those too mr how little good world make very year still see own work men day get here old life both between being
Größe naïve café Москва город слово привет мир 東京 日本語 中文 नमस्ते दुनिया ελληνικά"""
WORDS = _TEXT.split()


def judge(spec: dict[str, Any]) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer.from_str(json.dumps(spec))
    backend.encode_special_tokens = True
    return backend


def rows(ids: np.ndarray, starts: np.ndarray) -> list[list[int]]:
    assert (ids.dtype, starts.dtype) == (np.uint32, np.int64)
    assert starts[0] == 0
    assert starts[-1] == len(ids)
    return [ids[a:b].tolist() for a, b in itertools.pairwise(starts)]


def check(encoder: Encoder, backend: tokenizers.Tokenizer, texts: Sequence[str]) -> None:
    ours = rows(*encoder.encode(pa.array(texts, pa.large_string())))
    theirs = [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]
    assert len(ours) == len(theirs)
    for text, mine, right in zip(texts, ours, theirs, strict=True):
        assert mine == right, repr(text[:300])


def random_texts(seed: int, n: int, longest: int = 40) -> Iterator[str]:
    """Characters of every kind: all planes, blanks, control characters, combining marks, token names, words, repeats."""
    rng = random.Random(seed)
    alphabets: list[Callable[[], str]] = [
        lambda: chr(rng.randrange(0xD800)),
        lambda: chr(rng.randrange(0xE000, 0x110000)),
        lambda: chr(rng.randrange(0x80)),
        lambda: rng.choice(" \t\n\r\v\f\x1c\x85\u00a0\u2003\u200b\u2028\ufeff▁\0\u0301\u0327"),
        lambda: rng.choice([*CONTROL_TOKENS, *BYTE_TOKENS, "<|", "|>", "<0x", ">", "<|endoftext|>", "<unk>"]),
        lambda: rng.choice(WORDS) + rng.choice(["", " ", " ", "\n", ", ", ". ", "'s ", "▁"]),
        lambda: rng.choice(" \n=-#.é中1a▁") * rng.choice([1, 2, 3, 7, 8, 15, 16, 17, 30]),
        lambda: chr(
            rng.choice([0x41, 0xC0, 0x400, 0x900, 0x3040, 0x4E00, 0xAC00, 0x1100]) + rng.randrange(64)
        ),
    ]
    for _ in range(n):
        kinds = rng.sample(alphabets, rng.randrange(1, len(alphabets)))
        yield "".join(rng.choice(kinds)() for _ in range(rng.randrange(longest)))


def prose(seed: int, n: int) -> list[str]:
    rng = random.Random(seed)
    ends = [" ", " ", " ", " ", ", ", ".\n", "\n    ", " (", ") ", "  ", " 1", "23 "]
    return ["".join(rng.choice(WORDS) + rng.choice(ends) for _ in range(60)) for _ in range(n)]


@functools.cache
def own() -> dict[str, Any]:
    spec: dict[str, Any] = json.loads(Tokenizer.train(prose(1, 100), 900)._backend.to_str())
    return spec


@functools.cache
def byte_level() -> dict[str, Any]:
    """GPT-NeoX in small: NFC, GPT-2's split, runs of spaces as added tokens that are not special."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=["<|endoftext|>", "<|padding|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(prose(2, 100), trainer)
    backend.add_tokens([AddedToken(" " * n, normalized=True) for n in range(24, 1, -1)])
    spec: dict[str, Any] = json.loads(backend.to_str())
    return spec


@functools.cache
def meta() -> dict[str, Any]:
    """Llama in small: byte tokens and "▁", trained on words, of which some end in "▁▁" or a line end."""
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=["<unk>", "<s>", "</s>", *BYTE_TOKENS],
        initial_alphabet=["▁"],
        limit_alphabet=60,
        show_progress=False,
    )
    backend.train_from_iterator(prose(3, 100), trainer)
    spec: dict[str, Any] = json.loads(backend.to_str())
    spec["added_tokens"] = spec["added_tokens"][:3]
    spec |= {"pre_tokenizer": None, "normalizer": PREPEND}
    for token in ["▁▁", "▁▁▁▁"]:
        spec["model"]["vocab"].setdefault(token, len(spec["model"]["vocab"]))
        spec["model"]["merges"].append([token[: len(token) // 2]] * 2)
    return spec


@functools.cache
def mistral() -> dict[str, Any]:
    """The tokenizer of Mistral 7B from the package mistral-common, as `transformers` converts it."""
    pytest.importorskip("sentencepiece")
    package = importlib.util.find_spec("mistral_common")
    if package is None or package.origin is None:
        pytest.skip("mistral-common is not installed")
    from sentencepiece import sentencepiece_model_pb2

    proto: Any = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    proto.ParseFromString((Path(package.origin).parent / "data" / "tokenizer.model.v1").read_bytes())
    vocab = {piece.piece: id for id, piece in enumerate(proto.pieces)}
    merges = [
        (-piece.score, vocab[left], vocab[right], left, right)
        for piece in proto.pieces
        for at in range(1, len(piece.piece))
        if (left := piece.piece[:at]) in vocab and (right := piece.piece[at:]) in vocab
    ]
    model = models.BPE(
        vocab,
        [(left, right) for *_, left, right in sorted(merges)],
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    )
    spec: dict[str, Any] = json.loads(tokenizers.Tokenizer(model).to_str())
    return spec | {"normalizer": PREPEND}


FAMILIES = [own, byte_level, meta, mistral]


def changed(spec: dict[str, Any], **model: Any) -> dict[str, Any]:
    """A copy whose model, or another section where it has that name, is changed."""
    spec = copy.deepcopy(spec)
    for name, value in model.items():
        (spec if name in spec else spec["model"])[name] = value
    return spec


def metaspace(scheme: str, split: bool) -> dict[str, Any]:
    return {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split}


VARIANTS: dict[str, Callable[[], dict[str, Any]]] = {
    **{family.__name__: family for family in FAMILIES},
    **{
        f"metaspace-{scheme}-{split}": lambda scheme=scheme, split=split: changed(
            meta(), normalizer=None, pre_tokenizer=metaspace(scheme, split)
        )
        for scheme in ("first", "always", "never")
        for split in (True, False)
    },
    "replace": lambda: changed(meta(), normalizer=PREPEND["normalizers"][1]),
    "bytes missing": lambda: changed(meta(), vocab=without(meta(), "<0x0A>", "<0xE4>", "<0x00>")),
    "no unk": lambda: changed(meta(), vocab=without(meta(), "<0x0A>", "<0xE4>"), unk_token=None),
    "unk not fused": lambda: changed(meta(), byte_fallback=False, fuse_unk=False),
    "unk fused": lambda: changed(meta(), byte_fallback=False),
    "split, unk": lambda: changed(
        meta(), normalizer=None, pre_tokenizer=metaspace("first", True), byte_fallback=False
    ),
    "own, whole words first": lambda: changed(
        own(), ignore_merges=True, merges=own()["model"]["merges"][::3]
    ),
    "byte level, whole words first": lambda: changed(
        byte_level(), ignore_merges=True, merges=byte_level()["model"]["merges"][::3]
    ),
    "byte level without NFC and spaces": lambda: changed(byte_level(), normalizer=None, added_tokens=[]),
    "runs of 3 and 7 spaces": lambda: changed(
        byte_level(),
        added_tokens=[t for t in byte_level()["added_tokens"] if len(t["content"]) in (3, 7, 13)],
    ),
}


def without(spec: dict[str, Any], *tokens: str) -> dict[str, int]:
    return {token: id for token, id in spec["model"]["vocab"].items() if token not in tokens}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_text_has_the_ids_of_hugging_face(name: str) -> None:
    spec = VARIANTS[name]()
    backend = judge(spec)
    texts = [*EDGES, *prose(4, 20), *random_texts(5, 1500), *(f"a {text}" for text in EDGES)]
    check(Encoder(spec, SMALL), backend, texts)
    check(Encoder(spec, cache_bytes=1), backend, texts)  # forgets all the time


@pytest.mark.parametrize("family", FAMILIES)
def test_long_words_are_not_quadratic_and_are_exact(family: Callable[[], dict[str, Any]]) -> None:
    rng = random.Random(6)
    letters = "".join(rng.choice(WORDS) for _ in range(20_000))
    texts = [
        *[
            "a" * 100_000,
            letters,
            " " * 50_000,
            "\n" * 20_000,
            "東京日本語中文" * 3000,
            "=" * 30_001,
            "ab" * 40_000,
        ],
        *[
            "".join(rng.choice("theandof") for _ in range(n))
            for n in [*range(40, 60), 1023, 1024, 1025, 9000]
        ],
    ]
    spec = family()
    check(Encoder(spec, SMALL), judge(spec), texts)


def random_spec(rng: random.Random) -> dict[str, Any]:
    """A tokenizer whose merges are drawn by lot, so that they reach across anything."""
    style = rng.choice(["own", "bytes", "prepend", "metaspace"])
    alphabet = rng.sample([*"abAB1.,'<>x0\n\t▁", "é", "中", "\u0301", "😀", "\u00a0"], rng.randrange(3, 12))
    if style == "bytes":
        alphabet = rng.sample(bpe._byte_chars()[:128], 20) + bpe._byte_chars()[128:]
        alphabet += ["Ġ", "a", "b", "1", "."]
    elif style == "own":
        alphabet.append(" ")
    else:
        alphabet.append("▁")
    with_bytes = style != "bytes" and rng.random() < 0.7
    with_unknown = rng.random() < 0.5
    tokens = dict.fromkeys(["<unk>"] * with_unknown + [*BYTE_TOKENS] * with_bytes + alphabet)
    if with_bytes and rng.random() < 0.3:
        tokens = {token: None for token in tokens if rng.random() < 0.95 or token == "▁"}
    names = [name for name in tokens if len(name) == 1 or rng.random() < 0.1]
    merges: dict[tuple[str, str], None] = {}
    for _ in range(rng.randrange(120)):
        left, right = rng.choice(names), rng.choice(names)
        if len(left + right) < 12:
            merges[left, right] = None
            if left + right not in tokens:
                tokens[left + right] = None
                names.append(left + right)
    vocab = {token: id for id, token in enumerate(tokens)}
    spec = {"own": own, "bytes": byte_level}.get(style, meta)()
    ranked = list(merges)
    if rng.random() < 0.5:
        rng.shuffle(ranked)
    spec = changed(
        spec,
        added_tokens=[],
        vocab=vocab,
        merges=[list(pair) for pair in ranked],
        unk_token="<unk>" if "<unk>" in vocab else None,
        fuse_unk=rng.random() < 0.5,
        byte_fallback=style != "bytes",
        ignore_merges=style in ("own", "bytes") and rng.random() < 0.3,
    )
    if style == "metaspace":
        spec["normalizer"] = None
        scheme = rng.choice(["first", "always", "never"])
        spec["pre_tokenizer"] = metaspace(scheme, rng.random() < 0.5)
    return spec


def test_merges_drawn_by_lot_are_never_cut_apart() -> None:
    rng = random.Random(7)
    for _ in range(150):
        spec = random_spec(rng)
        symbols = [
            *"  aabbAB1.,'<>x0\n\t▁",
            "é",
            "中",
            "\u0301",
            "😀",
            "\u00a0",
            "q",
            "ab",
            "<0x41>",
            "aaaaaaaa",
        ]
        texts = ["".join(rng.choices(symbols, k=rng.randrange(60))) for _ in range(60)]
        try:
            check(Encoder(spec, SMALL), judge(spec), texts)
        except AssertionError:
            print(json.dumps(spec, ensure_ascii=False))
            raise


def spread(points: Iterable[int], form: str, per_text: int = 128) -> list[str]:
    """Texts with every code point in a context: `form` with `{c}` for it."""
    chars = [chr(point) for point in points if not 0xD800 <= point < 0xE000]
    return [
        "".join(form.replace("{c}", char) for char in chars[k : k + per_text])
        for k in range(0, len(chars), per_text)
    ]


@pytest.mark.parametrize("family", [own, byte_level])
def test_the_class_of_every_code_point_is_that_of_hugging_face(family: Callable[[], dict[str, Any]]) -> None:
    """Where only digits are known and unknown characters of a piece are fused, ids show where pieces begin and end."""
    vocab = {"<unk>": 0, "1": 1}
    spec = changed(
        family(),
        vocab=vocab,
        merges=[],
        byte_fallback=False,
        unk_token="<unk>",
        fuse_unk=True,
        added_tokens=[],
        normalizer=None,
    )
    # All of the planes that have numbers and spaces, and some of each other one.
    points = [
        *range(0x20000),
        *range(0x20000, 0x40000, 7),
        *range(0xE0000, 0xE1000),
        *range(0x40000, 0x110000, 251),
        0x10FFFF,
    ]
    check(Encoder(spec, SMALL), judge(spec), spread(points, "é{c}1!{c}1{c}{c}1{c}\n1 {c}1"))


def test_normal_form_c_is_that_of_hugging_face_for_every_code_point() -> None:
    spec = changed(byte_level(), merges=byte_level()["model"]["merges"][:50])
    backend, encoder = judge(spec), Encoder(spec, SMALL)
    # One code point a text in places where combining is to be expected, else some together, as each text stands for itself.
    check(encoder, backend, spread(range(0x3400), "{c}\u0301a{c}\u0323", per_text=1))
    check(encoder, backend, spread(range(0x3400, 0x20000), "a{c}\u0301", per_text=8))
    check(encoder, backend, spread([*range(0x20000, 0x110000, 61), *range(0x2F800, 0x2FA20)], "a{c}"))
    classes = bpe._nfc_classes()
    allowed = [point for point in np.flatnonzero(classes < 255).tolist() if not 0xD800 <= point < 0xE000]
    marks = [point for point in allowed if classes[point]]
    rng = random.Random(8)
    texts = ["".join(map(chr, rng.choices(allowed, k=100))) for _ in range(500)]
    texts += ["a" + "".join(map(chr, rng.choices(marks, k=rng.randrange(1, 4)))) for _ in range(3000)]
    texts += ["e" + chr(rng.choice(marks)) + "\u0301" for _ in range(500)]
    check(encoder, backend, texts)


def test_every_character_of_a_large_vocabulary_and_of_none() -> None:
    spec = mistral()
    check(Encoder(spec, SMALL), judge(spec), spread(range(0, 0x30000, 3), "x{c}y {c}{c}"))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.skipif(not CORPUS.is_dir(), reason="../shared/data/corpus is not there")
def test_real_documents(family: Callable[[], dict[str, Any]]) -> None:
    texts = []
    for file in sorted(CORPUS.glob("*.jsonl.zst")):
        with zstandard.open(file, "rt", encoding="utf-8") as lines:
            assert isinstance(lines, io.TextIOWrapper)
            documents = [json.loads(line)["text"] for line in itertools.islice(lines, 400)]
        texts += [document[: 200_000 // len(documents)] for document in documents]
    spec = family()
    check(Encoder(spec), judge(spec), texts)


@pytest.mark.parametrize("family", FAMILIES[:3])
def test_results_depend_neither_on_batches_nor_on_arrow(family: Callable[[], dict[str, Any]]) -> None:
    texts = [*EDGES, *random_texts(9, 300)]
    encoder = Encoder(family(), SMALL)
    right = rows(*encoder.encode(pa.array(texts, pa.large_string())))
    assert rows(*encoder.encode(pa.array(texts, pa.string()))) == right
    assert [rows(*encoder.encode(pa.array([text])))[0] for text in texts] == right
    column = pa.array(["x y", *texts, "z"]).slice(1, len(texts))
    assert rows(*encoder.encode(column)) == right
    assert rows(*encoder.encode(column.slice(7, 30))) == right[7:37]
    assert rows(*encoder.encode(column.slice(3, 0))) == []
    assert rows(*encoder.encode(pa.array([], pa.string()))) == []
    assert rows(*encoder.encode(pa.array(["", ""]))) == [[], []]
    holes = pa.array([None, *texts[:50], None])
    assert rows(*encoder.encode(holes)) == [[], *right[:50], []]
    assert rows(*encoder.encode(holes.slice(1))) == [*right[:50], []]
    hidden = pa.Array.from_buffers(
        pa.string(), 2, [pa.py_buffer(b"\x02"), *pa.array(["gone", "here"]).buffers()[1:]]
    )
    assert rows(*encoder.encode(hidden)) == [[], *rows(*encoder.encode(pa.array(["here"])))]
    exact = pa.Array.from_buffers(  # nothing lies behind the last byte
        pa.string(),
        2,
        [
            None,
            pa.py_buffer(np.array([0, 3, 20], np.int32)),
            pa.py_buffer(bytearray(b"abc" + b"the of" * 3)[:20]),
        ],
    )
    assert rows(*encoder.encode(exact)) == rows(*encoder.encode(pa.array(exact.to_pylist())))
    assert rows(*pickle.loads(pickle.dumps(encoder)).encode(column)) == right


def test_threads_may_share_an_encoder() -> None:
    texts = pa.array([*EDGES, *prose(10, 50)])
    encoder = Encoder(own(), cache_bytes=1)
    right = rows(*encoder.encode(texts))
    wrong = []

    def work() -> None:
        for _ in range(20):
            if rows(*encoder.encode(texts)) != right:
                wrong.append(True)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_cache_keeps_to_its_memory() -> None:
    for n_bytes in (1 << 14, 100_000, SMALL, 64 << 20):
        cache = kernels.empty_cache(n_bytes)
        assert 0.7 * n_bytes < sum(part.nbytes for part in cache) < max(1.01 * n_bytes, n_bytes + 300)
        assert cache.table.ctypes.data % 64 == 0
        assert (cache.table.size // 4).bit_count() == 1
    assert sum(part.nbytes for part in kernels.empty_cache(0)) < 1 << 14


def test_the_split_is_that_of_our_tokenizers() -> None:
    assert bpe.SPLIT == SPLIT


STAR = {
    "id": 5000,
    "content": "*",
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
}
UNSUPPORTED: list[tuple[str, Callable[[], dict[str, Any]]]] = [
    ("does not read it", lambda: {"model": {}}),
    (
        "model.type is WordLevel",
        lambda: changed(own(), model={"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}),
    ),
    ("model.dropout", lambda: changed(own(), dropout=0.1)),
    ("model.continuing_subword_prefix", lambda: changed(meta(), continuing_subword_prefix="##", merges=[])),
    ("model.end_of_word_suffix", lambda: changed(own(), end_of_word_suffix="</w>")),
    (
        "not that of Tokenizer.train",
        lambda: changed(own(), pre_tokenizer=own()["pre_tokenizer"] | {"pattern": {"Regex": "x"}}),
    ),
    (
        "not that of Tokenizer.train",
        lambda: changed(own(), pre_tokenizer=own()["pre_tokenizer"] | {"invert": True}),
    ),
    ("normalizer NFC with pre_tokenizer Split", lambda: changed(own(), normalizer={"type": "NFC"})),
    (
        "added token '\\*'",
        lambda: changed(own(), added_tokens=[*own()["added_tokens"], STAR | {"special": False}]),
    ),
    ("added token '\\*'", lambda: changed(byte_level(), added_tokens=[STAR | {"special": False}])),
    ("added token '  '", lambda: changed(meta(), added_tokens=[STAR | {"special": False, "content": "  "}])),
    (
        "add_prefix_space",
        lambda: changed(
            byte_level(), pre_tokenizer=byte_level()["pre_tokenizer"] | {"add_prefix_space": True}
        ),
    ),
    ("normalizer NFKC", lambda: changed(byte_level(), normalizer={"type": "NFKC"})),
    ("byte_fallback", lambda: changed(byte_level(), byte_fallback=True)),
    ("ignore_merges", lambda: changed(meta(), ignore_merges=True)),
    ("not in the vocabulary", lambda: changed(meta(), vocab={"<unk>": 0, "a": 1}, merges=[])),
    ("pre_tokenizer Whitespace", lambda: changed(own(), pre_tokenizer={"type": "Whitespace"})),
    ("Prepend", lambda: changed(meta(), normalizer=None)),
    ("Prepend", lambda: changed(meta(), normalizer={"type": "Lowercase"})),
    (
        "replacement",
        lambda: changed(
            meta(), normalizer=None, pre_tokenizer=metaspace("first", True) | {"replacement": "_"}
        ),
    ),
    ("with pre_tokenizer Metaspace", lambda: changed(meta(), pre_tokenizer=metaspace("first", True))),
]


@pytest.mark.parametrize(("reason", "spec"), UNSUPPORTED)
def test_what_is_not_covered_is_named(reason: str, spec: Callable[[], dict[str, Any]]) -> None:
    with pytest.raises(Unsupported, match=reason):
        Encoder(spec())
