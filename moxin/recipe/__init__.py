"""The recipe: one frozen, validated, JSON-serialisable description of a whole run.

Few dials; what can be derived is derived where it is used and printed by `moxin.plan` with its formula. Every field says
its unit. `validate` raises `ValueError` naming the setting, its value and the fix.
"""

from dataclasses import dataclass

from moxin.config import check_choices
from moxin.recipe.data import (
    PLACEHOLDER,
    BlocklistConfig,
    ClassifierConfig,
    CurateConfig,
    Selection,
    SourceConfig,
    TinyworldConfig,
    TokenizerConfig,
)
from moxin.recipe.model import ModelConfig, padded_vocab
from moxin.recipe.train import (
    DPOConfig,
    GuardConfig,
    PhaseConfig,
    PretrainConfig,
    ScalingConfig,
    SFTConfig,
    check_batch,
)

__all__ = [
    "PLACEHOLDER",
    "BlocklistConfig",
    "ClassifierConfig",
    "CurateConfig",
    "DPOConfig",
    "EvaluateConfig",
    "GuardConfig",
    "ModelConfig",
    "PhaseConfig",
    "PretrainConfig",
    "Recipe",
    "SFTConfig",
    "ScalingConfig",
    "Selection",
    "SourceConfig",
    "TinyworldConfig",
    "TokenizerConfig",
    "padded_vocab",
]


@dataclass(frozen=True)
class EvaluateConfig:
    perplexity_bytes: int = 40_000
    """Held-back text per source on which bits per byte is measured."""
    batch_size: int = 32


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
        check_choices(self)
        self.model.validate()
        names = [source.name for source in self.sources]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"sources: two are called {name!r}; give each its own name")
        if not self.pretrain.phases:
            raise ValueError("pretrain.phases is empty: a run needs at least one phase")
        phases = [phase.name for phase in self.pretrain.phases]
        for name in phases:
            if phases.count(name) > 1:
                raise ValueError(f"pretrain.phases: two are called {name!r}; give each its own name")
        for phase in self.pretrain.phases:
            where = f"pretrain.phases.{phase.name}"
            if phase.tokens < 1:
                raise ValueError(f"{where}.tokens = {phase.tokens}: a phase without tokens; leave it out")
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
            self.pretrain.check_phase(phase, self.scaling.n_workers)
        self.pretrain.validate()
        self.scaling.validate(self.pretrain.optimizer)
        check_batch("sft", self.sft.context, self.sft.global_batch, self.sft.micro_batch)
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
