#!/usr/bin/env python
"""Write the chat model in Hugging Face format, check it against transformers, and write its model card.

jobs/release.py --recipe demo
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
    run.artifact("release")


if __name__ == "__main__":
    sys.exit(job.main(__doc__ or "", work))
