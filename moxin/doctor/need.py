"""What a run asks of its machines, as far as it follows from the recipe."""

from dataclasses import dataclass

from moxin.plan import parameters
from moxin.plan.memory import optimizer_bytes
from moxin.recipe import ModelConfig, Recipe, ScalingConfig


@dataclass(frozen=True)
class Need:
    n_workers: int = 1
    use_gpu: bool = False
    accelerator: str = ""
    weights_bytes: int = 0
    """All weights in 32 bits, as one worker gathers them when a phase ends; 0 is not known."""
    gradient_bytes: int = 0
    """What every worker sends through the all-reduce of a step."""
    checkpoint_bytes: int = 0
    """One whole checkpoint, of all workers together."""
    n_checkpoints: int = 0
    """Checkpoints that lie in the run's folder at the same time, the one that is being written among them."""

    @classmethod
    def of(
        cls, model: ModelConfig, scaling: ScalingConfig, *, optimizer: str = "adamw", keep_last: int = 2
    ) -> "Need":
        """A checkpoint holds weights and moments in 32 bits (`moxin.train.shards`)."""
        n = parameters(model)["total"]
        own = 2 if scaling.precision == "bf16" else 4
        return cls(
            n_workers=scaling.n_workers,
            use_gpu=scaling.use_gpu,
            accelerator=scaling.accelerator,
            weights_bytes=4 * n,
            gradient_bytes=own * n,
            checkpoint_bytes=4 * n + optimizer_bytes(model, optimizer),
            n_checkpoints=keep_last + 1,
        )

    @classmethod
    def of_recipe(cls, recipe: Recipe) -> "Need":
        pretrain = recipe.pretrain
        return cls.of(
            recipe.model, recipe.scaling, optimizer=pretrain.optimizer, keep_last=pretrain.keep_last
        )
