#!/usr/bin/env python
"""Evaluate the model after every phase, after SFT and after DPO with lm-eval.

jobs/evaluate.py --recipe demo
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
    for trained in (*run.phases, "sft", "dpo"):
        run.artifact(f"evaluate-{trained}")


if __name__ == "__main__":
    sys.exit(job.main(__doc__ or "", work))
