"""What tells a step that would spoil the run from a usual one, and when it is time to go back.

Every decision is a pure function of the metrics of the steps before: all workers make the same, and a resumed run makes
those of the run that it resumes.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from moxin.recipe import GuardConfig

SPIKE, SKIPPED, LEFT_OUT = "spike", "skipped", "left_out"
"""True in the row of a step that was not a usual one: its loss was a spike; it was not applied; its batch was not even
looked at, after a roll-back."""
LEAST = 0.005
"""Least deviation, as a share of the median, that a score is taken in: a loss that hardly moves has no spikes."""


class RollBackError(Exception):
    """The run has to go back: steps `first` to `last` (from 0, both inclusive) were bad."""

    def __init__(self, first: int, last: int, told: str) -> None:
        super().__init__(first, last, told)
        self.first, self.last, self.told = first, last, told


class Guard:
    """The judge of a job's steps."""

    def __init__(self, config: GuardConfig) -> None:
        self.config = config
        self.least_known = max(8, config.window // 4)

    def usual(self, rows: Sequence[dict[str, Any]], step: int) -> tuple[float, float]:
        """Median and deviation of the losses before step `step` (from 0); NaN while too few are known.

        The step right before is not looked at: on a GPU its loss is not known yet when this one begins.
        """
        if not self.config.spike_score:
            return math.nan, math.nan
        losses: list[float] = []
        for row in reversed(rows[: max(0, step - 1)]):
            if not (row.get(SPIKE) or row.get(SKIPPED) or row.get(LEFT_OUT)):
                losses.append(row["loss"])
                if len(losses) == self.config.window:
                    break
        if len(losses) < self.least_known:
            return math.nan, math.nan
        median = float(np.median(losses))
        deviation = 1.4826 * float(np.median(np.abs(np.asarray(losses) - median)))
        return median, max(deviation, LEAST * abs(median), 1e-12)

    def limit(self, usual: tuple[float, float]) -> float:
        """The loss from which a step is not applied; infinite where there is no such limit."""
        median, deviation = usual
        if not self.config.skip_score or math.isnan(median):
            return math.inf
        return median + self.config.skip_score * deviation

    def score(self, usual: tuple[float, float], loss: float) -> float:
        """How many deviations a loss is above the median; 0 while that is not known, infinite where it is not finite."""
        median, deviation = usual
        if not math.isfinite(loss):
            return math.inf
        return 0.0 if math.isnan(median) else (loss - median) / deviation

    def told(self, score: float, skipped: bool) -> dict[str, Any]:
        """What a row says of a step beyond its numbers: nothing where it was a usual one."""
        spike = bool(self.config.spike_score) and self.config.spike_score <= score < math.inf
        if not spike and not skipped:
            return {}
        marks = {SPIKE: spike, SKIPPED: skipped}
        return {name: True for name, so in marks.items() if so} | (
            {"score": round(score, 2)} if score < math.inf else {}
        )

    def check(self, rows: Sequence[dict[str, Any]]) -> None:
        """Raises `RollBackError` where the last so many steps were all bad."""
        n = self.config.rollback_after
        if not n or len(rows) < n:
            return
        if all(map(_is_bad, rows[-n:])):
            first = len(rows) - n
            while first and _is_bad(rows[first - 1]):
                first -= 1
            last = rows[-1]
            told = f"loss {_number(last['loss'])}, gradient norm {_number(last['grad_norm'])} in step {last['step']:,}"
            raise RollBackError(first, len(rows) - 1, f"{len(rows) - first} bad steps in a row; {told}")


def _is_bad(row: dict[str, Any]) -> bool:
    return bool(row.get(SPIKE) or row.get(SKIPPED))


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"
