"""The SFT and DPO stages: the batches and objectives of this room, given to the one training loop of `moxin.train`."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from moxin import console, storage
from moxin.align.data import ChatBatches, PairBatches, chat_batches, chunks, pair_batches, preference_pairs
from moxin.align.dpo import count_pairs, dpo, score_pairs
from moxin.artifact import Artifact, Builder, Stage
from moxin.model import checkpoint
from moxin.recipe import DPOConfig, Recipe, SFTConfig
from moxin.tokens.tokenizer import Tokenizer
from moxin.train.job import FitJob, Keeping, Objective, OptimizerSettings, Schedule
from moxin.train.objective import next_token
from moxin.train.run import fit

SCORE_BATCH = 16
"""Pairs whose log-probabilities are computed at once; fixed, so that a repeated pass gives the same bits."""
BATCHES_PER_ACTOR = 64
"""Fewer are not worth the seconds in which another actor starts and loads the model."""


def sft_stage(recipe: Recipe, tokens: Artifact, world: Artifact, pretrained: Artifact) -> Stage:
    """Supervised fine-tuning of `pretrained` on the world's chats; the loss counts what the assistant says."""

    def make(builder: Builder) -> None:
        chats_url = world.file("chats.jsonl")
        batches = partial(chat_batches, tokens.file("tokenizer"), chats_url, recipe.sft)
        n_chats, n_kept = len(storage.read_jsonl(chats_url)), len(batches().examples)
        say_left_out(n_chats - n_kept, n_chats, "chats", recipe.sft.context)
        fit(_job(recipe, "sft", recipe.sft, pretrained, batches, next_token), builder)
        builder.counts |= {"context": recipe.sft.context, "chats": n_kept, "chats_left_out": n_chats - n_kept}

    inputs = {"tokens": tokens, "world": world, "pretrained": pretrained}
    return Stage("sft", _config(recipe, recipe.sft), inputs, make)


def dpo_stage(recipe: Recipe, tokens: Artifact, world: Artifact, sft: Artifact) -> Stage:
    """Preference optimisation of `sft` against itself, frozen, whose log-probabilities are computed once."""

    def make(builder: Builder) -> None:
        config, tokenizer_url = recipe.dpo, tokens.file("tokenizer")
        preferences_url = world.file("preferences.jsonl")
        preferences = storage.read_jsonl(preferences_url)
        kept = {
            pair.id for pair in preference_pairs(preferences, Tokenizer.load(tokenizer_url), config.context)
        }
        say_left_out(len(preferences) - len(kept), len(preferences), "preferences", config.context)
        rows = [row for row in preferences if row["id"] in kept]

        reference_url = builder.file(".scratch", "reference.parquet")
        if not storage.exists(reference_url):
            reference = score(recipe, sft.file("model"), tokenizer_url, rows, "reference log-probabilities")
            with storage.open_atomic(reference_url) as handle:
                pq.write_table(reference, handle)
        with storage.open_read(reference_url) as handle:
            before = preference_accuracy(pq.read_table(handle))

        batches = partial(pair_batches, tokenizer_url, preferences_url, reference_url, config)
        job = _job(recipe, "dpo", config, sft, batches, partial(dpo, beta=config.beta))
        fit(replace(job, unit="pairs", count=count_pairs), builder)
        after = preference_accuracy(
            score(recipe, builder.file("model"), tokenizer_url, rows, "preferences after DPO")
        )
        builder.counts |= {
            "context": config.context,
            "preferences": len(kept),
            "preference_accuracy": {"before": before, "after": after},
        }
        console.say(
            f"  the chosen answer is the likelier: {before:.3f} of {len(kept)} pairs before, {after:.3f} after"
        )

    inputs = {"tokens": tokens, "world": world, "sft": sft}
    return Stage("dpo", _config(recipe, recipe.dpo), inputs, make)


