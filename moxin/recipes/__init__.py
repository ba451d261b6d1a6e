"""Recipes by name: every one is a function that returns one `Recipe`."""

from collections.abc import Callable

from moxin.config import nearest
from moxin.recipe import Recipe
from moxin.recipes.demo import demo, smoke

RECIPES: dict[str, Callable[[], Recipe]] = {"demo": demo, "smoke": smoke}


def load(name: str) -> Recipe:
    """The recipe called `name`. Raises `ValueError` with the nearest right name."""
    if name not in RECIPES:
        raise ValueError(f"--recipe {name!r} is not known; {nearest(name, RECIPES)}")
    return RECIPES[name]()
