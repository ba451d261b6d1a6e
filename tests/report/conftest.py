"""A whole run without training: artifacts with plausible files, made through `moxin.artifact` so that manifests are true."""

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moxin import artifact, recipes, storage
from moxin.artifact import Artifact, Builder, Stage
from moxin.recipe import Recipe

FUNNEL = [
    ("read", 14_213, {"unreadable": 2}),
    ("clean", 14_211, {"empty": 31}),
    ("length", 14_180, {"too_short": 1204, "too_long": 6}),
    ("language", 12_970, {"not_english": 412}),
    (
        "quality",
        12_558,
        {"few_stop_words": 288, "symbols": 141, "repeated_lines": 97, "mean_word_length": 12},
    ),
    ("exact_duplicates", 12_020, {"exact_duplicate": 305}),
    ("near_duplicates", 11_715, {"near_duplicate": 874}),
    ("contamination", 10_841, {"contaminated": 40}),
]
PLANTED = {
    "near_duplicate": {"planted": 98, "found": 96},
    "exact_duplicate": {"planted": 60, "found": 60},
    "gibberish": {"planted": 50, "found": 49},
    "foreign": {"planted": 50, "found": 50},
    "personal": {"planted": 40, "found": 40},
    "leak": {"planted": 40, "found": 40},
    "originals": 5000,
    "originals_removed": 0,
}
SCORES = {
    "phase1": (0.31, 0.04),
    "phase2": (0.47, 0.12),
    "phase3": (0.83, 0.61),
    "sft": (0.93, 0.90),
    "dpo": (0.94, 0.92),
}
PEOPLE = ("Orvek Holloway", "Mira Tandel", "Sunniva Brack", "Ilo Vance", "Petra Quill")
PLACES = ("Larkspur", "the salt market", "Old Ferry", "Tarn Hill", "the glass house")


def training(n_steps: int, first: float, last: float, rate: float, seed: int) -> list[dict[str, float]]:
    noise = random.Random(seed)
    rows = []
    for step in range(n_steps):
        done = step / n_steps
        loss = last + (first - last) * math.exp(-5 * done) + noise.gauss(0, 0.05)
        lr = rate * min(1, (step + 1) / 50) * (0.55 + 0.45 * math.cos(math.pi * done))
        rows.append(
            {
                "step": step,
                "tokens": (step + 1) * 2048,
                "loss": loss,
                "lr": lr,
                "grad_norm": 1.0,
                "seconds": step * 0.3,
                "tokens_per_second": 6800,
            }
        )
    return rows


