"""A SentencePiece `.model` (arXiv 1808.06226) as a tokenizer.json, with the ids that SentencePiece gives.

A model file keeps scores, a tokenizer.json an order of merges: by score, then by the pieces' ids, as in the conversion that
the files of Llama and Mistral were published with. With it Mistral's 32,000 pieces give SentencePiece's ids for all of
1,246 documents (7.1 million tokens). transformers 5.23 orders the merges of a bare `.model` by ids alone, and gives others
for 1,091 of them: pieces of several blanks have low ids and the lowest scores.
"""

import base64
import importlib
import re
from typing import Any

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Types of pieces: https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto"""
ADDED = (UNKNOWN, CONTROL, USER_DEFINED)
UNIGRAM, BPE = 1, 2
SPACE = "▁"


def convert(data: bytes, where: str) -> tuple[dict[str, Any], dict[str, str]]:
    """(tokenizer.json parsed, names of bos, eos and pad) of the contents of a `.model` file.

    A text cannot become a control, unknown or byte piece by spelling its name. Pieces that the model's author defined are
    found in texts before all else; after one, and only there, the ids are those of transformers, which begins anew with "▁".

    Raises `ValueError`, naming `where`, for what is no such model, what has no byte fallback (its round trip loses rare
    characters), and for settings that a tokenizer.json does not have.
    """
    try:
        proto: Any = importlib.import_module("sentencepiece.sentencepiece_model_pb2")
    except ImportError as error:
        raise ValueError(
            f'{where}: a SentencePiece model needs more packages to be read: pip install "moxin[tokenizers]" ({error})'
        ) from error
    from google.protobuf.message import DecodeError  # what the module above needs

    try:
        model = proto.ModelProto.FromString(data)
    except DecodeError as error:
        raise ValueError(f"{where}: not a SentencePiece model ({error})") from error
    if not model.pieces:
        raise ValueError(f"{where}: not a SentencePiece model (it has no pieces)")
    pieces, trainer, normalizer = list(model.pieces), model.trainer_spec, model.normalizer_spec
    refused = {
        f"model_type = {trainer.model_type}": trainer.model_type not in (UNIGRAM, BPE),
        "byte_fallback = false": [piece.type for piece in pieces].count(BYTE) != 256,
        "treat_whitespace_as_suffix": trainer.treat_whitespace_as_suffix,
        "escape_whitespaces = false": not normalizer.escape_whitespaces,
        "unused pieces": any(piece.type == UNUSED for piece in pieces),
        "a denormalizer": bool(model.denormalizer_spec.precompiled_charsmap),
    }
    if why := [name for name, holds in refused.items() if holds]:
        raise ValueError(f"{where}: a SentencePiece model with {', '.join(why)} has no equal tokenizer.json")
    spec = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(id, piece) for id, piece in enumerate(pieces) if piece.type in ADDED],
        "normalizer": _normalizer(normalizer),
        "pre_tokenizer": None if trainer.model_type == BPE else _guard(pieces),
        "post_processor": _begin(pieces, trainer.bos_id),
        "decoder": _decoder(normalizer.add_dummy_prefix),
        "model": (_bpe if trainer.model_type == BPE else _unigram)(pieces, trainer),
    }
    ids = {"bos": trainer.bos_id, "eos": trainer.eos_id, "pad": trainer.pad_id}
    return spec, {name: pieces[id].piece for name, id in ids.items() if 0 <= id < len(pieces)}


def _added(id: int, piece: Any) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": id, "content": piece.piece, **flags, "special": piece.type != USER_DEFINED}


def _normalizer(spec: Any) -> dict[str, Any]:
    steps: list[dict[str, Any]] = []
    if spec.precompiled_charsmap:
        charsmap = base64.b64encode(spec.precompiled_charsmap).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": charsmap})
    if spec.remove_extra_whitespaces:
        steps += [_replace({"Regex": f"\\A +|[ {SPACE}]+\\z"}, ""), _replace({"Regex": " {2,}"}, " ")]
    if spec.add_dummy_prefix:
        steps.append({"type": "Prepend", "prepend": SPACE})
    return {"type": "Sequence", "normalizers": [*steps, _replace({"String": " "}, SPACE)]}


def _replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def _guard(pieces: list[Any]) -> dict[str, Any]:
    """Cuts the names of pieces that no text may become after their first character.

    `tokenizers` looks for all pieces of a unigram model in a text, SentencePiece for the normal ones.
    """
    names = [piece.piece for piece in pieces if piece.type in (UNKNOWN, CONTROL)]
    rest = [f"{re.escape(name[0])}(?={re.escape(name[1:])})" for name in names]
    pattern = "|".join([*rest, "<(?=0x[0-9A-F]{2}>)"])
    return {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "MergedWithPrevious",
        "invert": False,
    }


def _begin(pieces: list[Any], bos_id: int) -> dict[str, Any] | None:
    """What transformers' tokenizer(text) gives: the begin token, where there is one, before a text."""
    if not 0 <= bos_id < len(pieces):
        return None
    name = pieces[bos_id].piece
    token = {"SpecialToken": {"id": name, "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [token, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [
            token,
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": name, "type_id": 1}},
            {"Sequence": {"id": "B", "type_id": 1}},
        ],
        "special_tokens": {name: {"id": name, "ids": [bos_id], "tokens": [name]}},
    }


def _decoder(dummy_prefix: bool) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [
        _replace({"String": SPACE}, " "),
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if dummy_prefix:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}


def _bpe(pieces: list[Any], trainer: Any) -> dict[str, Any]:
    normal = {piece.piece: id for id, piece in enumerate(pieces) if piece.type == NORMAL}
    merges = []
    for text, id in normal.items():
        for cut in range(1, len(text)):
            left, right = normal.get(text[:cut]), normal.get(text[cut:])
            if left is not None and right is not None:
                merges.append((-pieces[id].score, id, left, right))
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": trainer.unk_piece,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": True,
        "ignore_merges": False,
        "vocab": {piece.piece: id for id, piece in enumerate(pieces)},
        "merges": [[pieces[left].piece, pieces[right].piece] for _, _, left, right in sorted(merges)],
    }


def _unigram(pieces: list[Any], trainer: Any) -> dict[str, Any]:
    vocab = [(piece.piece, piece.score) for piece in pieces]
    return {"type": "Unigram", "unk_id": trainer.unk_id, "vocab": vocab, "byte_fallback": True}
