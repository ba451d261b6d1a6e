import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from moxin import job, plan, recipes
from moxin.config import override

ROOT = Path(__file__).resolve().parent.parent
JOBS = sorted(path for path in (ROOT / "jobs").glob("*.py"))


def run_job(name, *arguments, **options):
    return subprocess.run(
        [sys.executable, str(ROOT / "jobs" / name), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        **options,
    )


def test_a_dry_run_prints_the_recipe_and_its_consequences_and_writes_nothing(tmp_path):
    done = run_job("pretrain.py", "--dry-run", "--run", str(tmp_path / "run"), "--set", "sft.epochs=7")
    assert done.returncode == 0, done.stderr
    assert '"epochs": 7' in done.stdout
    assert "training compute" in done.stdout
    assert not (tmp_path / "run").exists()


def test_a_wrong_key_ends_with_2_and_the_nearest_name():
    done = run_job("curate.py", "--set", "curate.shard_byte=1", "--dry-run")
    assert done.returncode == 2
    assert "did you mean 'shard_bytes'?" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_every_job_is_short_executable_and_shows_its_options(path):
    assert os.access(path, os.X_OK)
    text = path.read_text()
    assert text.startswith("#!/usr/bin/env python\n")
    assert len(text.splitlines()) < 100


OPTIONS = {"--help", "--recipe", "--set", "--run", "--sources", "--dry-run"}


def test_the_command_line_is_frozen():
    known = {
        flag for action in job.parser("")._actions for flag in action.option_strings if flag.startswith("--")
    }
    assert known == OPTIONS


def test_a_missing_source_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        job.with_own_sources(recipes.load("demo"), str(tmp_path / "nowhere"))


def test_own_sources_take_the_place_of_prose_and_code(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    recipe = job.with_own_sources(recipes.load("demo"), str(tmp_path))
    recipe.validate()
    assert [source.name for source in recipe.sources] == ["own", "tinyworld", "quiz"]
    for before, after in zip(recipes.load("demo").pretrain.phases, recipe.pretrain.phases, strict=True):
        assert sum(after.mix.values()) == pytest.approx(sum(before.mix.values()))


def test_two_jobs_cannot_work_on_one_run(tmp_path):
    script = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
from moxin import job
with job.locked({str(tmp_path)!r}):
    print("locked", flush=True); sys.stdin.readline()
"""
    other = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(ValueError, match="another job works on this run"), job.locked(str(tmp_path)):
            pass
    finally:
        other.communicate("\n", timeout=60)
    with job.locked(str(tmp_path)):
        pass


def wrapped(error):
    try:
        try:
            raise error
        except OSError as inner:
            raise RuntimeError("the worker failed") from inner
    except RuntimeError as outer:
        return outer


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "x", "/data/f"), r"no space left .*/data/f"),
        (wrapped(OSError(errno.EROFS, "x")), "read-only"),
        (PermissionError(errno.EACCES, "x", "/root/f"), "not permitted"),
        (RuntimeError("worker: [Errno 28] No space left on device"), "no space left"),
    ],
)
def test_trouble_with_storage_is_told_in_one_line(error, message, capsys):
    assert job.report_failure(error) == 1
    assert re.search(message, job.storage_trouble(error))


def test_other_failures_are_not_taken_for_storage_trouble():
    assert job.storage_trouble(RuntimeError("boom")) == ""
    assert job.report_failure(ValueError("bad value")) == 2
    assert job.report_failure(RuntimeError("boom")) == 1


def test_the_plan_counts_what_torch_counts():
    from moxin.model.decoder import Decoder

    for name in recipes.RECIPES:
        model = recipes.load(name).model
        for tied in ("true", "false"):
            config = override(model, "tie_embeddings", tied)
            with torch.device("meta"):
                decoder = Decoder(config)
            assert plan.parameters(config)["total"] == sum(p.numel() for p in decoder.parameters())
