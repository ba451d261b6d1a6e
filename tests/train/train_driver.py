"""A driver in a process of its own, for tests that kill it or tell it to end: trains the small job on Ray in the folder it
is given; with `slow` its steps take time, else it waits in step 6."""

import functools
import sys
from pathlib import Path

from train_cases import BreakingBatches, SlowBatches, small_job

from moxin import job
from moxin.artifact import Builder
from moxin.train.run import fit

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    batches = functools.partial(BreakingBatches, str(folder / "reached"), at=6, rank=0, kind="wait")
    if "slow" in sys.argv:
        batches = functools.partial(SlowBatches, str(folder))
    try:
        fit(small_job(batches=batches), Builder(str(folder), {}))
    except KeyboardInterrupt:
        sys.exit(job.INTERRUPTED)
