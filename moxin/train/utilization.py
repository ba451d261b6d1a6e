"""MFU and HFU: the floating-point operations of a step over what the accelerators could do in its time.

MFU counts what the model needs, whatever was computed twice (arXiv 2204.02311, appendix B); HFU also counts what activation
recomputation makes again. Both conventions of `moxin.plan.flops_per_token` are told: `mfu` and `hfu` count the keys that
causality and window let a query see, `mfu_full` counts all, as llm-foundry's tables do.
"""

from dataclasses import dataclass

from moxin.plan.counts import flops_per_token, recomputed_flops
from moxin.recipe import ModelConfig


@dataclass(frozen=True)
class Utilization:
    """What a row says of utilization: `Utilization(...)(tokens, seconds, context)`.

    `peak` is of one accelerator, in FLOP/s without sparsity, in the precision that is trained in; 0 where it is not known.
    """

    model: ModelConfig
    n_workers: int
    peak: float
    recompute: str = "none"

    def __call__(self, tokens: int, seconds: float, context: int) -> dict[str, float]:
        """`mfu`, `hfu` and `mfu_full`, from 0 to 1, of a step of `tokens` in rows of `context`; empty without a peak."""
        if not self.peak or seconds <= 0:
            return {}
        could = self.peak * self.n_workers * seconds / tokens
        _, needed = flops_per_token(self.model, context, window_counted=True)
        _, full = flops_per_token(self.model, context, window_counted=False)
        again = recomputed_flops(self.model, context, self.recompute, window_counted=True)
        return {
            "mfu": round(needed / could, 5),
            "hfu": round((needed + again) / could, 5),
            "mfu_full": round(full / could, 5),
        }
