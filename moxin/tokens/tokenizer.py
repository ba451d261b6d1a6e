"""Byte-fallback BPE whose round trip is exact for every Unicode text, with control tokens that no text can produce.

Characters seldom seen in training are spelled in UTF-8 byte tokens (`<0x00>` to `<0xFF>`), as SentencePiece does
(arXiv 1808.06226). Unlike there nothing is normalised and a space stays a space, so "▁" in a text is no special case.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, processors, trainers

from moxin import storage
from moxin.config import digest

DEFAULT_NAMES = {"pad": "<pad>", "bos": "<s>", "eos": "</s>"}
ROLES = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}
END = "<|end|>"
CONTROL_TOKENS = (*DEFAULT_NAMES.values(), *ROLES.values(), END)
BYTE_TOKENS = tuple(f"<0x{byte:02X}>" for byte in range(256))
N_RESERVED = len(CONTROL_TOKENS) + len(BYTE_TOKENS)

# Pieces that no merge reaches across: a word with the space before it, one digit, a run of punctuation with the space before
# it, line ends with the blanks before them, a run of blanks (indentation) without its last, which goes with the next word.
# A guarantee hangs on it: as letters, digits and punctuation never merge, no merge spells `<|user|>`, `</s>` or `<0x41>`.
SPLIT = r" ?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+|\s*[\r\n]+|\s+(?!\S)|\s+"
MAX_TOKEN_CHARS = 16
ALPHABET_SHARE = 4
"""At most one in so many trainable tokens is a single character; the rarer characters are spelled in bytes."""

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<|assistant|>"
    "{% generation %}{{ message['content'] }}<|end|>{% endgeneration %}"
    "{% elif message['role'] in ['system', 'user'] %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% else %}{{ raise_exception('roles are system, user and assistant') }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""Jinja for `transformers`: the ids of `Tokenizer.render`, except that `transformers` reads the name of a control token in a
message as that token, where `render` keeps it as text. `generation` marks what an assistant mask covers."""


