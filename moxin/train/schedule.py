"""The learning rate as a pure function of the step."""

import math

from moxin.train.job import Schedule


def learning_rate(schedule: Schedule, peak: float, step: int) -> float:
    """The rate of optimizer step `step` (from 0) of the job: linear warm-up to `peak`, then a cosine to `peak * min_ratio`.

    The run's step `warmup_steps` is made at the peak and its last at the minimum (arXiv 1608.03983, without restarts).
    """
    made = schedule.first_step + step + 1
    if made <= schedule.warmup_steps:
        return peak * made / schedule.warmup_steps
    progress = min(1.0, (made - schedule.warmup_steps) / max(1, schedule.total_steps - schedule.warmup_steps))
    return peak * (schedule.min_ratio + (1 - schedule.min_ratio) * 0.5 * (1 + math.cos(math.pi * progress)))
