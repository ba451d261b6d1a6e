#!/usr/bin/env python
"""The whole road: documents, tokens, three phases, SFT, DPO, evaluation, release, service, three questions, a report.

jobs/pipeline.py --recipe demo
"""

import sys
import time
from pathlib import Path

# The checkout, not this folder: jobs/tokenize.py would hide the standard library's module of that name.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from moxin import console, job, session, storage
from moxin.pipeline import Run
from moxin.report import run as report
from moxin.watch import PeakMemory
from serve.interview import ask
from serve.run import serving


def work(task: job.Job) -> None:
    started = time.monotonic()
    with PeakMemory() as memory:
        session.start()
        console.say(f"Ray dashboard: {session.dashboard_url()}", style="dim")
        run = Run(task.recipe, task.run_url)
        artifacts = run.all()

        console.heading("▸ serve")
        questions = storage.read_jsonl(artifacts["world"].file("interview.jsonl"))
        with serving(artifacts["release"].url, name=f"moxin-{task.recipe.name}") as base_url:
            console.say(f"  {base_url}/v1/chat/completions", style="dim")
            answers = ask(questions, base_url)
        for answer in answers:
            console.say(f"\n  Q  {answer['question']}", style="bold")
            verdict = "✓" if answer["right"] else f"✗ expected {answer['expected']}"
            console.say(f"  A  {' '.join(answer['answer'].split())}   {verdict}")
    page = report.write(
        task.run_url, task.recipe, artifacts, answers, time.monotonic() - started, memory.peak_bytes
    )
    console.say(f"\nreport: {page}", style="bold")


if __name__ == "__main__":
    sys.exit(job.main(__doc__ or "", work))
