"""What follows from a recipe before anything runs: parameters, FLOPs, memory, time, dollars, and how it scales.

Pure functions of the configuration; nothing here imports torch, Ray or DeepSpeed at a run's expense. `counts` says what a
shape needs, `activations` and `memory` what a worker holds, `network` and `speed` how long a step takes, `cluster` what can be
rented, `run` what a recipe costs there, `simulate` what failures do to it, `advice` what looks wrong, `show` prints.
"""

from moxin.plan.counts import flops_per_token, parameters

__all__ = ["flops_per_token", "parameters"]
