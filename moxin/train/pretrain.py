"""The batches of a pretraining phase: which samples are in a step does not depend on the number of workers."""

import numpy as np

from moxin.recipe import PhaseConfig, PretrainConfig, Recipe
from moxin.tokens.loader import PhaseData
from moxin.train.job import Micro, Schedule


class PhaseBatches:
    """Step `i` is the samples `i * rows .. (i + 1) * rows` of the phase; a rank takes its slice of them last."""

    def __init__(
        self, tokens_url: str, phase: PhaseConfig, seed: int, global_batch: int, micro_batch: int
    ) -> None:
        self.data = PhaseData(tokens_url, phase, seed)
        self.global_batch = global_batch
        self.rows = global_batch // phase.context
        self.micro_rows = max(1, micro_batch // phase.context)
        self.n_steps = n_steps(phase, global_batch)

    def step(self, i: int, rank: int, world: int) -> list[Micro]:
        if self.rows % world:
            raise ValueError(
                f"{self.rows} sequences a step do not divide among {world} workers; change pretrain.global_batch or "
                "scaling.n_workers"
            )
        mine = self.rows // world
        first = i * self.rows + rank * mine
        return [
            self._micro(first + done, min(self.micro_rows, mine - done))
            for done in range(0, mine, self.micro_rows)
        ]

    def _micro(self, first: int, n: int) -> dict[str, np.ndarray]:
        batch = self.data.batch(first, n)
        return {"tokens": batch.tokens_BT, "targets": batch.targets_BT, "segments": batch.segments_BT}

    def size(self, i: int) -> int:
        return self.global_batch


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
