"""How a model is trained: phases, optimizer, guards, SFT, DPO, and what is asked of Ray and DeepSpeed."""

from dataclasses import dataclass, field
from typing import Literal

from moxin import hardware


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
    learning_rate: float = 0.0
    """Peak of a schedule of this phase's own: its warm-up, its decay. 0: the phase is a part of the one schedule of all
    phases that have none of their own."""
    optimizer_state: Literal["carry", "reset"] = "carry"
    """Whether the optimizer goes on with the moments of the phase before, or begins anew with its weights."""
    initial_context: int = 0
    """Context of the phase's first samples, a divisor of `context`: every sample is cut into rows that long, so the order of
    samples stays. 0 begins with `context` (arXiv 2108.06084)."""
    context_warmup_tokens: int = 0
    """Tokens over which the context grows from `initial_context` to `context`, doubling at even distances."""


@dataclass(frozen=True)
class GuardConfig:
    """What is done about a step that would spoil the run. A step whose loss or gradient is not finite is never applied.

    The score of a step's loss is its distance from the median of the last `window` steps, over 1.4826 times the median
    distance from that median: a standard deviation that spikes do not move.
    """

    window: int = 128
    spike_score: float = 6.0
    """From here on a loss is logged as a spike. 0 turns this and what follows off."""
    skip_score: float = 12.0
    """From here on the step is not applied either. 0 applies all finite steps."""
    rollback_after: int = 4
    """So many bad steps (spikes, or not finite) in a row, and the run goes back to the last checkpoint before the first of
    them and leaves their batches out. 0 never goes back."""
    max_rollbacks: int = 3
    """Roll-backs of a phase before it is given up."""


