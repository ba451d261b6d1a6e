"""Rungs from 60M to 3B of Moxin's shape, for ablations: a change is tried low on the ladder before it is paid for at 7B.

All of it follows from the size. Tokens: 20 for each parameter (Chinchilla, arXiv 2203.15556). Peak learning rate and
batch: the power laws that DeepSeek LLM fitted (arXiv 2401.02954, equation 1), lr = 0.3118 C^-0.125 and batch = 0.292
C^0.3271 tokens of C = 6 N D, the batch rounded to a power of two. Data: phase 1 of `moxin_7b`, so that the ladder speaks
of that run.
"""

import math
from dataclasses import replace

from moxin.model.presets import PRESETS
from moxin.plan.counts import parameters
from moxin.recipe import PhaseConfig, Recipe
from moxin.recipes.moxin_7b import moxin_7b

RUNGS = ("60m", "125m", "350m", "760m", "1.3b", "3b")
CONTEXT = 2048
TOKENS_PER_PARAMETER = 20


def rung(size: str) -> Recipe:
    """The recipe `ladder_<size>`."""
    top, model, n_workers = moxin_7b(), PRESETS[size], 8
    n = parameters(model)["total"]
    compute = 6.0 * n * TOKENS_PER_PARAMETER * n
    batch = 2 ** round(math.log2(0.292 * compute**0.3271))
    tokens = round(TOKENS_PER_PARAMETER * n / batch) * batch
    first = top.pretrain.phases[0]
    return replace(
        top,
        name=f"ladder_{size}",
        model=model,
        pretrain=replace(
            top.pretrain,
            phases=(PhaseConfig("base", tokens, CONTEXT, first.mix),),
            global_batch=batch,
            learning_rate=float(f"{0.3118 * compute**-0.125:.2g}"),
            warmup_tokens=max(1, tokens // batch // 50) * batch,  # ours: 2 % of the steps
            checkpoint_every=500,
            keep_every=0,
            publish_every=0,
        ),
        # Moxin's rows, cut to this context, and a smaller batch: fewer workers wait for fewer rows.
        sft=replace(top.sft, context=CONTEXT, global_batch=64 * CONTEXT, micro_batch=CONTEXT),
        dpo=replace(top.dpo, global_batch=64, context=CONTEXT),
        scaling=replace(top.scaling, n_workers=n_workers, recompute="none", max_failures=5),
        shards=256,
    )
