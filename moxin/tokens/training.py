"""Trains BPE (arXiv 1508.07909) and unigram (arXiv 1804.10959) with byte fallback; the texts alone decide the result."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, processors, trainers

from moxin.tokens.chat import END, ROLES

DEFAULT_NAMES = {"pad": "<pad>", "bos": "<s>", "eos": "</s>"}
CONTROL_TOKENS = (*DEFAULT_NAMES.values(), *ROLES.values(), END)
BYTE_TOKENS = tuple(f"<0x{byte:02X}>" for byte in range(256))
RESERVED = (*CONTROL_TOKENS, *BYTE_TOKENS)
N_RESERVED = len(RESERVED)

# Pieces that no token reaches across: a word with the space before it, one digit, a run of punctuation with the space before
# it, line ends with the blanks before them, a run of blanks (indentation) without its last, which goes with the next word.
# A guarantee hangs on it: as letters, digits and punctuation never meet, no text spells `<|user|>`, `</s>` or `<0x41>`.
SPLIT = r" ?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+|\s*[\r\n]+|\s+(?!\S)|\s+"
MAX_TOKEN_CHARS = 16
ALPHABET_SHARE = 4
"""At most one in so many trainable tokens is a single character; the rarer characters are spelled in bytes."""
SCORE_DIGITS = 4
"""Decimals kept of a unigram score, a natural logarithm. `UnigramTrainer` sums in the order of a hash table, another in
every run: trainings of 8,000 tokens all chose the same tokens, with scores that differed by up to 4e-11."""
HANDED_STEP = 0.0001


def train(texts: Iterable[str], vocab_size: int, kind: str) -> tokenizers.Tokenizer:
    """A tokenizer of `kind` bpe or unigram, with at most `vocab_size` tokens: control tokens, bytes, then what was learned.

    Raises `ValueError` for another kind, and where the control and byte tokens do not fit.
    """
    if vocab_size <= N_RESERVED:
        raise ValueError(
            f"tokenizer.vocab_size = {vocab_size}: the control and byte tokens alone are {N_RESERVED}; "
            f"set it to {2 * N_RESERVED} or more"
        )
    if kind not in ("bpe", "unigram"):
        raise ValueError(f"tokenizer.kind = {kind!r}: bpe and unigram are trained here")
    texts = list(texts)
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    common = sorted(counts, key=lambda char: (-counts[char], char))
    alphabet = common[: (vocab_size - N_RESERVED + ALPHABET_SHARE - 1) // ALPHABET_SHARE]
    model = (_bpe if kind == "bpe" else _unigram)(texts, vocab_size, alphabet)
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = _split()
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens(list(CONTROL_TOKENS))
    # What transformers' tokenizer(text) gives: a document begins with <s>, as in training.
    bos = DEFAULT_NAMES["bos"]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, CONTROL_TOKENS.index(bos))]
    )
    return backend


def _split() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(Regex(SPLIT), "isolated")


def _bpe(texts: Sequence[str], vocab_size: int, alphabet: Sequence[str]) -> models.BPE:
    backend = tokenizers.Tokenizer(models.BPE(byte_fallback=True))
    backend.pre_tokenizer = _split()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=list(RESERVED),
        # Chosen here: the trainer breaks ties between rare characters at random.
        initial_alphabet=list(alphabet),
        limit_alphabet=len(alphabet),
        max_token_length=MAX_TOKEN_CHARS,
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return backend.model  # without the byte tokens as added tokens, which would be searched for in texts


def _unigram(texts: Sequence[str], vocab_size: int, alphabet: Sequence[str]) -> models.Unigram:
    backend = tokenizers.Tokenizer(models.Unigram())
    splits = [_split()]
    if alphabet:  # the trainer makes a token of every character it sees, so it must not see the rare ones
        rare = "[^" + "".join(f"\\x{{{ord(char):X}}}" for char in alphabet) + "]"
        splits.append(pre_tokenizers.Split(Regex(rare), "removed"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(splits)
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size,
        special_tokens=list(RESERVED),
        unk_token=RESERVED[0],
        max_piece_length=MAX_TOKEN_CHARS,
        show_progress=False,
    )
    backend.train_from_iterator(texts if alphabet else [], trainer)
    scores = dict(json.loads(backend.to_str())["model"]["vocab"])
    learned = {piece: score for piece, score in scores.items() if piece not in RESERVED}
    lowest = min(learned.values(), default=0.0)
    for piece, score in learned.items():
        # Characters that words can do without are handed the lowest scores, a step apart, in the order of that table.
        handed = len(piece) == 1 and score <= lowest + len(alphabet) * HANDED_STEP
        learned[piece] = round(lowest if handed else score, SCORE_DIGITS)
    order = sorted(learned.items(), key=lambda item: (-item[1], item[0]))
    vocab = [(name, 0.0) for name in RESERVED] + order
    return models.Unigram(vocab, unk_id=0, byte_fallback=True)  # with all bytes there, nothing is unknown
