#!/usr/bin/env python
"""Pretrain through all phases with Ray Train and DeepSpeed; started again, it goes on where it was.

jobs/pretrain.py --recipe demo
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
    for phase in run.phases:
        run.artifact(f"pretrain-{phase}")


if __name__ == "__main__":
    sys.exit(job.main(__doc__ or "", work))
