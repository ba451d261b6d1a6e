#!/usr/bin/env python
"""Curate the documents of a recipe with Ray Data: what was removed is kept, with its reason.

jobs/curate.py --recipe demo
jobs/curate.py --sources ~/pages --profile fineweb
jobs/curate.py --sources ~/pages --profile fineweb --sample 0.01 --dry-run     # what would it remove?
"""

import sys
from pathlib import Path

# The checkout, not this folder: jobs/tokenize.py would hide the standard library's module of that name.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

import argparse
import tempfile
from dataclasses import replace

from moxin import console, job, session
from moxin.pipeline import Run
from moxin.recipe import Recipe


def options() -> argparse.ArgumentParser:
    parser = job.parser(__doc__ or "")
    parser.add_argument(
        "--profile", default="", help="the same as --set curate.profile=…; moxin profile lists all"
    )
    parser.add_argument(
        "--sample",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="with --dry-run: try it on a share of the documents",
    )
    return parser


def change(recipe: Recipe, given: argparse.Namespace) -> Recipe:
    if given.sample and not given.dry_run:
        raise ValueError(f"--sample {given.sample:g} only tries things out: add --dry-run")
    if not given.profile:
        return recipe
    return replace(recipe, curate=replace(recipe.curate, profile=given.profile))


def show(task: job.Job) -> None:
    from moxin.curate import plan

    with tempfile.TemporaryDirectory(prefix="moxin-world-") as folder:
        world = Run(task.recipe, folder).artifact("world")
        plan.show(task.recipe, world)
        if task.options.sample:
            session.start()
            console.heading(f"▸ a sample of {task.options.sample:.2%}")
            plan.estimate(task.recipe, world, task.options.sample)


def work(task: job.Job) -> None:
    session.start()
    run = Run(task.recipe, task.run_url)
    run.artifact("curate")


if __name__ == "__main__":
    sys.exit(job.main_with(options(), work, change=change, show=show))
