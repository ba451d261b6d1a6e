"""What ZeRO moves between GPUs in a step, and how long that takes (ZeRO, arXiv 1910.02054, section 7)."""

import math
from dataclasses import dataclass

from moxin.hardware import Machine
from moxin.plan import counts
from moxin.recipe import ModelConfig

BUCKET = 500_000_000
"""Elements that are reduced or gathered at a time up to ZeRO 2 (`reduce_bucket_size` in the DeepSpeed engine)."""


@dataclass(frozen=True)
class Fitted:
    cost: float
    """Seconds of a step for each second that the traffic would take at the links' full rate. Above 1: collectives reach a
    part of that rate (nccl-tests on 8 A100: 235 of 300 GB/s, on 8 H100: 370 of 450), little of them is hidden, and the
    multiprocessors that they occupy are missing elsewhere."""
    hop_seconds: float
    """Seconds that each rank of a ring adds to a collective, however little it moves."""


@dataclass(frozen=True)
class Traffic:
    """Bytes that each worker sends in an optimizer step, and in how many collectives."""

    reduced: float
    gathered: float
    collectives: float

    @property
    def total(self) -> float:
        return self.reduced + self.gathered


def traffic(
    model: ModelConfig, zero_stage: int, n_workers: int, accumulation: int, width: int = 2
) -> Traffic:
    """Of a step with `accumulation` micro-batches; gradients and weights are `width` bytes.

    Stages 0 and 1 reduce once a step, 2 after every micro-batch since it keeps a part only, 3 also gathers the weights on
    the way forward and on the way back. At stage 0 the gradients are float32, those of autocast.
    """
    if n_workers == 1:
        return Traffic(0, 0, 0)
    n = counts.parameters(model)["total"]
    share = (n_workers - 1) / n_workers
    buckets = math.ceil(n / BUCKET)
    if zero_stage == 0:  # an all-reduce is a reduction and a gathering
        return Traffic(4 * n * share, 4 * n * share, 2 * buckets)
    if zero_stage == 1:
        return Traffic(width * n * share, width * n * share, 2 * buckets)
    if zero_stage == 2:
        reductions = width * n * share * accumulation
        return Traffic(reductions, width * n * share, buckets * (accumulation + 1))
    gathered = 2 * width * n * share * accumulation
    return Traffic(width * n * share * accumulation, gathered, 3.0 * (model.n_layers + 1) * accumulation)


def seconds(
    model: ModelConfig,
    zero_stage: int,
    n_workers: int,
    accumulation: int,
    link_bytes_per_second: float,
    machine: Machine,
    width: int,
    hop_seconds: float,
) -> float:
    """Seconds of a step's collectives at the links' full rate: rings over NVLink in a machine, its network cards between."""
    moved = traffic(model, zero_stage, n_workers, accumulation, width)
    in_machine = moved.total / link_bytes_per_second
    machines = math.ceil(n_workers / machine.n_gpus)
    between = 0.0
    if machines > 1:
        # A machine's GPUs share its cards: all of them together fetch what the machine lacks once.
        share = (machines - 1) / machines / ((n_workers - 1) / n_workers)
        between = moved.total * share / machine.network_bytes_per_second
    hops = moved.collectives * (n_workers - 1) * hop_seconds
    return max(in_machine, between) + hops
