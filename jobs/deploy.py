#!/usr/bin/env python
"""Serve the released chat model over the OpenAI API until Ctrl-C.

jobs/deploy.py --recipe demo --port 8000
"""

import sys
from pathlib import Path

# The checkout, not this folder: jobs/tokenize.py would hide the standard library's module of that name.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from moxin import job, session
from moxin.pipeline import Run
from serve.run import check_port, serve_forever


def work(task: job.Job) -> None:
    check_port(task.options.host, task.options.port)
    session.start()
    release = Run(task.recipe, task.run_url).artifact("release")
    name = f"moxin-{task.recipe.name}"
    serve_forever(release.url, port=task.options.port, host=task.options.host, name=name)


if __name__ == "__main__":
    options = job.parser(__doc__ or "")
    options.add_argument("--port", type=int, default=8000, help="HTTP port (default: 8000)")
    options.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: this machine only)"
    )
    sys.exit(job.main_with(options, work))
