"""The learning rate as a pure function of the step."""

import math

from moxin.train.job import Schedule


def learning_rate(schedule: Schedule, peak: float, step: int) -> float:
    """The rate of optimizer step `step` (from 0) of the job: linear warm-up to `peak`, then down to `peak * min_ratio`.

    The run's step `warmup_steps` is made at the peak and its last at the minimum: along a cosine (arXiv 1608.03983, without
    restarts), a line, or a line over the last `decay_steps` only (arXiv 2404.06395); `inverse_sqrt` falls as the root of the
    warm-up over the step and stays above the minimum (arXiv 1706.03762).
    """
    made = schedule.first_step + step + 1
    if made <= schedule.warmup_steps:
        return peak * made / schedule.warmup_steps
    if schedule.kind == "inverse_sqrt":
        return peak * max(schedule.min_ratio, math.sqrt(max(schedule.warmup_steps, 1) / made))
    begin = schedule.warmup_steps
    if schedule.kind == "wsd":
        begin = max(begin, schedule.total_steps - schedule.decay_steps)
    progress = min(1.0, max(0.0, (made - begin) / max(1, schedule.total_steps - begin)))
    share = 0.5 * (1 + math.cos(math.pi * progress)) if schedule.kind == "cosine" else 1 - progress
    return peak * (schedule.min_ratio + (1 - schedule.min_ratio) * share)
