"""A run: the stages of a recipe in their order, each made once, from the artifacts before it.

Asking for an artifact makes what it needs first, as `make` does: so every job can be the first one.
"""

import time

from moxin import artifact, console
from moxin.artifact import Artifact, Stage
from moxin.config import nearest
from moxin.recipe import Recipe


class Run:
    """The artifacts of one recipe in one folder. `artifact("sft")` makes `sft` and whatever it stands on."""

    def __init__(self, recipe: Recipe, url: str, *, only_find: bool = False) -> None:
        """With `only_find` an artifact that is missing is a `ValueError` and is not made."""
        self.recipe, self.url, self._only_find = recipe, url, only_find
        self.made: dict[str, Artifact] = {}
        self.phases = [phase.name for phase in recipe.pretrain.phases]

    @property
    def names(self) -> list[str]:
        """All stages, in the order of the road."""
        pretraining = []
        for phase in self.recipe.pretrain.phases:
            packed = [f"pack-{phase.name}"] if phase.packing == "best_fit" else []
            pretraining += [*packed, f"pretrain-{phase.name}", f"evaluate-{phase.name}"]
        return [
            "world",
            "curate",
            "tokenize",
            *pretraining,
            "sft",
            "evaluate-sft",
            "dpo",
            "evaluate-dpo",
            "release",
        ]

    def artifact(self, name: str) -> Artifact:
        """The artifact called `name`, made now if need be. Raises `ValueError` for a name that no stage has."""
        if name not in self.made:
            stage = self.stage(name)
            if found := artifact.find(stage, self.url):
                self.made[name] = found
                if not self._only_find:
                    console.say(f"✓ {name}: there already", style="dim")
            elif self._only_find:
                raise ValueError(
                    f"{self.url}: {name} is not finished for this run's recipe ({stage.url(self.url)})"
                )
            else:
                console.heading(f"▸ {name}")
                started = time.monotonic()
                self.made[name] = artifact.make(stage, self.url)
                console.say(f"✓ {name}: {console.format_seconds(time.monotonic() - started)}", style="green")
        return self.made[name]

    def model_of(self, trained: str) -> Artifact:
        """The artifact with the weights of `phase1`, `sft`, `dpo`, …"""
        return self.artifact(trained if trained in ("sft", "dpo") else f"pretrain-{trained}")

    def stage(self, name: str) -> Stage:
        """The stage called `name`; its inputs are made on the way. Rooms are imported when they are entered."""
        if name not in self.names:
            raise ValueError(f"there is no stage {name!r}; {nearest(name, self.names)}")
        recipe = self.recipe
        if name == "world":
            from moxin.tinyworld import stage as tinyworld

            return tinyworld.stage(recipe)
        if name == "curate":
            from moxin.curate import run as curate

            return curate.stage(recipe, self.artifact("world"))
        if name == "tokenize":
            from moxin.tokens import run as tokens

            return tokens.stage(recipe, self.artifact("curate"), self.artifact("world"))
        if name.startswith("pack-"):
            from moxin.tokens import run as tokens

            return tokens.pack_stage(
                recipe, self.phases.index(name.removeprefix("pack-")), self.artifact("tokenize")
            )
        if name.startswith("pretrain-"):
            from moxin.train import run as train

            index = self.phases.index(name.removeprefix("pretrain-"))
            previous = self.artifact(f"pretrain-{self.phases[index - 1]}") if index else None
            packs = None
            if recipe.pretrain.phases[index].packing == "best_fit":
                packs = self.artifact(f"pack-{self.phases[index]}")
            return train.stage(recipe, index, self.artifact("tokenize"), previous, packs)
        if name.startswith("evaluate-"):
            from moxin.evaluate import run as evaluate

            of = name.removeprefix("evaluate-")
            return evaluate.stage(
                recipe, of, self.model_of(of), self.artifact("tokenize"), self.artifact("world")
            )
        if name in ("sft", "dpo"):
            from moxin.align import run as align

            tokens_, world = self.artifact("tokenize"), self.artifact("world")
            if name == "sft":
                return align.sft_stage(recipe, tokens_, world, self.model_of(self.phases[-1]))
            return align.dpo_stage(recipe, tokens_, world, self.artifact("sft"))
        from moxin.release import run as release

        evaluations = {of: self.artifact(f"evaluate-{of}") for of in (*self.phases, "sft", "dpo")}
        return release.stage(
            recipe,
            self.artifact("dpo"),
            self.artifact("tokenize"),
            self.artifact("curate"),
            self.artifact("world"),
            evaluations,
        )

    def all(self) -> dict[str, Artifact]:
        """Every artifact of the road, in its order."""
        return {name: self.artifact(name) for name in self.names}