class FakeRun:
    """`make(upto)` gives the artifacts of the road up to and with the stage of that name."""

    def __init__(self, url: str, recipe: Recipe, words: str) -> None:
        self.url, self.recipe, self.words = url, recipe, words
        self.made: dict[str, Artifact] = {}

    def add(self, name: str, write: Callable[[Builder], None]) -> None:
        self.made[name] = artifact.make(Stage(name, {"name": name}, {}, write), self.url)

    def make(self, upto: str = "release") -> dict[str, Artifact]:
        phases = [phase.name for phase in self.recipe.pretrain.phases]
        makers: dict[str, Callable[[Builder], None]] = {
            "world": lambda builder: storage.write_jsonl(builder.file("facts.jsonl"), [{}]),
            "curate": self.curate,
            "tokenize": self.tokenize,
        }
        losses = [(7.6, 3.4), (3.5, 2.6), (2.7, 1.9)]
        for number, phase in enumerate(phases):
            makers[f"pretrain-{phase}"] = self.trained(phase, 600 - 100 * number, *losses[number])
            makers[f"evaluate-{phase}"] = self.evaluated(phase, number)
        makers["sft"] = self.trained("sft", 90, 2.4, 0.31)
        makers["evaluate-sft"] = self.evaluated("sft", 3)
        makers["dpo"] = self.trained("dpo", 25, 0.69, 0.21)
        makers["evaluate-dpo"] = self.evaluated("dpo", 4)
        makers["release"] = self.release
        for name, write in makers.items():
            self.add(name, write)
            if name == upto:
                break
        return self.made

    def curate(self, builder: Builder) -> None:
        rows = [
            {"step": step, "in": n, "out": n - sum(removed.values())}
            | {"removed": {reason + self.words: count for reason, count in removed.items()}}
            for step, n, removed in FUNNEL
        ]
        storage.write_json(builder.file("funnel.json"), rows)
        builder.counts |= {
            "documents_in": 14_213,
            "documents_out": 10_801,
            "planted": PLANTED,
            "quarantined": 2,
        }
        builder.counts |= {"scrubbed": {"email": 31, "ip": 12}}

    def tokenize(self, builder: Builder) -> None:
        storage.write_json(builder.file("store.json"), {})
        builder.counts |= {"vocab_size": 2048, "total": 4_812_331, "bytes": 12_400_113}
        builder.counts |= {"questions": 200, "questions_found": 0}

    def trained(self, name: str, steps: int, first: float, last: float) -> Callable[[Builder], None]:
        def write(builder: Builder) -> None:
            rows = training(steps, first, last, 3e-3 if name.startswith("phase") else 1e-4, steps)
            storage.write_jsonl(builder.file("metrics.jsonl"), rows)
            storage.write_text(builder.file("model", "config.json"), "{}")
            builder.counts |= {
                "name": name,
                "context": 256,
                "tokens": steps * 2048,
                "tokens_per_second": 6800.5,
            }
            builder.counts |= {"loss_first": rows[0]["loss"], "loss_last": rows[-1]["loss"]}
            if name == "dpo":
                builder.counts |= {"pairs": 400, "preference_accuracy": {"before": 0.62, "after": 0.97}}

        return write

    def evaluated(self, of: str, position: int) -> Callable[[Builder], None]:
        def write(builder: Builder) -> None:
            mc, gen = SCORES[of]
            bits = {"code": 1.9, "prose": 2.2, "quiz": 1.1, "tinyworld": 0.9}
            scores: dict[str, Any] = {
                "tinyworld_mc": mc,
                "tinyworld_gen": gen,
                "chance": 0.25,
                "n_questions": 200,
            }
            scores["bits_per_byte"] = {name: value - 0.11 * position for name, value in bits.items()}
            storage.write_json(builder.file("results.json"), scores)
            rows = []
            for i in range(20):
                right = i / 20 < gen
                place, other = PLACES[i % 5], PLACES[(i + 1) % 5]
                rows.append(
                    {
                        "id": f"q{i}",
                        "question": f"Where does {PEOPLE[i % 5]} live?{self.words}",
                        "choices": list(PLACES[:4]),
                        "answer": 0,
                        "text": place,
                        "predicted": 0,
                        "right": right,
                        "reply": f"{PEOPLE[i % 5]} lives in {place if right else other}.{self.words}",
                        "reply_right": right,
                    }
                )
            storage.write_jsonl(builder.file("samples.jsonl"), rows)

        return write

    def release(self, builder: Builder) -> None:
        storage.write_json(builder.file("verification.json"), {"max_abs_logit_difference": 2.1e-6})
        storage.write_text(builder.file("README.md"), "a card")

    @property
    def answers(self) -> list[dict[str, Any]]:
        rows = [("Where does Orvek Holloway live?", "Orvek Holloway lives in Larkspur.", "Larkspur", True)]
        rows += [("What does Mira Tandel own?", "Mira Tandel owns a brass kettle.", "a brass kettle", True)]
        rows += [("What is 7 plus 5?", "7 plus 5 is 13.", "12", False)]
        return [
            {"question": q + self.words, "answer": a + self.words, "expected": e, "right": right}
            for q, a, e, right in rows
        ]


@pytest.fixture
def fake_run(tmp_path: Path) -> Callable[..., FakeRun]:
    def make(words: str = "", recipe: str = "demo") -> FakeRun:
        return FakeRun(str(tmp_path / f"run{len(words)}"), recipes.load(recipe), words)

    return make
