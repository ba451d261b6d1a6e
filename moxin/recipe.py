"""The recipe: one frozen, validated, JSON-serialisable description of a whole run.

Few dials; what can be derived is derived where it is used and printed by `moxin.plan` with its formula. Every field says
its unit. `validate` raises `ValueError` naming the setting, its value and the fix.
"""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple


@dataclass(frozen=True)
class ModelConfig:
    """A pre-norm decoder without biases. The defaults are those of Mistral (arXiv 2310.06825); MPT is the same decoder with
    `norm="layer"`, `activation="gelu"`, `position="alibi"`, `init="kaiming"` and tied embeddings."""

    n_layers: int = 4
    d_model: int = 192
    n_heads: int = 6
    n_kv_heads: int = 2
    """Key/value heads; `n_heads` is multi-head attention, 1 multi-query, between them grouped-query (arXiv 2305.13245)."""
    d_ff: int = 512
    """Hidden width of the feed-forward block."""
    vocab_size: int = 2048
    """Rows of the embedding; at least the tokenizer's size. `padded_vocab` rounds that up for the GPU's sake."""
    max_seq_len: int = 256
    """Longest context trained, in tokens; goes into the released configuration."""
    sliding_window: int | None = None
    """How many positions (itself included) a query sees; None is full causal attention."""
    layer_windows: tuple[int, ...] = ()
    """Windows of the layers in turn, over and over, in place of `sliding_window`; 0 is full attention."""
    norm: Literal["rms", "layer"] = "rms"
    """RMSNorm, or LayerNorm without bias whose input and output keep the model's type (MPT's `low_precision_layernorm`)."""
    norm_eps: float = 1e-5
    activation: Literal["swiglu", "gelu"] = "swiglu"
    """SwiGLU (arXiv 2002.05202), or two matrices around the exact GELU."""
    position: Literal["rope", "alibi", "learned", "none"] = "rope"
    rope_theta: float = 10_000.0
    alibi_bias_max: float = 8.0
    """The gentlest ALiBi slope is 2 to the power of minus this (arXiv 2108.12409)."""
    clip_qkv: float | None = None
    """Queries, keys and values are clamped to plus or minus this (MPT-30B: 6)."""
    qk_norm: bool = False
    """Whether all queries of a token, and all keys, go through a norm together (llm-foundry's `qk_ln`)."""
    tie_embeddings: bool = False
    init: Literal["normal", "kaiming"] = "normal"
    """`normal`: matrices normal(0, `init_std`), Mistral's. `kaiming`: normal(0, sqrt(2 / fan-in)), with the projections that
    end a residual branch divided by sqrt(2 x layers), MPT's."""
    init_std: float = 0.02

    @property
    def head_dim(self) -> int:
        return self.d_model // self.n_heads

    @property
    def windows(self) -> tuple[int | None, ...]:
        """Every layer's window."""
        if not self.layer_windows:
            return (self.sliding_window,) * self.n_layers
        return tuple(
            self.layer_windows[layer % len(self.layer_windows)] or None for layer in range(self.n_layers)
        )

    @property
    def widest_window(self) -> int | None:
        """How far back any layer looks; None where one sees everything."""
        windows = [window for window in self.windows if window is not None]
        return max(windows) if len(windows) == self.n_layers else None

    def validate(self) -> None:
        """Raises `ValueError` with the setting, its value and the fix."""
        for name in ("n_layers", "d_model", "n_heads", "n_kv_heads", "d_ff", "vocab_size", "max_seq_len"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} = {getattr(self, name)}: must be at least 1")
        if self.d_model % self.n_heads:
            raise ValueError(
                f"model.d_model = {self.d_model} is not a multiple of model.n_heads = {self.n_heads}"
            )
        if self.position == "rope" and self.head_dim % 2:
            raise ValueError(
                f"model.d_model / model.n_heads = {self.head_dim}: RoPE rotates pairs, make it even"
            )
        if self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"model.n_heads = {self.n_heads} is not a multiple of model.n_kv_heads = {self.n_kv_heads}: every "
                "key/value head must serve the same number of query heads"
            )
        if self.sliding_window is not None and self.sliding_window < 1:
            raise ValueError(
                f"model.sliding_window = {self.sliding_window}: at least 1, or none for full attention"
            )
        if self.layer_windows and self.sliding_window is not None:
            raise ValueError(
                f"model.layer_windows = {list(self.layer_windows)} replaces model.sliding_window = "
                f"{self.sliding_window}: set that to none"
            )
        if self.layer_windows and min(self.layer_windows) < 0:
            raise ValueError(
                f"model.layer_windows = {list(self.layer_windows)}: at least 1, or 0 for full attention"
            )
        if self.clip_qkv is not None and self.clip_qkv <= 0:
            raise ValueError(f"model.clip_qkv = {self.clip_qkv}: must be above 0, or none for no clipping")
        for name in ("rope_theta", "alibi_bias_max", "norm_eps", "init_std"):
            if not getattr(self, name) > 0:
                raise ValueError(f"model.{name} = {getattr(self, name)}: must be above 0")
        owners = {
            "rope_theta": ("position", "rope"),
            "alibi_bias_max": ("position", "alibi"),
            "init_std": ("init", "normal"),
        }
        for name, (owner, needed) in owners.items():
            if getattr(self, name) != getattr(ModelConfig, name) and getattr(self, owner) != needed:
                raise ValueError(
                    f"model.{name} = {getattr(self, name)} has no effect with model.{owner} = {getattr(self, owner)}: "
                    f"it belongs to {needed}"
                )