class Tokenizer:
    """A `tokenizers.Tokenizer` with control tokens for documents and chats.

    `bos_id`, `eos_id` and `pad_id` are the document's control tokens, `end_id` is `<|end|>`, `vocab_size` is the number of
    rows an embedding needs: the largest id plus one. In a trained tokenizer the ids 0 to 6 are `CONTROL_TOKENS` and 7 to 262
    the bytes.
    """

    def __init__(self, backend: tokenizers.Tokenizer, names: Mapping[str, str], where: str) -> None:
        """Raises `ValueError`, naming `where`, for control tokens that are missing or that a text could produce."""
        backend.no_padding()
        backend.no_truncation()
        backend.encode_special_tokens = True  # "<s>" in a text is text
        self._backend, self._names, self._where = backend, dict(names), where
        control = [*names.values(), *ROLES.values(), END]
        ids: dict[str, int] = {}
        for name in control:
            if (id := backend.token_to_id(name)) is not None:
                ids[name] = id
        if missing := [name for name in control if name not in ids]:
            raise ValueError(
                f"{where}: the vocabulary lacks the control tokens {', '.join(missing)}; add them with "
                f"add_special_tokens({missing}) of tokenizers, or name other bos_token, eos_token and pad_token in a "
                "tokenizer_config.json beside it"
            )
        self.bos_id, self.eos_id, self.pad_id = (ids[names[name]] for name in ("bos", "eos", "pad"))
        self.end_id = ids[END]
        self._role_ids = {role: ids[name] for role, name in ROLES.items()}
        self.control_ids = frozenset(ids.values())
        self.vocab_size = max(backend.get_vocab(with_added_tokens=True).values()) + 1
        if forged := [name for name in control if not self.control_ids.isdisjoint(self.encode(name))]:
            raise ValueError(
                f"{where}: the text {forged[0]!r} is read as a control token, so any user could write one; mark it "
                'with "special": true under added_tokens'
            )

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickle, (self._backend.to_str(), self._names, self._where)

    @property
    def fingerprint(self) -> str:
        """A hash of everything that decides the ids."""
        return digest({"tokenizer": self._backend.to_str(), "names": self._names})

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """A tokenizer of at most `vocab_size` tokens; fewer where the texts give no more merges.

        The result depends on the texts alone, not on their order. Raises `ValueError` where the control and byte tokens do
        not fit.
        """
        if vocab_size <= N_RESERVED:
            raise ValueError(
                f"tokenizer.vocab_size = {vocab_size}: the control and byte tokens alone are {N_RESERVED}; "
                f"set it to {2 * N_RESERVED} or more"
            )
        texts = list(texts)
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(text)
        common = sorted(counts, key=lambda char: (-counts[char], char))
        alphabet = common[: (vocab_size - N_RESERVED + ALPHABET_SHARE - 1) // ALPHABET_SHARE]
        backend = tokenizers.Tokenizer(models.BPE(byte_fallback=True))
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(SPLIT), "isolated")
        backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            special_tokens=[*CONTROL_TOKENS, *BYTE_TOKENS],
            initial_alphabet=alphabet,  # chosen here: the trainer breaks ties between rare characters at random
            limit_alphabet=len(alphabet),
            max_token_length=MAX_TOKEN_CHARS,
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer)
        # The trainer makes every special token one that is searched for in texts; the bytes must not be.
        spec = json.loads(backend.to_str())
        spec["added_tokens"] = [token for token in spec["added_tokens"] if token["content"] in CONTROL_TOKENS]
        backend = tokenizers.Tokenizer.from_str(json.dumps(spec))
        # What transformers' tokenizer(text) gives: a document begins with <s>, as in training.
        bos = DEFAULT_NAMES["bos"]
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, CONTROL_TOKENS.index(bos))]
        )
        return cls(backend, DEFAULT_NAMES, "trained tokenizer")

    @classmethod
    def load(cls, url: str) -> "Tokenizer":
        """The tokenizer of a folder or of a `tokenizer.json`; a `tokenizer_config.json` beside it may name bos, eos and pad.

        Raises `ValueError` where there is none, where it cannot be read, or for control tokens as in the constructor.
        """
        file = url if url.endswith(".json") else storage.join(url, "tokenizer.json")
        if not storage.exists(file):
            raise ValueError(f"{file}: no such tokenizer; give a tokenizer.json or a folder with one")
        try:
            backend = tokenizers.Tokenizer.from_str(storage.read_text(file))
        except Exception as error:  # tokenizers raises nothing more specific
            raise ValueError(f"{file}: not a tokenizer.json of Hugging Face tokenizers ({error})") from error
        names = dict(DEFAULT_NAMES)
        config_url = storage.join(storage.absolute(file).rpartition("/")[0], "tokenizer_config.json")
        config = storage.read_json(config_url) if storage.exists(config_url) else {}
        for name in names:
            token = config.get(f"{name}_token")
            if token:
                names[name] = token["content"] if isinstance(token, dict) else token
        return cls(backend, names, file)

    def save(self, url: str) -> None:
        """Writes `tokenizer.json`, then `tokenizer_config.json`: a folder for `load` and transformers' AutoTokenizer."""
        storage.write_text(storage.join(url, "tokenizer.json"), self._backend.to_str(pretty=True) + "\n")
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **{f"{name}_token": token for name, token in self._names.items()},
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        }
        storage.write_json(storage.join(url, "tokenizer_config.json"), config)

    def encode(self, text: str) -> list[int]:
        """Ids of a text, never a control token. Raises `ValueError` for half a surrogate pair, which is no Unicode text."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of many texts, on as many threads as `TOKENIZERS_PARALLELISM` and `RAYON_NUM_THREADS` allow."""
        try:
            encodings = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        except TypeError as error:
            for text in texts:
                text.encode()  # a UnicodeEncodeError, which is a ValueError, says which character it is
            raise error
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """The text of ids; bytes that are not UTF-8 (a character cut in two) become U+FFFD."""
        return str(self._backend.decode(ids, skip_special_tokens=skip_special))

    def decode_batch(self, ids: Sequence[Sequence[int]], skip_special: bool = True) -> list[str]:
        return list(self._backend.decode_batch(ids, skip_special_tokens=skip_special))

    def render(
        self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = False
    ) -> tuple[list[int], list[bool]]:
        """A chat as ids, and which of them an assistant wrote: its words and the `<|end|>` after them.

        `<s><|user|>Q<|end|><|assistant|>A<|end|>`; with `add_generation_prompt` a last `<|assistant|>` asks for an answer.
        Raises `ValueError` for an unknown role.
        """
        ids, mask = [self.bos_id], [False]
        for message in messages:
            role = message["role"]
            if role not in self._role_ids:
                raise ValueError(f"a message has the role {role!r}; the roles are {', '.join(ROLES)}")
            written = [*self.encode(message["content"]), self.end_id]
            ids += [self._role_ids[role], *written]
            mask += [False, *[role == "assistant"] * len(written)]
        if add_generation_prompt:
            ids.append(self._role_ids["assistant"])
            mask.append(False)
        return ids, mask


def _unpickle(spec: str, names: Mapping[str, str], where: str) -> Tokenizer:
    return Tokenizer(tokenizers.Tokenizer.from_str(spec), names, where)
