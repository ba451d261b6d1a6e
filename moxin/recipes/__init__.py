"""Recipes by name: every one is a function that returns one `Recipe`."""

from collections.abc import Callable
from functools import partial

from moxin.config import nearest
from moxin.recipe import Recipe
from moxin.recipes.demo import demo, smoke
from moxin.recipes.ladder import RUNGS, rung
from moxin.recipes.moxin_7b import moxin_7b, moxin_7b_expanded
from moxin.recipes.mpt_7b import mpt_7b, mpt_7b_storywriter
from moxin.recipes.mpt_30b import mpt_30b

RECIPES: dict[str, Callable[[], Recipe]] = {
    "demo": demo,
    "smoke": smoke,
    "moxin_7b": moxin_7b,
    "moxin_7b_expanded": moxin_7b_expanded,
    "mpt_7b": mpt_7b,
    "mpt_7b_storywriter": mpt_7b_storywriter,
    "mpt_30b": mpt_30b,
    **{f"ladder_{size}": partial(rung, size) for size in RUNGS},
}


def load(name: str) -> Recipe:
    """The recipe called `name`. Raises `ValueError` with the nearest right name."""
    if name not in RECIPES:
        raise ValueError(f"--recipe {name!r} is not known; {nearest(name, RECIPES)}")
    return RECIPES[name]()
