"""MPT-30B (model card at huggingface.co/mosaicml/mpt-30b): 1T tokens at 2048, then 50B at 8192.

"Ours" and "example" as in `mpt_7b`; the example is `mpt-30b.yaml`.
"""

from dataclasses import replace

from moxin.model.presets import PRESETS
from moxin.recipe import PhaseConfig, Recipe
from moxin.recipes.mpt_7b import MIX, ROWS, mpt_7b

MIX_30B = {
    **MIX,
    "mc4-en": 0.335,  # only documents of 200 words or more
    "redpajama-cc": 0.085,
    "the-stack-markdown": 0.045,
}
"""The card's table; its ten shares add up to 1.004."""


def mpt_30b() -> Recipe:
    """29.96B parameters, 1.05T tokens, Lion, at first on 440 A100-40GB."""
    base = mpt_7b()
    return replace(
        base,
        name="mpt_30b",
        model=PRESETS["mpt_30b"],  # 64 heads and clip_qkv 6: the released config.json, not the example's 56
        pretrain=replace(
            base.pretrain,
            # The card: (i) 440 A100-40GB with 1760 rows, (ii) 216 with 1728, (iii) 256 H100-80GB with 512 rows of 8192.
            # A recipe has one batch: that of (i) in all phases, 440 rows of 8192 in the last.
            phases=(
                PhaseConfig("base", 1_000_000_000_000, 2048, MIX_30B),
                PhaseConfig("long", 50_000_000_000, 8192, MIX_30B),
            ),
            global_batch=ROWS * 2048,
            learning_rate=2.5e-5,  # ours: a quarter of the example's 1e-4, as for 7B
        ),
        # MPT-30B-Instruct (mpt-30b-instruct.yaml): 8 epochs, 9.65e-6, rows of 8192. Ours: a row for every worker, not 72.
        sft=replace(
            base.sft,
            epochs=8,
            context=8192,
            global_batch=base.scaling.n_workers * 8192,
            micro_batch=8192,
            learning_rate=9.65e-6,
        ),
    )
