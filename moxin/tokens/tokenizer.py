"""A vocabulary, trained or given, whose control tokens no text can produce.

Which round trips are exact: with a tokenizer trained here, those of every Unicode text. Characters seldom seen in training
are spelled in UTF-8 byte tokens (`<0x00>` to `<0xFF>`), as in SentencePiece (arXiv 1808.06226); unlike there nothing is
normalised and a space stays a space. With a given one: GPT-2's those of every text; GPT-NeoX's and MPT's those of texts in
normal form C; Llama's and Mistral's those of texts without "▁", which they read as a space. `round_trip` finds the texts
that do not come back.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import tokenizers
from numpy.typing import NDArray

from moxin import storage
from moxin.config import digest
from moxin.tokens import backends, chat, sentencepiece, training
from moxin.tokens.chat import CHAT_TEMPLATE, END, ROLES, TEXT_TEMPLATE
from moxin.tokens.training import BYTE_TOKENS as BYTE_TOKENS
from moxin.tokens.training import CONTROL_TOKENS as CONTROL_TOKENS
from moxin.tokens.training import DEFAULT_NAMES
from moxin.tokens.training import N_RESERVED as N_RESERVED
from moxin.tokens.training import SPLIT as SPLIT

USUAL_NAMES = {
    "bos": ("<s>", "<|begin_of_text|>", "<bos>", "<|startoftext|>", "<|endoftext|>"),
    "eos": ("</s>", "<|end_of_text|>", "<eos>", "<|endoftext|>"),
    "pad": ("<pad>", "<|padding|>", "<|pad|>", "<|finetune_right_pad_id|>", "[PAD]"),
}
"""Looked for, in this order, where no file beside a vocabulary says what its document tokens are called."""
NAMING_FILES = ("tokenizer_config.json", "special_tokens_map.json")


class Tokenizer:
    """A `tokenizers.Tokenizer` with control tokens for documents and chats.

    `bos_id`, `eos_id` and `pad_id` are the document's control tokens. Where there is no begin token `bos_id` is None, where
    there is no padding token `pad_id` is `eos_id`. `end_id` ends a turn of a chat: `<|end|>`, or `eos_id` in a vocabulary
    without all chat tokens. `control_ids` are the ids that no text becomes. `vocab_size` is the number of rows an embedding
    needs: the largest id plus one. In a trained tokenizer the ids 0 to 6 are `CONTROL_TOKENS` and 7 to 262 the bytes; to a
    given one nothing is added.
    """

    bos_id: Any  # int, or None
    eos_id: int
    pad_id: int
    end_id: int

    def __init__(self, backend: tokenizers.Tokenizer, names: Mapping[str, str | None], where: str) -> None:
        """`names` of bos, eos and pad; None says that there is none, and one that is left out is looked for.

        Raises `ValueError`, naming `where`, for control tokens that are missing or that a text could produce.
        """
        backend.no_padding()
        backend.no_truncation()
        backend.encode_special_tokens = True  # "<s>" in a text is text
        vocabulary = backend.get_vocab(with_added_tokens=True)
        self._backend, self._where = backend, where
        self._names = _document_tokens(vocabulary, names, where)
        document = {role: vocabulary[name] for role, name in self._names.items() if name is not None}
        self.bos_id, self.eos_id, self.pad_id = document.get("bos"), document["eos"], document["pad"]
        roles = [*ROLES.values(), END]
        self._chat_ids = {name: vocabulary[name] for name in roles if name in vocabulary}
        if len(self._chat_ids) < len(roles):
            self._chat_ids = {}
        self.end_id = self._chat_ids.get(END, self.eos_id)
        self.vocab_size = max(vocabulary.values()) + 1
        spec = json.loads(backend.to_str())
        unknown = {_unknown(spec["model"])}  # a text becomes it by not being known, not by naming it
        added = {token["content"] for token in spec["added_tokens"] if token["special"]}
        named = {name for name in self._names.values() if name}
        self._control = sorted((added - unknown) | named | set(self._chat_ids))
        self.control_ids = frozenset(vocabulary[name] for name in self._control)
        self._inside = _inside(spec)
        self._choice: str = "hf"
        self._encode: backends.Encode | None = None
        self._built: dict[str, backends.Encode] = {}
        contexts = [name for control in self._control for name in (control, f"a{control}a", f" {control} ")]
        for text, ids in zip(contexts, self.encode_batch(contexts), strict=True):
            if not self.control_ids.isdisjoint(ids):
                raise ValueError(
                    f"{where}: the text {text!r} is read as a control token, so any user could write one; mark it "
                    'with "special": true under added_tokens'
                )

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickle, (self._backend.to_str(), self._names, self._where, self._choice)

    @property
    def fingerprint(self) -> str:
        """A hash of everything that decides the ids."""
        return digest({"tokenizer": self._backend.to_str(), "names": self._names})

    @property
    def spec(self) -> str:
        """The text of `tokenizer.json`."""
        return str(self._backend.to_str())

    @property
    def frame_ids(self) -> tuple[list[int], list[int]]:
        """The ids before and after a document: begin and end, or the end alone where there is no begin or it is the same."""
        begins = self.bos_id is not None and self.bos_id != self.eos_id
        return ([self.bos_id] if begins else []), [self.eos_id]

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, kind: str = "bpe") -> "Tokenizer":
        """A tokenizer of `kind` bpe or unigram, of at most `vocab_size` tokens; fewer where the texts do not give more.

        The result depends on the texts alone, not on their order. Raises `ValueError` where the control and byte tokens do
        not fit.
        """
        return cls(training.train(texts, vocab_size, kind), DEFAULT_NAMES, "trained tokenizer")

    @classmethod
    def load(cls, url: str) -> "Tokenizer":
        """The tokenizer of a `tokenizer.json`, of a SentencePiece `.model`, or of a folder with `tokenizer.json` or else
        `tokenizer.model`; a `tokenizer_config.json` or `special_tokens_map.json` beside it may name bos, eos and pad.

        Raises `ValueError` where there is none, where it cannot be read, or for control tokens as in the constructor.
        """
        base = storage.absolute(url).rpartition("/")[2]
        is_file = base.endswith((".json", ".model")) or ".model.v" in base
        files = [url] if is_file else [storage.join(url, f"tokenizer.{kind}") for kind in ("json", "model")]
        file = next((file for file in files if storage.exists(file)), None)
        if file is None:
            raise ValueError(
                f"{files[0]}: no such tokenizer; give a tokenizer.json, a SentencePiece .model, or a folder with one"
            )
        names: dict[str, str | None] = {}
        if file.endswith(".json"):
            text = storage.read_text(file)
        else:
            spec, said = sentencepiece.convert(storage.read_bytes(file), file)
            text = json.dumps(spec)
            names |= said
        try:
            backend = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # tokenizers raises nothing more specific
            raise ValueError(f"{file}: not a tokenizer.json of Hugging Face tokenizers ({error})") from error
        return cls(backend, names | _names_beside(file), file)

    def save(self, url: str) -> None:
        """Writes `tokenizer.json`, then `tokenizer_config.json`: a folder for `load` and transformers' AutoTokenizer."""
        storage.write_text(storage.join(url, "tokenizer.json"), self._backend.to_str(pretty=True) + "\n")
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **{f"{name}_token": token for name, token in self._names.items()},
            "clean_up_tokenization_spaces": False,
            "chat_template": self.chat_template,
        }
        storage.write_json(storage.join(url, "tokenizer_config.json"), config)

    def encode(self, text: str) -> list[int]:
        """Ids of a text, never a control token. Raises `ValueError` for half a surrogate pair, which is no Unicode text."""
        return self.encode_batch([text])[0]

    def begin(self, text: str) -> list[int]:
        """Ids of a text as a document begins: what a prompt is. An empty one is the token that ends documents, where
        they begin without one."""
        return [*self.frame_ids[0], *self.encode(text)] or [self.eos_id]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of many texts, on as many threads as `TOKENIZERS_PARALLELISM` and `RAYON_NUM_THREADS` allow."""
        return _encode(self._backend, texts)

    def choose(self, backend: str, sample: pa.Array) -> str:
        """Makes `encode_arrow` use a back-end of `moxin.tokens.backends`, with `auto` the fastest, and returns its name:
        `hf` where another does not give its ids for every document of `sample`; the first that differs is printed.

        Raises `ValueError` for a back-end named here that is not installed or does not cover this tokenizer.
        """
        self._choice, self._encode = backends.choose(
            backend, self._backend, sample, self._control, self._built
        )
        return self._choice

    def encode_arrow(self, texts: pa.Array) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """Ids of a column's texts, one after another, uint32[n_tokens], and where each text's begin, int64[n_texts + 1].

        Through the back-end that `choose` has chosen, in a copy that was pickled as well. A null is an empty text.
        """
        if self._encode is None:
            self._encode = backends.build(self._choice, self._backend)
        return self._encode(texts)

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """The text of ids; bytes that are not UTF-8 (a character cut in two) become U+FFFD."""
        return str(self._backend.decode(ids, skip_special_tokens=skip_special))

    def decode_batch(self, ids: Sequence[Sequence[int]], skip_special: bool = True) -> list[str]:
        return list(self._backend.decode_batch(ids, skip_special_tokens=skip_special))

    def round_trip(self, texts: Sequence[str]) -> list[int]:
        """Which of the texts decoding does not give back exactly."""
        back = self.decode_batch(self.encode_batch(texts))
        return [i for i, (text, again) in enumerate(zip(texts, back, strict=True)) if text != again]

    @property
    def chat_template(self) -> str:
        """Jinja with which transformers gives the ids of `render`."""
        if self._chat_ids:
            return CHAT_TEMPLATE
        return ("{{ bos_token }}" if self.frame_ids[0] else "") + TEXT_TEMPLATE

    def render(
        self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = False
    ) -> tuple[list[int], list[bool]]:
        """A chat as ids, and which of them an assistant wrote: its words and the token that ends its turn.

        `<s><|user|>Q<|end|><|assistant|>A<|end|>`; with `add_generation_prompt` a last `<|assistant|>` asks for an answer.
        Without these tokens Tulu's format, `<s><|user|>\\nQ\\n<|assistant|>\\nA</s>\\n`, in which roles are text: as in the
        original, a user could write one. Raises `ValueError` for an unknown role.
        """
        bos = self.frame_ids[0]
        if self._chat_ids:
            return chat.render_tokens(messages, add_generation_prompt, self.encode, self._chat_ids, bos)

        def encode(text: str, inside: bool) -> list[int]:
            return _encode(self._inside if inside and self._inside else self._backend, [text])[0]

        return chat.render_text(messages, add_generation_prompt, encode, bos, self.eos_id)


def _unpickle(spec: str, names: Mapping[str, str | None], where: str, choice: str) -> Tokenizer:
    tokenizer = Tokenizer(tokenizers.Tokenizer.from_str(spec), names, where)
    tokenizer._choice = choice
    return tokenizer


def _encode(backend: tokenizers.Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    try:
        encodings = backend.encode_batch_fast(texts, add_special_tokens=False)
    except TypeError as error:
        for text in texts:
            text.encode()  # a UnicodeEncodeError, which is a ValueError, says which character it is
        raise error
    return [encoding.ids for encoding in encodings]


def _document_tokens(
    vocabulary: Mapping[str, int], names: Mapping[str, str | None], where: str
) -> dict[str, str | None]:
    """The names of pad, bos and eos, which are in the vocabulary; None where there is no bos."""
    found: dict[str, str | None] = {}
    for role, usual in USUAL_NAMES.items():
        name = names.get(role)
        if name is not None and name not in vocabulary:
            raise ValueError(
                f"{where}: the vocabulary lacks the {role}_token {name}; name another in a tokenizer_config.json beside it"
            )
        if name is None and not (role == "bos" and role in names):
            name = next((name for name in usual if name in vocabulary), None)
        found[role] = name
    if found["eos"] is None:
        raise ValueError(
            f"{where}: no token ends a document: none of {', '.join(USUAL_NAMES['eos'])} is in the vocabulary; name another "
            "as eos_token in a tokenizer_config.json beside it, or add one with add_special_tokens of tokenizers"
        )
    return {"pad": found["pad"] or found["eos"], "bos": found["bos"], "eos": found["eos"]}


def _names_beside(file: str) -> dict[str, str | None]:
    """What the files beside a vocabulary call bos, eos and pad; None where one says that there is none."""
    folder = storage.absolute(file).rpartition("/")[0]
    names: dict[str, str | None] = {}
    for url in (storage.join(folder, name) for name in NAMING_FILES):
        config = storage.read_json(url) if storage.exists(url) else {}
        for role in USUAL_NAMES:
            if f"{role}_token" in config and names.get(role) is None:
                token = config[f"{role}_token"]
                names[role] = token["content"] if isinstance(token, dict) else token
    return names


def _unknown(model: Mapping[str, Any]) -> str | None:
    """The token that stands for what a vocabulary does not know."""
    if model["type"] == "Unigram":
        return None if model["unk_id"] is None else str(model["vocab"][model["unk_id"]][0])
    return model.get("unk_token")


def _inside(spec: Mapping[str, Any]) -> tokenizers.Tokenizer | None:
    """The tokenizer for text after a control token, where it puts its "▁" before the first text only."""
    step = spec["pre_tokenizer"] or {}
    if step.get("type") != "Metaspace" or step["prepend_scheme"] != "first":
        return None
    backend = tokenizers.Tokenizer.from_str(
        json.dumps({**spec, "pre_tokenizer": {**step, "prepend_scheme": "never"}})
    )
    backend.encode_special_tokens = True
    return backend
