"""Where documents come from, and what is done to them until they are tokens."""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

PLACEHOLDER = "s3://YOUR-BUCKET"
"""How the paths begin that a recipe leaves to its user; a stage refuses to read one."""


@dataclass(frozen=True)
class SourceConfig:
    """Where documents come from. `prose` and `code` read this Python installation, `tinyworld` and `quiz` are generated,
    `folder` reads `.txt .md .jsonl(.gz|.zst) .json.gz .json.zst .parquet .warc(.gz)` below `path`, `tree` the source code of
    the repository or repositories there. `path` is a folder or one file, local or a URL."""

    name: str
    kind: Literal["prose", "code", "tinyworld", "quiz", "folder", "tree"]
    license: str = ""
    """SPDX expression recorded where a document carries none of its own."""
    path: str = ""
    max_bytes: int = 0
    """Documents beyond this many bytes of text are not read; 0 reads all."""
    max_epochs: float = 0.0
    """How often all phases together may read the source; a mix that needs more is an error. 0 sets no limit. Up to four
    passes are worth nearly as much as fresh data (arXiv 2305.16264)."""
    text_field: str = ""
    """Of a folder's JSON lines and Parquet files: the field or column with the text. Empty takes the first that is there of
    `text`, `content` and `body`."""
    profile: str = ""
    """What is done to its documents; empty takes `curate.profile`, for code `curate.code_profile`, for what is generated
    `plain`."""
    overrides: tuple[str, ...] = ()
    """Changes to the profile for this source."""


@dataclass(frozen=True)
class TinyworldConfig:
    """The made-up world with known truth (`moxin.tinyworld`)."""

    seed: int = 0
    """Another seed is another world: other people, facts, texts and order."""
    n_people: int = 64
    n_documents: int = 5000
    """Original documents of the tinyworld source, before dirt is planted."""
    n_quiz_documents: int = 1000
    n_questions: int = 200
    """Held-out multiple-choice questions; the same facts are asked as generation."""
    n_chats: int = 1200
    n_preferences: int = 400
    n_near_duplicates: int = 98
    """Copies with a few words changed, true Jaccard of word 5-grams at least 0.75; at most an eighth of `n_documents`."""
    n_exact_duplicates: int = 60
    n_gibberish: int = 50
    n_foreign: int = 50
    n_personal: int = 40
    n_leaks: int = 40


@dataclass(frozen=True)
class ClassifierConfig:
    """The quality classifier of profiles that have one: a fastText model, or two folders of documents to train one from."""

    model: str = ""
    """A fastText `.bin` or `.ftz` with the labels of DCLM's, local or a URL."""
    good: str = ""
    ordinary: str = ""
    max_bytes: int = 200_000_000
    """Text that is taken of either folder, drawn by the hash of the texts."""


@dataclass(frozen=True)
class BlocklistConfig:
    """Text files with an entry per line, for profiles that look at addresses (`moxin.curate.urls`)."""

    domains: tuple[str, ...] = ()
    urls: tuple[str, ...] = ()
    strict: tuple[str, ...] = ()
    hard: tuple[str, ...] = ()
    soft: tuple[str, ...] = ()


@dataclass(frozen=True)
class CurateConfig:
    """What is done to all sources; what is done to each is its profile's (`moxin.curate.profiles`)."""

    profile: str = "plain"
    """Of sources that name none of their own."""
    overrides: tuple[str, ...] = ()
    """Changes to that profile, for example `list_ratio=0.2`, `near.threshold=0.8` or `classifier=off`."""
    code_profile: str = "the-stack"
    """Of sources of code that name none of their own."""
    decontamination: Literal["remove", "report"] = "remove"
    """Whether documents that hold an evaluation item go, or are only reported."""
    decontamination_ngram: int = 13
    """Words in a row shared with an evaluation item (13: GPT-3, arXiv 2005.14165)."""
    benchmarks: tuple[str, ...] = ()
    """Files or folders of evaluation sets, besides the tinyworld's own questions."""
    allowed: tuple[str, ...] = ()
    """Splits that may be in the training data on purpose, as `gsm8k/train`: reported, never removed."""
    blocklists: BlocklistConfig = field(default_factory=BlocklistConfig)
    bad_words: str = ""
    """A text file with an entry per line, for profiles that look for such words."""
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    shard_bytes: int = 512 * 2**20
    """Text of an output shard: 150 to 250 MB of it as Parquet."""
    memory_bytes: int = 2 * 2**30
    """What a task of deduplication may hold; how much is done at a time follows from it, the result does not."""
    removed_chars: int = 2000
    """Characters that are kept of a document that was removed."""
    keep_index: bool = False
    """Whether to keep what a later corpus needs to be deduplicated against this one (`earlier`)."""
    earlier: str = ""
    """A curate artifact with such an index: documents that repeat one of its, exactly or nearly, go; its own stay as they
    are. Lines, addresses and Bloom filters are of one corpus."""


@dataclass(frozen=True)
class TokenizerConfig:
    vocab_size: int = 2048
    """Tokens of a trained vocabulary, 263 control and byte tokens among them; fewer where the text does not give more."""
    kind: Literal["bpe", "unigram"] = "bpe"
    """Merges by frequency (arXiv 1508.07909), or the likeliest pieces (arXiv 1804.10959); both with byte fallback."""
    path: str = ""
    """A tokenizer to use instead of training one: a `tokenizer.json`, a SentencePiece `.model`, or a folder with one."""
    sample_bytes: int = 4_000_000
    """Text given to training, spread evenly over the sources."""
    backend: Literal["auto", "hf", "gigatoken", "numba"] = "auto"
    """What encodes (`moxin.tokens.backends`). The ids are those of `hf` in any case."""
    compare: tuple[str, ...] = ()
    """Other tokenizers, as `path` names one, whose bytes per token are reported beside this one's."""

    def validate(self) -> None:
        """Raises `ValueError` with the setting, its value and the fix."""
        for name in ("vocab_size", "sample_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"tokenizer.{name} = {getattr(self, name)}: must be at least 1")
        choices = {"kind": ("bpe", "unigram"), "backend": ("auto", "hf", "gigatoken", "numba")}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"tokenizer.{name} = {getattr(self, name)!r}: one of {', '.join(known)}")
        if self.path and self.kind != TokenizerConfig.kind:
            raise ValueError(
                f"tokenizer.kind = {self.kind} has no effect with tokenizer.path = {self.path}: nothing is trained; "
                f"set it to {TokenizerConfig.kind}, or leave the path out"
            )
        if "" in self.compare:
            raise ValueError(f"tokenizer.compare = {list(self.compare)}: an empty path; leave it out")


class Selection(NamedTuple):
    """Documents of a source with `least <= tokens < below`; both are powers of two, for which a token store keeps counts."""

    source: str
    least: int = 1
    below: int = 2**62

    @property
    def everything(self) -> bool:
        return self.least <= 1 and self.below >= 2**62

    @classmethod
    def parse(cls, text: str) -> "Selection":
        """`books`, `books>=4096` or `books<4096`. Raises `ValueError` for a length that is no power of two."""
        for sign in (">=", "<"):
            source, found, number = text.partition(sign)
            if not found:
                continue
            length = int(number) if number.strip().isdigit() else 0
            if length < 2 or length & (length - 1):
                raise ValueError(
                    f"mix names {text!r}: {number!r} is no length; write a power of two from 2 on"
                )
            return cls(source.strip(), least=length) if sign == ">=" else cls(source.strip(), below=length)
        return cls(text)
