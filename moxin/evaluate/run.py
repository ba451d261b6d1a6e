"""The evaluation stage: one Ray task holds the model and works through the tasks."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import ray

from moxin import console, storage
from moxin.artifact import Artifact, Builder, Stage
from moxin.evaluate.exam import TASKS, Exam
from moxin.recipe import EvaluateConfig, Recipe


def stage(recipe: Recipe, of: str, model: Artifact, tokens: Artifact, world: Artifact) -> Stage:
    """Evaluates the weights of `model`, an artifact of pretraining (asked plainly), SFT or DPO (asked in chat form)."""
    exam = Exam(
        world.file("questions.jsonl"),
        tokens.file("heldout.jsonl"),
        chat=not model.name.startswith("pretrain-"),
    )

    def make(builder: Builder) -> None:
        use_gpu = recipe.scaling.use_gpu
        task = ray.remote(num_cpus=1, num_gpus=1 if use_gpu else 0)(examine)
        answers: Any = task.remote(
            model.file("model"), tokens.file("tokenizer"), exam, recipe.evaluate, use_gpu
        )
        with console.progress(f"evaluate {of}", len(TASKS), "tasks") as bar:
            for _ in TASKS:
                bar.advance(note=ray.get(next(answers)))
        results, samples = ray.get(next(answers))
        storage.write_json(builder.file("results.json"), results)
        storage.write_jsonl(builder.file("samples.jsonl"), samples)
        builder.counts |= results
        bits = "  ".join(f"{source} {value:.3f}" for source, value in results["bits_per_byte"].items())
        console.say(
            f"  {of}: multiple choice {results['tinyworld_mc']:.3f} (chance {results['chance']:.2f})  "
            f"generation {results['tinyworld_gen']:.3f}  bits per byte: {bits}"
        )

    inputs = {"model": model, "tokens": tokens, "world": world}
    return Stage(f"evaluate-{of}", {"evaluate": asdict(recipe.evaluate), "chat": exam.chat}, inputs, make)


def examine(
    model_url: str, tokenizer_url: str, exam: Exam, config: EvaluateConfig, use_gpu: bool
) -> Iterator[Any]:
    """Yields the name of each task when it is done, then the scores and the samples."""
    from moxin.evaluate.harness import run_task, summarize
    from moxin.evaluate.lm import MoxinLM
    from moxin.model import checkpoint
    from moxin.tokens.tokenizer import Tokenizer

    model = checkpoint.load(model_url).to("cuda" if use_gpu else "cpu")
    lm = MoxinLM(model, Tokenizer.load(tokenizer_url), config.batch_size)
    samples = {}
    for task in TASKS:
        samples[task] = run_task(lm, task, exam)
        yield task
    yield summarize(samples)
