"""The batches of a pretraining phase: which samples are in a step does not depend on the number of workers."""

import math
from itertools import pairwise
from typing import Literal

import numpy as np

from moxin.recipe import PhaseConfig, PretrainConfig, Recipe
from moxin.tokens.loader import Curriculum, PhaseData
from moxin.train.job import Micro, OptimizerSettings, Schedule
from moxin.train.objective import IGNORE
from moxin.train.prefetch import AHEAD


class Sizes:
    """How many rows of `context` tokens every step of a phase takes, which began after `before` tokens of the run.

    A batch grows linearly with the tokens seen, from `initial` to `full` tokens over the run's first `warmup` tokens, in
    whole rows (arXiv 2005.14165, §2.3). With an `initial` of 0 every step takes the full batch.
    """

    def __init__(
        self, phase: PhaseConfig, full: int, initial: int = 0, warmup: int = 0, before: int = 0
    ) -> None:
        context = phase.context
        self.full = full // context
        growing: list[int] = []
        seen = 0
        while initial and before + seen < warmup:
            size = initial + (full - initial) * (before + seen) // warmup
            rows = max(1, size // context)
            if seen + rows * context > phase.tokens:
                break
            growing.append(rows)
            seen += rows * context
        self.growing = np.array(growing, np.int64)
        self.ends = self.growing.cumsum()
        self.n_steps = len(growing) + (phase.tokens - seen) // (self.full * context)

    def rows(self, i: int) -> int:
        return int(self.growing[i]) if i < len(self.growing) else self.full

    def first(self, i: int) -> int:
        """Rows of all steps before step `i`."""
        n = len(self.growing)
        if i <= n:
            return int(self.ends[i - 1]) if i else 0
        return (int(self.ends[-1]) if n else 0) + (i - n) * self.full

    def steps_within(self, rows: int) -> int:
        """Steps that take no more than so many rows together."""
        n = int(np.searchsorted(self.ends, rows, "right"))
        return n if n < len(self.growing) else n + (rows - self.first(n)) // self.full


class PhaseBatches:
    """Step `i` is the samples that follow those of the steps before; a rank takes its slice of them last.

    The slices of ranks that do not divide the rows differ by one: the loss is a sum over all of them, so it stays the same.
    While the context grows, samples are cut into shorter rows, of the same tokens in the same order.
    """

    def __init__(
        self,
        tokens_url: str,
        curriculum: Curriculum,
        global_batch: int,
        micro_batch: int | Literal["auto"],
        packs: str = "",
        initial_global_batch: int = 0,
        batch_warmup_tokens: int = 0,
    ) -> None:
        self.phase = phase = curriculum.phases[-1]
        self.data = PhaseData(tokens_url, curriculum, packs)
        before = sum(earlier.tokens for earlier in curriculum.phases[:-1])
        self.sizes = Sizes(phase, global_batch, initial_global_batch, batch_warmup_tokens, before)
        # Left open, it is settled on the workers (`moxin.train.fitting`), before any step is asked for.
        self.micro_rows = 1 if micro_batch == "auto" else max(1, micro_batch // phase.context)
        self.n_steps = self.sizes.n_steps
        self._asked = -1

    def step(self, i: int, rank: int, world: int) -> list[Micro]:
        rows = self.sizes.rows(i)
        if world > rows:
            raise ValueError(
                f"{rows} sequences a step are fewer than {world} workers; raise pretrain.global_batch (or "
                "initial_global_batch) or lower scaling.n_workers"
            )
        first, last = self._slice(i, rank, world)
        # As many micro-batches on every rank, which must meet in their collectives.
        n = math.ceil(math.ceil(rows / world) / self.micro_rows)
        for ahead in range(max(i + 1, self._asked + 1), min(i + AHEAD + 1, self.n_steps)):
            begin, end = self._slice(ahead, rank, world)
            self.data.look_ahead(begin, end - begin)
        self._asked = i + AHEAD
        edges = [first + (last - first) * number // n for number in range(n + 1)]
        context = context_at(self.phase, self.sizes.first(i) * self.phase.context)
        return [self._micro(start, stop - start, context) for start, stop in pairwise(edges)]

    def _slice(self, i: int, rank: int, world: int) -> tuple[int, int]:
        begin, rows = self.sizes.first(i), self.sizes.rows(i)
        return begin + rows * rank // world, begin + rows * (rank + 1) // world

    def _micro(self, first: int, n: int, context: int) -> Micro:
        batch = self.data.batch(first, max(n, 1))
        if (
            not n
        ):  # a rank with a row less, and one row at a time: it goes through the model and counts for nothing
            batch.targets_BT[:] = IGNORE
        rows = {"tokens": batch.tokens_BT, "targets": batch.targets_BT, "segments": batch.segments_BT}
        cut = {name: array.reshape(-1, context) for name, array in rows.items()}
        return {**cut, "sources": batch.sources_B.repeat(self.phase.context // context)}

    def size(self, i: int) -> int:
        return self.sizes.rows(i) * self.phase.context

    def mixture(self) -> list[dict[str, object]]:
        """What the steps read of every source: exact, for the manifest."""
        return [row._asdict() for row in self.data.plan(self.sizes.first(self.n_steps))]


def context_at(phase: PhaseConfig, seen: int) -> int:
    """The context after `seen` tokens of a phase: it doubles at even distances until `context_warmup_tokens`."""
    if not phase.initial_context or seen >= phase.context_warmup_tokens:
        return phase.context
    doublings = (phase.context // phase.initial_context).bit_length() - 1
    return phase.initial_context << (doublings * seen // phase.context_warmup_tokens)


def sizes_of(pretrain: PretrainConfig, index: int) -> Sizes:
    before = sum(phase.tokens for phase in pretrain.phases[:index])
    phase, initial = pretrain.phases[index], pretrain.initial_global_batch
    return Sizes(phase, pretrain.global_batch, initial, pretrain.batch_warmup_tokens, before)


def schedule(pretrain: PretrainConfig, index: int) -> Schedule:
    """One warm-up and one decay over all phases that have no learning rate of their own, of which phase `index` is a part;
    or those of a phase that has."""
    own = bool(pretrain.phases[index].learning_rate)
    numbers = [
        k for k, phase in enumerate(pretrain.phases) if (k == index if own else not phase.learning_rate)
    ]
    sizes = {k: sizes_of(pretrain, k) for k in numbers}
    warmup, left = 0, pretrain.warmup_tokens
    for k in numbers:
        context = pretrain.phases[k].context
        steps = min(sizes[k].n_steps, sizes[k].steps_within(left // context))
        warmup += steps
        left -= sizes[k].first(steps) * context
        if steps < sizes[k].n_steps:
            break
    return Schedule(
        total_steps=sum(one.n_steps for one in sizes.values()),
        first_step=sum(one.n_steps for k, one in sizes.items() if k < index),
        warmup_steps=warmup,
        min_ratio=pretrain.min_learning_rate_ratio,
        kind=pretrain.schedule,
        decay_steps=pretrain.decay_tokens // pretrain.global_batch,
    )


def optimizer(pretrain: PretrainConfig) -> OptimizerSettings:
    return OptimizerSettings(
        kind=pretrain.optimizer,
        betas=(pretrain.beta1, pretrain.beta2),
        eps=pretrain.eps,
        momentum=pretrain.muon_momentum,
        weight_decay=pretrain.weight_decay,
        grad_clip=pretrain.grad_clip,
    )


def decisive(recipe: Recipe, index: int) -> dict[str, object]:
    """The slice of the recipe that decides the weights after phase `index`, apart from its inputs."""
    pretrain = recipe.pretrain
    phase = pretrain.phases[index]
    return {
        "model": recipe.model,
        "initial": pretrain.initial if not index else "",
        "phase": phase,
        "shuffle_tokens": pretrain.shuffle_tokens,
        "schedule": schedule(pretrain, index),
        "peak": phase.learning_rate or pretrain.learning_rate,
        "optimizer": optimizer(pretrain),
        "guards": pretrain.guards,
        "precision": recipe.scaling.precision,
        **{
            name: getattr(pretrain, name)
            for name in ("global_batch", "initial_global_batch", "batch_warmup_tokens", "z_loss", "seed")
        },
        # Weights of steps on the way are a part of what is left behind.
        "publish_every": pretrain.publish_every,
    }
