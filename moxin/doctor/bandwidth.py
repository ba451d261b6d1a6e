"""How fast the workers add up their gradients: the bus bandwidth of an all-reduce, and the slowest way between nodes."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from moxin.doctor.finding import Finding, listed, size
from moxin.doctor.need import Need

SIZES = (2**20, 2**26)
"""Bytes: the small one shows latency, the large one bandwidth. DeepSpeed's buckets lie between them and beyond."""
REPEATS = 5
SLOW = 3.0
"""So many times below the median, or below what the link can do, is worth a word."""
NVLINK = {"A100": 300e9, "H100": 450e9, "H200": 450e9, "B200": 900e9}
"""Bytes/s of NVLink in one direction, of the SXM cards (NVIDIA's data sheets); the bound of bus bandwidth in a node."""
GLOO = 1.25e9
"""Bytes/s of gloo on one core, about: 10 Gb/s. A faster card does not help it."""
_GIGA = 1e9


def rounds(n: int) -> list[list[tuple[int, int]]]:
    """All pairs of `n` nodes in rounds of disjoint pairs, n - 1 of them for an even n (the circle method)."""
    places: list[int | None] = [*range(n), *([None] if n % 2 else [])]
    found = []
    for _ in range(len(places) - 1):
        half = len(places) // 2
        pairs = zip(places[:half], reversed(places[half:]), strict=True)
        found.append([(min(a, b), max(a, b)) for a, b in pairs if a is not None and b is not None])
        places = [places[0], places[-1], *places[1:-1]]
    return found


def bus_bandwidth(n_bytes: int, seconds: float, world: int) -> float:
    """Bytes/s that every link carries in an all-reduce: 2 (n - 1) / n of the buffer (nccl-tests, PERFORMANCE.md)."""
    return 2 * (world - 1) / world * n_bytes / seconds


