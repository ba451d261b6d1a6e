#!/usr/bin/env python
"""Serve the released chat model over the OpenAI API, with a chat page, until Ctrl-C.

jobs/deploy.py --recipe demo --port 8000
jobs/deploy.py --recipe demo --serve max_batch=16 --serve weights=int8    # settings of serve.app
jobs/deploy.py --config serve/service.yaml                                # several models; the release is not made
"""

import sys
from pathlib import Path

# The checkout, not this folder: jobs/tokenize.py would hide the standard library's module of that name.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from moxin import job, session
from moxin.config import parse_override
from moxin.pipeline import Run
from serve.app import parse
from serve.run import check_exposed, check_port, read_config, serve_forever


def work(task: job.Job) -> None:
    options = task.options
    if options.config:
        if options.serve:
            raise ValueError("--serve has no effect beside --config; write the setting into the file")
        args, host, port = read_config(options.config)
    else:
        args = {"name": f"moxin-{task.recipe.name}", **dict(map(parse_override, options.serve))}
        parse({"model": "later", **args}, look=False)
        host, port = options.host, options.port
    check_exposed(host, args.get("api_keys_file", ""), options.without_keys)
    check_port(host, port)
    session.start()
    if not options.config:
        args["model"] = Run(task.recipe, task.run_url).artifact("release").url
    serve_forever(args, port, host)


if __name__ == "__main__":
    options = job.parser(__doc__ or "")
    options.add_argument("--port", type=int, default=8000, help="HTTP port (default: 8000)")
    options.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: this machine only)"
    )
    options.add_argument(
        "--without-keys", action="store_true", help="listen on another address although no API key is set"
    )
    options.add_argument(
        "--config", default="", metavar="FILE", help="a Serve configuration file instead of a run"
    )
    options.add_argument(
        "--serve",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting of serve.app; may be repeated",
    )
    sys.exit(job.main_with(options, work))
