#!/usr/bin/env python
"""Curate the documents of a recipe with Ray Data: what was removed is kept, with its reason.

jobs/curate.py --recipe demo
"""

import sys
from pathlib import Path

# The checkout, not this folder: jobs/tokenize.py would hide the standard library's module of that name.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from moxin import job, session
from moxin.pipeline import Run


def work(task: job.Job) -> None:
    session.start()
    run = Run(task.recipe, task.run_url)
    run.artifact("curate")


if __name__ == "__main__":
    sys.exit(job.main(__doc__ or "", work))
