"""The worlds of both recipes, generated once per session."""

import pytest

from moxin import recipes
from moxin.recipe import TinyworldConfig
from moxin.tinyworld.generate import Tinyworld, generate


@pytest.fixture(scope="session", params=["smoke", "demo"])
def config(request: pytest.FixtureRequest) -> TinyworldConfig:
    return recipes.load(request.param).tinyworld


@pytest.fixture(scope="session")
def world(config: TinyworldConfig) -> Tinyworld:
    return generate(config)


@pytest.fixture(scope="session")
def originals(world: Tinyworld) -> list[dict[str, str]]:
    planted = {row["id"] for row in world.planted}
    return [row for row in world.documents if row["id"] not in planted]
