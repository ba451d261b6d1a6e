"""The batches of a pretraining phase: which samples are in a step does not depend on the number of workers."""

import math
from itertools import pairwise

import numpy as np

from moxin.recipe import PhaseConfig, PretrainConfig, Recipe
from moxin.tokens.loader import Curriculum, PhaseData
from moxin.train.job import Micro, Schedule
from moxin.train.objective import IGNORE
from moxin.train.prefetch import AHEAD


class PhaseBatches:
    """Step `i` is the samples `i * rows .. (i + 1) * rows` of the phase; a rank takes its slice of them last.

    The slices of ranks that do not divide the rows differ by one: the loss is a sum over all of them, so it stays the same.
    """

    def __init__(
        self,
        tokens_url: str,
        curriculum: Curriculum,
        global_batch: int,
        micro_batch: int,
        packs: str = "",
    ) -> None:
        phase = curriculum.phases[-1]
        self.data = PhaseData(tokens_url, curriculum, packs)
        self.global_batch = global_batch
        self.rows = global_batch // phase.context
        self.micro_rows = max(1, micro_batch // phase.context)
        self.n_steps = n_steps(phase, global_batch)
        self._asked = -1

    def step(self, i: int, rank: int, world: int) -> list[Micro]:
        if world > self.rows:
            raise ValueError(
                f"{self.rows} sequences a step are fewer than {world} workers; raise pretrain.global_batch or lower "
                "scaling.n_workers"
            )
        first, last = (i * self.rows + self.rows * edge // world for edge in (rank, rank + 1))
        # As many micro-batches on every rank, which must meet in their collectives.
        n = math.ceil(math.ceil(self.rows / world) / self.micro_rows)
        for ahead in range(max(i + 1, self._asked + 1), i + AHEAD + 1):
            self.data.look_ahead(first + (ahead - i) * self.rows, last - first)
        self._asked = i + AHEAD
        edges = [first + (last - first) * number // n for number in range(n + 1)]
        return [self._micro(start, stop - start) for start, stop in pairwise(edges)]

    def _micro(self, first: int, n: int) -> dict[str, np.ndarray]:
        batch = self.data.batch(first, max(n, 1))
        if (
            not n
        ):  # a rank with a row less, and one row at a time: it goes through the model and counts for nothing
            batch.targets_BT[:] = IGNORE
        return {"tokens": batch.tokens_BT, "targets": batch.targets_BT, "segments": batch.segments_BT}

    def size(self, i: int) -> int:
        return self.global_batch

    def mixture(self) -> list[dict[str, object]]:
        """What the steps read of every source: exact, for the manifest."""
        return [row._asdict() for row in self.data.plan(self.n_steps * self.rows)]


def n_steps(phase: PhaseConfig, global_batch: int) -> int:
    return phase.tokens // global_batch


def schedule(pretrain: PretrainConfig, index: int) -> Schedule:
    """One warm-up and one cosine over all phases, of which phase `index` is a part."""
    steps = [n_steps(phase, pretrain.global_batch) for phase in pretrain.phases]
    return Schedule(
        total_steps=sum(steps),
        first_step=sum(steps[:index]),
        warmup_steps=pretrain.warmup_tokens // pretrain.global_batch,
        min_ratio=pretrain.min_learning_rate_ratio,
    )


def decisive(recipe: Recipe, index: int) -> dict[str, object]:
    """The slice of the recipe that decides the weights after phase `index`, apart from its inputs."""
    pretrain = recipe.pretrain
    return {
        "model": recipe.model,
        "phase": pretrain.phases[index],
        "shuffle_tokens": pretrain.shuffle_tokens,
        "schedule": schedule(pretrain, index),
        "precision": recipe.scaling.precision,
        **{
            name: getattr(pretrain, name)
            for name in (
                "global_batch",
                "learning_rate",
                "weight_decay",
                "beta1",
                "beta2",
                "grad_clip",
                "seed",
            )
        },
    }
