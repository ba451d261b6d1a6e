"""What follows from a recipe before anything runs: parameters, FLOPs, memory, time, dollars, and how it scales.

Pure functions of the configuration. `counts` says what a shape needs, `activations` and `memory` what a worker holds,
`network` and `speed` how long a step takes, `cluster` what can be rented, `cost` what a recipe takes there, `simulate`
what failures do to it, `advice` what looks wrong, `published` what is known of other runs; `tables` prints.
"""

from moxin.plan.advice import refuse, warnings
from moxin.plan.counts import flops_per_token, parameters
from moxin.plan.tables import model_rows, rows, show

__all__ = ["flops_per_token", "model_rows", "parameters", "refuse", "rows", "show", "warnings"]
