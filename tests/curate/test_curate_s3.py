"""The whole stage from S3 to S3, while connections break off and the store asks for patience: the bytes of a local run."""

import hashlib
from pathlib import Path

import pytest
from test_curate_run import pages, recipe_for  # noqa: F401

from moxin import artifact, recipes, storage
from moxin.curate import run
from moxin.tinyworld import stage as tinyworld

pytestmark = pytest.mark.slow


def content_of(url: str) -> dict[str, str]:
    names = [name for name in storage.sizes_under(url) if name != artifact.MANIFEST]
    return {name: hashlib.sha256(storage.read_bytes(storage.join(url, name))).hexdigest() for name in names}


def test_from_s3_to_s3_with_faults_is_as_from_disk_to_disk(ray_session, pages, tmp_path, s3):  # noqa: F811
    world = artifact.make(tinyworld.stage(recipes.load("smoke")), str(tmp_path))
    local = artifact.make(run.stage(recipe_for(pages, profile="near-only"), world), str(tmp_path))
    storage.upload(Path(pages), f"{s3.url}/pages")
    recipe = recipe_for(f"{s3.url}/pages", profile="near-only")
    s3.faults.cut_downloads(3)
    s3.faults.refuse(3)
    s3.faults.cut_uploads(2)
    s3.faults.lose_answers(2)
    remote = artifact.make(run.stage(recipe, world), f"{s3.url}/run")
    assert s3.faults.injected == 10
    assert content_of(remote.url) == content_of(local.url)
    assert remote.verify() == []