def score(
    recipe: Recipe, model_url: str, tokenizer_url: str, preferences: Sequence[Mapping[str, Any]], title: str
) -> pa.Table:
    """Mean log-probability per token of the `chosen` and the `rejected` answers by Ray Data, ordered by `id`.

    One block is one batch of the model, so that neither the number of actors nor their timing changes a bit of the result.
    """
    columns = ("id", "prompt", "chosen", "rejected")
    rows = [{name: row[name] for name in columns} for row in sorted(preferences, key=lambda row: row["id"])]
    blocks = [pa.Table.from_pylist(part) for part in chunks(rows, SCORE_BATCH)]
    use_gpu = recipe.scaling.use_gpu
    n_actors = min(recipe.scaling.n_workers, math.ceil(len(blocks) / BATCHES_PER_ACTOR))
    scored = ray.data.from_arrow(blocks).map_batches(
        Scorer,
        fn_constructor_args=(model_url, tokenizer_url, recipe.dpo.context, use_gpu),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=n_actors),
        num_cpus=1,
        num_gpus=1 if use_gpu else 0,
    )
    done = []
    with console.progress(title, len(rows), "pairs") as bar:
        for part in scored.iter_batches(batch_size=None, batch_format="pyarrow"):
            done.append(part)
            bar.advance(len(part))
    return pa.concat_tables(done).sort_by("id")


class Scorer:
    """A frozen model in a Ray Data actor, loaded once."""

    def __init__(self, model_url: str, tokenizer_url: str, context: int, use_gpu: bool) -> None:
        self.model = checkpoint.load(model_url).to("cuda" if use_gpu else "cpu").eval()
        self.tokenizer, self.context = Tokenizer.load(tokenizer_url), context

    def __call__(self, rows: pa.Table) -> pa.Table:
        pairs = preference_pairs(rows.to_pylist(), self.tokenizer, self.context)
        chosen, rejected = score_pairs(self.model, pairs, self.tokenizer.pad_id)
        return pa.table({"id": [pair.id for pair in pairs], "chosen": chosen, "rejected": rejected})


def preference_accuracy(scores: pa.Table) -> float:
    """The share of pairs whose chosen answer is the likelier per token."""
    return float(np.mean(scores["chosen"].to_numpy() > scores["rejected"].to_numpy()))


def say_left_out(n: int, total: int, what: str, context: int) -> None:
    if n:
        console.warn(f"{n} of {total} {what} do not fit the context of {context} tokens and are left out")


def _job(
    recipe: Recipe,
    name: str,
    config: SFTConfig | DPOConfig,
    start: Artifact,
    batches: Callable[[], ChatBatches | PairBatches],
    objective: Objective,
) -> FitJob:
    n_steps = batches().n_steps
    return FitJob(
        name=name,
        model=recipe.model,
        initial=start.file("model"),
        state="",
        batches=batches,
        objective=objective,
        peak_lr=config.learning_rate,
        schedule=Schedule(total_steps=n_steps, warmup_steps=math.ceil(config.warmup_ratio * n_steps)),
        optimizer=OptimizerSettings(
            betas=(recipe.pretrain.beta1, recipe.pretrain.beta2),
            weight_decay=config.weight_decay,
            grad_clip=config.grad_clip,
        ),
        keeping=Keeping(config.checkpoint_every),
        context=config.context,
        # A pair is two rows.
        micro_batch=config.micro_batch * (2 * config.context if isinstance(config, DPOConfig) else 1),
        seed=config.seed,
        scaling=recipe.scaling,
    )


def _config(recipe: Recipe, config: SFTConfig | DPOConfig) -> dict[str, Any]:
    """What decides the weights: the number of workers and their precision change the order and width of sums."""
    settings = asdict(config)
    del settings["checkpoint_every"]
    return {
        "config": settings,
        "model": asdict(recipe.model),
        "betas": [recipe.pretrain.beta1, recipe.pretrain.beta2],
        "scaling": {
            "n_workers": recipe.scaling.n_workers,
            "zero_stage": recipe.scaling.zero_stage,
            "precision": recipe.scaling.precision,
        },
    }