@dataclass(frozen=True)
class PretrainConfig:
    phases: tuple[PhaseConfig, ...] = ()
    initial: str = ""
    """A model folder to begin with, local or a URL (`moxin model expand` makes deeper ones); empty begins with fresh
    weights."""
    global_batch: int = 2048
    """Tokens per optimizer step, whatever the number of workers."""
    initial_global_batch: int = 0
    """Tokens of the first steps; the batch grows linearly over `batch_warmup_tokens` (arXiv 2005.14165, §2.3). 0: full."""
    batch_warmup_tokens: int = 0
    micro_batch: int | Literal["auto"] = 1024
    """Most tokens a worker puts through the model at once; gradient accumulation follows. `auto` takes the most that fit."""
    optimizer: Literal["adamw", "lion", "muon"] = "adamw"
    """AdamW (arXiv 1711.05101), Lion (arXiv 2302.06675; MPT's), or Muon for the matrices of the blocks with AdamW for the
    rest, its updates scaled to the size of AdamW's so that one learning rate serves both (arXiv 2502.16982)."""
    learning_rate: float = 3e-3
    min_learning_rate_ratio: float = 0.1
    schedule: Literal["cosine", "linear", "wsd", "inverse_sqrt"] = "cosine"
    """From the peak to `min_learning_rate_ratio` of it: along a cosine (arXiv 1608.03983) or a line, at the end only (`wsd`,
    arXiv 2404.06395, over `decay_tokens`), or as the inverse square root of the step since the warm-up, never below it."""
    decay_tokens: int = 0
    """Tokens of the linear decay at the end of `wsd`."""
    warmup_tokens: int = 100_000
    """Linear warm-up at the start of phase 1; then one schedule over all phases."""
    weight_decay: float = 0.1
    """Of matrices and embeddings, times the learning rate."""
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    muon_momentum: float = 0.95
    grad_clip: float = 1.0
    z_loss: float = 0.0
    """Weight of log²(Z) in the loss (arXiv 2204.02311, §5: 1e-4)."""
    checkpoint_every: int = 200
    """Optimizer steps between checkpoints."""
    keep_last: int = 2
    """Newest checkpoints that are kept while a phase is trained."""
    keep_every: int = 0
    """Steps between checkpoints that are kept until the phase is done, to go back further; 0 keeps none."""
    publish_every: int = 0
    """Steps between weights that stay as `steps/STEP/` of the phase's artifact, each a model folder; 0 leaves none."""
    guards: GuardConfig = field(default_factory=GuardConfig)
    shuffle_tokens: int = 2**32
    """How much of a source is mixed at a time. A machine keeps about as much of every source of a remote store at hand."""
    seed: int = 1

    @property
    def common_phases(self) -> tuple[PhaseConfig, ...]:
        """The phases that share one schedule."""
        return tuple(phase for phase in self.phases if not phase.learning_rate)

    def check_phase(self, phase: PhaseConfig, n_workers: int) -> None:
        """Raises `ValueError` where a phase cannot be trained so."""
        where, context = f"pretrain.phases.{phase.name}", phase.context
        check_batch(
            where, context, self.global_batch, context if self.micro_batch == "auto" else self.micro_batch
        )
        first = self.initial_global_batch or self.global_batch
        if first < context * n_workers:
            name = "initial_global_batch" if self.initial_global_batch else "global_batch"
            raise ValueError(
                f"{where}: {name} = {first} tokens are fewer sequences of context = {context} than scaling.n_workers = "
                f"{n_workers}: every worker needs one"
            )
        if phase.tokens < self.global_batch and phase.tokens < first:
            raise ValueError(
                f"{where}.tokens = {phase.tokens} is less than one step of {first} tokens (pretrain.global_batch)"
            )
        if bool(phase.initial_context) != bool(phase.context_warmup_tokens):
            raise ValueError(
                f"{where}: initial_context = {phase.initial_context} and context_warmup_tokens = "
                f"{phase.context_warmup_tokens} have an effect only together"
            )
        if phase.initial_context:
            doublings = context // phase.initial_context
            if context % phase.initial_context or doublings & (doublings - 1):
                raise ValueError(
                    f"{where}.initial_context = {phase.initial_context} does not grow to context = {context} by doubling"
                )
        if phase.learning_rate < 0:
            raise ValueError(
                f"{where}.learning_rate = {phase.learning_rate}: above 0, or 0 for the common one"
            )

    def validate(self) -> None:
        """Raises `ValueError` with the setting, its value and the fix; phases are looked at by `check_phase`."""
        for name in ("global_batch", "checkpoint_every", "keep_last", "shuffle_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"pretrain.{name} = {getattr(self, name)}: must be at least 1")
        at_least_0 = (
            "initial_global_batch",
            "batch_warmup_tokens",
            "decay_tokens",
            "warmup_tokens",
            "weight_decay",
        )
        for name in (*at_least_0, "grad_clip", "z_loss", "keep_every", "publish_every"):
            if getattr(self, name) < 0:
                raise ValueError(f"pretrain.{name} = {getattr(self, name)}: must be at least 0")
        for name in ("beta1", "beta2", "muon_momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"pretrain.{name} = {getattr(self, name)}: from 0 to below 1")
        for name in ("learning_rate", "eps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"pretrain.{name} = {getattr(self, name)}: must be above 0")
        if not 0 <= self.min_learning_rate_ratio <= 1:
            raise ValueError(
                f"pretrain.min_learning_rate_ratio = {self.min_learning_rate_ratio}: from 0 to 1"
            )
        if bool(self.initial_global_batch) != bool(self.batch_warmup_tokens):
            raise ValueError(
                f"pretrain.initial_global_batch = {self.initial_global_batch} and pretrain.batch_warmup_tokens = "
                f"{self.batch_warmup_tokens} have an effect only together"
            )
        if self.initial_global_batch > self.global_batch:
            raise ValueError(
                f"pretrain.initial_global_batch = {self.initial_global_batch} is above global_batch = {self.global_batch}: "
                "the batch grows"
            )
        if bool(self.decay_tokens) != (self.schedule == "wsd"):
            raise ValueError(
                f"pretrain.decay_tokens = {self.decay_tokens} with pretrain.schedule = {self.schedule}: "
                + (
                    "wsd decays over that many tokens, set it"
                    if self.schedule == "wsd"
                    else "it belongs to wsd"
                )
            )
        defaults = PretrainConfig
        if self.optimizer != "muon" and self.muon_momentum != defaults.muon_momentum:
            raise ValueError(
                f"pretrain.muon_momentum = {self.muon_momentum} has no effect with pretrain.optimizer = {self.optimizer}"
            )
        if self.optimizer == "lion" and self.eps != defaults.eps:
            raise ValueError(f"pretrain.eps = {self.eps} has no effect with pretrain.optimizer = lion")
        guards = self.guards
        if guards.window < 8:
            raise ValueError(
                f"pretrain.guards.window = {guards.window}: at least 8 steps, to know what is usual"
            )
        for name in ("spike_score", "skip_score", "rollback_after", "max_rollbacks"):
            if getattr(guards, name) < 0:
                raise ValueError(f"pretrain.guards.{name} = {getattr(guards, name)}: must be at least 0")
        if guards.skip_score and guards.skip_score < guards.spike_score:
            raise ValueError(
                f"pretrain.guards.skip_score = {guards.skip_score} is below spike_score = {guards.spike_score}: what is "
                "skipped is a spike too"
            )


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
class ScalingConfig:
    """What the run asks Ray for."""

    n_workers: int = 2
    """Training workers, one GPU or one CPU core each."""
    min_workers: int = 0
    """With fewer than `n_workers` free, train on as few as these, and on more when there are; 0 waits for all."""
    cpu_threads: int = 1
    """Threads of a worker without a GPU."""
    use_gpu: bool = False
    accelerator: str = ""
    """What GPU, as `A100-40GB` (`moxin.hardware`): Ray places workers there, MFU is of its peak, plans are for it."""
    dollars_per_hour: float = 0.0
    """Of one worker; 0 takes the list price of `accelerator`, if that is known."""
    zero_stage: Literal["0", "1", "2", "3"] = "1"
    offload_optimizer: Literal["none", "cpu", "nvme"] = "none"
    """Where DeepSpeed keeps the optimizer's state and runs its step (arXiv 2101.06840, 2104.07857); from ZeRO 1 on."""
    offload_parameters: Literal["none", "cpu", "nvme"] = "none"
    """Where DeepSpeed keeps the weights between layers; ZeRO 3."""
    offload_path: str = ""
    """The folder on a local disk for `nvme`."""
    recompute: Literal["none", "selective", "full"] = "none"
    """Activations that are made again on the way back instead of kept: of no block, of its feed-forward half, of all of it
    (arXiv 1604.06174)."""
    compile: bool = False
    """`torch.compile` of every block."""
    precision: Literal["bf16", "fp32"] = "bf16"
    max_failures: int = 3
    """How often Ray restarts the training group after a worker died."""
    hang_timeout_s: int = 900
    """A worker that makes no progress for so long is named, with where it stands, and the group starts again."""
    grace_s: int = 60
    """How long a run that is told to end (SIGTERM, a node that is taken back) has for a last checkpoint."""

    def validate(self, optimizer: str) -> None:
        """Raises `ValueError` with the setting, its value and the fix."""
        for name in ("n_workers", "cpu_threads", "hang_timeout_s"):
            if getattr(self, name) < 1:
                raise ValueError(f"scaling.{name} = {getattr(self, name)}: at least 1")
        for name in ("min_workers", "dollars_per_hour", "max_failures", "grace_s"):
            if getattr(self, name) < 0:
                raise ValueError(f"scaling.{name} = {getattr(self, name)}: at least 0")
        if self.min_workers > self.n_workers:
            raise ValueError(
                f"scaling.min_workers = {self.min_workers} is above scaling.n_workers = {self.n_workers}"
            )
        if self.accelerator:
            hardware.gpu(self.accelerator)
        stage = int(self.zero_stage)
        if self.offload_optimizer != "none" and stage < 1:
            raise ValueError("scaling.offload_optimizer needs scaling.zero_stage of 1 to 3")
        if self.offload_parameters != "none" and stage < 3:
            raise ValueError("scaling.offload_parameters needs scaling.zero_stage=3")
        on_disk = "nvme" in (self.offload_optimizer, self.offload_parameters)
        if on_disk and stage < 3:
            raise ValueError("scaling: DeepSpeed offloads to nvme with scaling.zero_stage=3 only")
        if on_disk != bool(self.offload_path):
            raise ValueError(
                f"scaling.offload_path = {self.offload_path!r}: a folder on a local disk where something is offloaded to "
                "nvme, and empty elsewhere"
            )
        if optimizer == "muon" and stage == 3:
            raise ValueError(
                "pretrain.optimizer = muon needs whole matrices, which scaling.zero_stage = 3 cuts; use 0 to 2, or adamw"
            )
        if optimizer != "adamw" and self.offload_optimizer != "none":
            raise ValueError(
                f"scaling.offload_optimizer: DeepSpeed runs AdamW there, not pretrain.optimizer = {optimizer}"
            )


def check_batch(where: str, context: int, global_batch: int, micro_batch: int) -> None:
    """Raises `ValueError` where rows of `context` tokens make no such batches, in tokens."""
    if global_batch % context or not global_batch:
        raise ValueError(
            f"{where}: global_batch = {global_batch} tokens must be a multiple of context = {context}"
        )
    if micro_batch < context:
        raise ValueError(
            f"{where}: micro_batch = {micro_batch} tokens holds no sequence of context = {context}"
        )