def padded_vocab(n_tokens: int, multiple: int = 128) -> int:
    """Rows of an embedding for a tokenizer of `n_tokens`: whole tiles of the GPU's matrix units.

    llm-foundry measured up to four points of MFU between 50,257 and 50,432 rows. Rows beyond the tokenizer are never
    targets; they are trained down like any other token that does not come.
    """
    return -(-n_tokens // multiple) * multiple


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


@dataclass(frozen=True)
class PhaseConfig:
    """One pretraining phase: how much of which sources at which context length."""

    name: str
    tokens: int
    context: int
    mix: dict[str, float] = field(default_factory=dict)
    """Weight per source; normalised. `books>=4096` and `books<4096` take the source's documents by their tokens."""
    packing: Literal["split", "best_fit"] = "split"
    """`split`: documents one after another, cut every `context` tokens. `best_fit`: whole documents packed into rows, cut
    only where they are longer than a row (arXiv 2404.10830)."""
    repeat: bool = False
    """Begin every source anew, instead of going on where the phases before have stopped."""


@dataclass(frozen=True)
class PretrainConfig:
    phases: tuple[PhaseConfig, ...] = ()
    global_batch: int = 2048
    """Tokens per optimizer step, whatever the number of workers."""
    micro_batch: int = 1024
    """Most tokens a worker puts through the model at once; gradient accumulation follows."""
    learning_rate: float = 3e-3
    min_learning_rate_ratio: float = 0.1
    warmup_tokens: int = 100_000
    """Linear warm-up at the start of phase 1; then one cosine over all phases."""
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    grad_clip: float = 1.0
    checkpoint_every: int = 200
    """Optimizer steps between checkpoints."""
    shuffle_tokens: int = 2**32
    """How much of a source is mixed at a time. A machine keeps about as much of every source of a remote store at hand."""
    seed: int = 1


@dataclass(frozen=True)
class SFTConfig:
    epochs: int = 4
    context: int = 256
    global_batch: int = 2048
    micro_batch: int = 1024
    learning_rate: float = 1e-3
    warmup_ratio: float = 0.05
    weight_decay: float = 0.0
    grad_clip: float = 1.0
    checkpoint_every: int = 100
    seed: int = 2


@dataclass(frozen=True)
class DPOConfig:
    """Direct preference optimisation (arXiv 2305.18290), log-probabilities divided by the answer's length."""

    epochs: int = 1
    beta: float = 2.0
    global_batch: int = 16
    """Preference pairs per optimizer step."""
    micro_batch: int = 8
    """Most pairs a worker puts through the model at once."""
    context: int = 256
    learning_rate: float = 5e-5
    warmup_ratio: float = 0.1
    weight_decay: float = 0.0
    grad_clip: float = 1.0
    checkpoint_every: int = 100
    seed: int = 3


@dataclass(frozen=True)
class EvaluateConfig:
    perplexity_bytes: int = 40_000
    """Held-back text per source on which bits per byte is measured."""
    batch_size: int = 32


@dataclass(frozen=True)
class ScalingConfig:
    """What the run asks Ray for."""

    n_workers: int = 2
    """Training workers, one GPU or one CPU core each."""
    use_gpu: bool = False
    zero_stage: Literal["0", "1", "2", "3"] = "1"
    precision: Literal["bf16", "fp32"] = "bf16"
    max_failures: int = 3
    """How often Ray restarts the training group after a worker died."""


@dataclass(frozen=True)
class Recipe:
    name: str
    model: ModelConfig
    sources: tuple[SourceConfig, ...]
    tinyworld: TinyworldConfig
    curate: CurateConfig
    tokenizer: TokenizerConfig
    pretrain: PretrainConfig
    sft: SFTConfig
    dpo: DPOConfig
    evaluate: EvaluateConfig
    scaling: ScalingConfig
    shards: int = 4
    """Output shards of curation at least, if the text is enough; fixed so that it does not depend on the workers."""

    def validate(self) -> None:
        """Raises `ValueError` with the setting, its value and the fix."""
        self.model.validate()
        names = [source.name for source in self.sources]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"sources: two are called {name!r}; give each its own name")
        if not self.pretrain.phases:
            raise ValueError("pretrain.phases is empty: a run needs at least one phase")
        for phase in self.pretrain.phases:
            where = f"pretrain.phases.{phase.name}"
            if phase.context < 1:
                raise ValueError(f"{where}.context = {phase.context}: at least 1 token")
            if unknown := sorted({Selection.parse(key).source for key in phase.mix} - set(names)):
                raise ValueError(f"{where}.mix names {unknown}, the sources are {names}")
            if not phase.mix or min(phase.mix.values()) < 0 or not sum(phase.mix.values()):
                raise ValueError(
                    f"{where}.mix = {phase.mix}: weights must be at least 0 and one must be above 0"
                )
            if phase.context > self.model.max_seq_len:
                raise ValueError(
                    f"{where}.context = {phase.context} exceeds model.max_seq_len = {self.model.max_seq_len}"
                )
            _check_batch(where, phase.context, self.pretrain.global_batch, self.pretrain.micro_batch)
            if self.pretrain.global_batch < phase.context * self.scaling.n_workers:
                raise ValueError(
                    f"{where}: global_batch = {self.pretrain.global_batch} tokens are fewer sequences of context = "
                    f"{phase.context} than scaling.n_workers = {self.scaling.n_workers}: every worker needs one"
                )
        _check_batch("sft", self.sft.context, self.sft.global_batch, self.sft.micro_batch)
        if self.sft.global_batch // self.sft.context % self.scaling.n_workers:
            raise ValueError(
                f"sft.global_batch = {self.sft.global_batch} tokens must be a multiple of context x scaling.n_workers = "
                f"{self.sft.context} x {self.scaling.n_workers}"
            )
        if self.dpo.global_batch % self.scaling.n_workers:
            raise ValueError(
                f"dpo.global_batch = {self.dpo.global_batch} pairs do not divide among scaling.n_workers = "
                f"{self.scaling.n_workers}"
            )
        for name in ("sft", "dpo"):
            if getattr(self, name).context > self.model.max_seq_len:
                raise ValueError(f"{name}.context exceeds model.max_seq_len = {self.model.max_seq_len}")
        self.tokenizer.validate()
        if not self.tokenizer.path and self.tokenizer.vocab_size > self.model.vocab_size:
            raise ValueError(
                f"tokenizer.vocab_size = {self.tokenizer.vocab_size} does not fit model.vocab_size = "
                f"{self.model.vocab_size}"
            )
        for source in self.sources:
            if source.max_epochs < 0:
                raise ValueError(
                    f"sources.{source.name}.max_epochs = {source.max_epochs}: at least 0; 0 sets no limit"
                )
        if self.pretrain.shuffle_tokens < 1:
            raise ValueError(f"pretrain.shuffle_tokens = {self.pretrain.shuffle_tokens}: at least 1")
        if self.scaling.n_workers < 1:
            raise ValueError(f"scaling.n_workers = {self.scaling.n_workers}: at least 1")


def _check_batch(where: str, context: int, global_batch: int, micro_batch: int) -> None:
    if global_batch % context or not global_batch:
        raise ValueError(
            f"{where}: global_batch = {global_batch} tokens must be a multiple of context = {context}"
        )
    if micro_batch < context:
        raise ValueError(
            f"{where}: micro_batch = {micro_batch} tokens holds no sequence of context = {context}"
        )