def measure(
    address: str, rank: int, leaders: Sequence[int], world: int, *, cuda: bool, limit_s: float
) -> dict[str, Any]:
    """What rank `rank` of a group at `address` (`tcp://…`) measures, together with all others, which call this too.

    `leaders` are the first rank of every node; these also exchange a large message with each other, pair by pair. Returns
    `reduce`, the median seconds by size, and `pairs`, the seconds of an exchange by the other node's number (as text: JSON).
    """
    import torch
    from torch import distributed

    device = torch.device("cuda", 0) if cuda else torch.device("cpu")
    distributed.init_process_group(
        "nccl" if cuda else "gloo",
        init_method=address,
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=limit_s),
    )

    def median_s(work: Callable[[], None]) -> float:
        taken = []
        for _ in range(REPEATS + 1):
            distributed.barrier()
            started = time.perf_counter()
            work()
            if cuda:
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - started)
        return statistics.median(taken[1:])  # the first opens connections

    try:
        buffer = torch.zeros(max(SIZES) // 4, device=device)
        reduce = {
            str(n_bytes): median_s(lambda part=buffer[: n_bytes // 4]: distributed.all_reduce(part) and None)  # type: ignore[misc]
            for n_bytes in SIZES
        }
        received = torch.empty_like(buffer)
        pairs = {}
        for pairing in rounds(len(leaders)):
            partner = {leaders[a]: b for a, b in pairing} | {leaders[b]: a for a, b in pairing}

            def exchange(other: int | None = partner.get(rank)) -> None:
                if other is None:
                    return
                both = [
                    distributed.P2POp(distributed.isend, buffer, leaders[other]),
                    distributed.P2POp(distributed.irecv, received, leaders[other]),
                ]
                for work in distributed.batch_isend_irecv(both):
                    work.wait()

            seconds = median_s(exchange)
            if rank in partner:
                pairs[str(partner[rank])] = seconds
    finally:
        distributed.destroy_process_group()
    return {"reduce": reduce, "pairs": pairs}


def judge(
    nodes: Sequence[str],
    measured: Sequence[Mapping[str, Any]],
    leaders: Sequence[int],
    need: Need,
    *,
    cuda: bool,
    link: float = 0.0,
    gpu: str = "",
) -> list[Finding]:
    """Of what `measure` said on every rank. `nodes` are their names, one for each of `leaders`.

    `link` is what the slowest node's network can do, in bytes/s, 0 where the kernel does not tell; `gpu` is the name of the
    GPUs, by which ranks of a single node are judged.
    """
    world, (small, large) = len(measured), SIZES
    seconds = {n_bytes: max(found["reduce"][str(n_bytes)] for found in measured) for n_bytes in SIZES}
    bus = bus_bandwidth(large, seconds[large], world)
    told = (
        f"{'NCCL' if cuda else 'gloo'}, {world} ranks: {size(large)} at {_rate(bus)} bus bandwidth, {size(small)} in "
        f"{seconds[small] * 1e3:,.1f} ms"
    )
    if need.gradient_bytes and need.n_workers > 1:
        n = need.n_workers
        step_s = 2 * (n - 1) / n * need.gradient_bytes / bus
        told += f"; the gradients of a step ({size(need.gradient_bytes)}) take {step_s:,.2g} s of {n} workers"
    findings = _slow_ways(nodes, measured, leaders)
    usual, what = link if cuda else min(link, GLOO), "the network card"
    if len(nodes) == 1:
        usual, what = (
            next((rate for name, rate in NVLINK.items() if name in gpu and "PCIe" not in gpu), 0.0),
            "NVLink",
        )
    if usual and bus < usual / SLOW:
        fix = (
            "see with NCCL_DEBUG=INFO which card it takes: NCCL_SOCKET_IFNAME, the drivers of EFA or InfiniBand; "
            "`nvidia-smi topo -m` inside a node"
            if cuda
            else "set GLOO_SOCKET_IFNAME to the fastest card; see what else uses the network"
        )
        findings.append(Finding("bandwidth", "warn", f"{told}; {what} could do {_rate(usual)}", fix))
    elif not findings:
        findings.append(Finding("bandwidth", "ok", told))
    return findings


def _slow_ways(
    nodes: Sequence[str], measured: Sequence[Mapping[str, Any]], leaders: Sequence[int]
) -> list[Finding]:
    """A node whose every way is slow, or else the single slow ways."""
    ways: dict[tuple[int, int], float] = {}
    for a, rank in enumerate(leaders):
        for other, seconds in measured[rank]["pairs"].items():
            pair = (min(a, int(other)), max(a, int(other)))
            ways[pair] = max(ways.get(pair, 0.0), seconds)
    if len(ways) < 3:
        return []  # nothing to compare with
    median = statistics.median(ways.values())
    slow = {pair: seconds for pair, seconds in ways.items() if seconds > SLOW * median}
    usual = f"the median is {_rate(SIZES[1] / median)}"
    findings = []
    for node in range(len(nodes)):
        own = [pair for pair in ways if node in pair]
        if own and all(pair in slow for pair in own):
            best = _rate(SIZES[1] / min(ways[pair] for pair in own))
            result = f"{nodes[node]} exchanges at most {best} with any node, {usual}"
            findings.append(
                Finding("bandwidth", "warn", result, "take the node out, or look at its card and cable")
            )
            slow = {pair: seconds for pair, seconds in slow.items() if node not in pair}
    if slow:
        worst = sorted(slow, key=lambda pair: -slow[pair])
        named = [f"{nodes[a]} and {nodes[b]} ({_rate(SIZES[1] / slow[a, b])})" for a, b in worst]
        result = f"slow between {listed(named)}; {usual}"
        findings.append(
            Finding("bandwidth", "warn", result, "look at the switch between them (placement group, rack)")
        )
    return findings


def _rate(bytes_per_s: float) -> str:
    return f"{bytes_per_s / _GIGA:,.1f} GB/s" if bytes_per_s >= _GIGA else f"{bytes_per_s / 1e6:,.0f} MB/s"
