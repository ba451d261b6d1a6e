"""A driver in a process of its own, for tests that kill it: trains the small job on Ray in the folder it is given."""

import functools
import sys
from pathlib import Path

from train_cases import BreakingBatches, small_job

from moxin.artifact import Builder
from moxin.train.run import fit

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    batches = functools.partial(BreakingBatches, str(folder / "reached"), at=6, rank=0, kind="wait")
    fit(small_job(batches=batches), Builder(str(folder), {}))
