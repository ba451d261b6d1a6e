#!/usr/bin/env python
"""`python benchmarks/plan_speed.py`: fits the seven numbers of `moxin.plan.speed` and shows every row that it misses.

The rows are the bfloat16 ones of llm-foundry's `scripts/train/benchmarking/README.md` (figures only): MPT shapes from
125M to 70B with learned positions, 8 to 512 A100 and H100. Fitted on `FITTED` models, held out: the others. Takes
seconds, needs no GPU.
"""

import csv
import math
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from scipy.optimize import least_squares

from benchmarks import common
from moxin import hardware
from moxin.console import say, table
from moxin.hardware import Machine
from moxin.plan import network, speed
from moxin.plan.speed import Calibration, Efficiency, Setup
from moxin.recipe import ModelConfig

PUBLISHED = Path(__file__).parent / "published" / "llm_foundry.csv"
FITTED = ("1b", "7b")
SHAPES = {
    "125m": (12, 768, 12),
    "350m": (24, 1024, 16),
    "760m": (24, 1536, 12),
    "1b": (24, 2048, 16),
    "3b": (32, 2560, 20),
    "7b": (32, 4096, 32),
    "13b": (40, 5120, 40),
    "30b": (48, 7168, 56),
    "70b": (80, 8192, 64),
}
"""Layers, width, heads of llm-foundry's pretraining configurations."""
GBIT = {"A100-40GB": 1600, "A100-80GB": 1600, "H100-80GB": 3200}
"""Between machines. The tables name 1600 for A100; for H100 they name none: 8 cards of 400 are assumed."""
START = (0.7, 0.5, 0.6, 0.4, 2.0, 1.0, 2e-6)
MOST = (0.95, 0.95, 0.95, 0.95, 10.0, 10.0, 1e-4)
"""Where a number would stop to mean what its name says."""


class Row(NamedTuple):
    model: str
    measured: float
    setup: Setup


def shape(name: str, context: int) -> ModelConfig:
    """The model of a row; its positions are learned, so it grows with the context."""
    layers, width, heads = SHAPES[name]
    return ModelConfig(
        n_layers=layers,
        d_model=width,
        n_heads=heads,
        n_kv_heads=heads,
        d_ff=4 * width,
        vocab_size=50368,
        max_seq_len=context,
        norm="layer",
        activation="gelu",
        position="learned",
        tie_embeddings=True,
        init="kaiming",
    )


def rows() -> list[Row]:
    found = []
    for row in csv.DictReader(PUBLISHED.read_text().splitlines()):
        gpu, context = row["gpu"], int(row["context"])
        machine = Machine("published", gpu, 8, GBIT[gpu] * 1e9 / 8, 0)
        setup = Setup(
            shape(row["model"], context),
            hardware.gpu(gpu),
            machine,
            int(row["gpus"]),
            int(row["zero_stage"]),
            row["recompute"],
            context,
            int(row["micro_rows"]) * context,
            int(row["accumulation"]),
        )
        found.append(Row(row["model"], float(row["tokens_per_second_per_gpu"]), setup))
    return found


def calibration(values: np.ndarray) -> Calibration:
    """The seven numbers, as one vector, in their places."""
    a, b, c, d, passes, cost, hop = (float(value) for value in values)
    return Calibration(
        {"ampere": Efficiency(a, b), "hopper": Efficiency(c, d)}, passes, network.Fitted(cost, hop)
    )


def fit(given: list[Row]) -> Calibration:
    """Least squares of the logarithm of predicted over measured, robust against single rows (Cauchy)."""
    start = np.log(START)

    def misses(logs: np.ndarray) -> np.ndarray:
        by = calibration(np.exp(logs))
        return np.array([math.log(ratio(row, by)) for row in given])

    done = least_squares(
        misses, start, loss="cauchy", f_scale=0.05, x_scale=0.1, bounds=(np.log(START) - 5, np.log(MOST))
    )
    return calibration(np.exp(done.x))


def ratio(row: Row, by: Calibration) -> float:
    """Predicted over measured throughput."""
    return speed.tokens_per_second_per_gpu(row.setup, by) / row.measured


def main() -> None:
    found = rows()
    by = fit([row for row in found if row.model in FITTED])
    say(repr(by))
    groups: list[tuple[object, ...]] = []
    missed: list[tuple[object, ...]] = []
    for gpu in GBIT:
        for held in (False, True):
            of = [r for r in found if r.setup.gpu.name == gpu and (r.model not in FITTED) == held]
            off = [abs(math.log(ratio(row, by))) for row in of]
            within = sum(miss <= math.log(1.15) for miss in off)
            groups.append(
                (gpu, "held out" if held else "fitted", len(of), within, float(np.median(off)), max(off))
            )
            missed += [
                (
                    f"{gpu} {r.model} context {r.setup.context} x{r.setup.n_workers}",
                    "held out" if held else "fitted",
                    r.measured,
                    r.measured * ratio(r, by),
                    ratio(r, by),
                )
                for r in of
                if abs(math.log(ratio(r, by))) > math.log(1.15)
            ]
    table(
        "Predicted over published throughput",
        ("GPU", "rows", "of", "within 15 %", "median |log|", "most"),
        groups,
    )
    table("Missed by more than 15 %", ("row", "was", "published tok/s/GPU", "predicted", "ratio"), missed)
    result = {
        "calibration": repr(by),
        "groups": [list(map(str, group)) for group in groups],
        "missed": [list(map(str, row)) for row in missed],
    }
    if "--write" in sys.argv:
        common.write("plan_speed", result, packages=("scipy",))


if __name__ == "__main__":
    main()
