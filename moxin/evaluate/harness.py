"""The offline tasks, run by lm-eval: what they read, how a reply is judged, and what is kept of the results.

The tasks are the YAML files in `tasks/`. Their data come through lm-eval's `metadata`: nothing is looked up on a hub.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from datasets import Dataset
from lm_eval.api.metrics import bits_per_byte, mean
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager

from moxin import storage
from moxin.evaluate.exam import TASKS, Exam
from moxin.evaluate.lm import MoxinLM

FOLDER = Path(__file__).parent / "tasks"
PLAIN_PROMPT = "Question: {question}\nAnswer:"
"""How a model that was only pretrained is asked: the form of the quiz documents."""
Samples = list[dict[str, Any]]


def questions(questions_url: str, chat: bool, **_: Any) -> dict[str, Dataset]:
    """The held-out questions with their `prompt` (lm-eval puts the chat template around it where there is one) and every
    choice as the sentence that would say so: `sentence` with another value in the place of `text`."""
    form = "{question}" if chat else PLAIN_PROMPT
    rows = []
    for row in storage.read_jsonl(questions_url):
        before, value, after = row["sentence"].rpartition(row["text"])
        if value != row["text"]:
            raise ValueError(f"{questions_url}: {row['id']}: {row['text']!r} is not in {row['sentence']!r}")
        sentences = [before + choice + after for choice in row["choices"]]
        rows.append({**row, "prompt": form.format(question=row["question"]), "sentences": sentences})
    return {"test": Dataset.from_list(rows)}


def heldout(heldout_url: str, **_: Any) -> dict[str, Dataset]:
    """Documents kept out of training."""
    return {"test": Dataset.from_list(storage.read_jsonl(heldout_url))}


def names_answer(doc: Mapping[str, Any], results: list[str]) -> dict[str, float]:
    """1 where the reply names the right answer, as whole words and whatever the case."""
    wanted = rf"(?<!\w){re.escape(doc['text'])}(?!\w)"
    return {"acc": float(bool(re.search(wanted, results[0], re.IGNORECASE)))}


def run_task(lm: MoxinLM, task: str, exam: Exam) -> Samples:
    """lm-eval's logged samples of one task, in the order of its documents; none where nothing was held back to read."""
    reads = task == "heldout_bits_per_byte"
    if reads and not storage.read_jsonl(exam.heldout_url):
        return []
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of every custom dataset
    manager = TaskManager(include_path=str(FOLDER), include_defaults=False, metadata=asdict(exam))
    results = evaluate(
        lm,
        manager.load([task]),
        apply_chat_template=exam.chat and not reads,
        fewshot_as_multiturn=exam.chat and not reads,
        bootstrap_iters=0,
    )
    return sorted(results["samples"][task], key=lambda sample: int(sample["doc_id"]))


def summarize(samples: Mapping[str, Samples]) -> tuple[dict[str, Any], Samples]:
    """The scores of all `TASKS`, and a row per question with what the model chose and what it said."""
    chosen, replied, read = (samples[task] for task in TASKS)
    pieces: dict[str, list[tuple[float, int]]] = {}
    for sample in read:
        pieces.setdefault(sample["doc"]["source"], []).append(sample["bits_per_byte"])
    results = {
        "tinyworld_mc": mean([sample["acc"] for sample in chosen]),
        "tinyworld_gen": mean([sample["acc"] for sample in replied]),
        "chance": mean([1 / len(sample["doc"]["choices"]) for sample in chosen]),
        "n_questions": len(chosen),
        "bits_per_byte": {source: bits_per_byte(items) for source, items in sorted(pieces.items())},
    }
    rows = []
    for choice, reply in zip(chosen, replied, strict=True):
        logps = [logp for logp, _ in choice["filtered_resps"]]
        rows.append(
            {
                **{name: choice["doc"][name] for name in ("id", "question", "choices", "answer", "text")},
                "predicted": logps.index(max(logps)),
                "right": bool(choice["acc"]),
                "reply": reply["filtered_resps"][0],
                "reply_right": bool(reply["acc"]),
            }
        )
    return results, rows
