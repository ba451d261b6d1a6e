#!/usr/bin/env python
"""`python benchmarks/attention.py`: attention's back-ends against each other on the GPU, or on the CPU where there is none.

On CUDA, bfloat16, 16k tokens (32k in the longest rows): the Triton kernel; PyTorch's cuDNN and flash back-ends where there
is no window, document or ALiBi; FlexAttention at one width and length, as it compiles for long; flash-attn where installed.
Meant to end within 3 minutes. On a CPU, bfloat16 where it multiplies that: `numba`, which the model takes there, against
PyTorch's own, causal or with a dense mask; about half a minute.

Before anything is timed, outputs and gradients are compared with float32 mathematics on 512 tokens (FlexAttention's with the
Triton kernel's on all). Contenders take turns call by call; the median counts. TFLOP/s count visible pairs of query and key:
4 D per pair and query head forward (two products), 10 D backward (five, one of which repeats the forward's), 14 D for both.

Prints tables and writes `benchmarks/results/attention-<date>.json` with hardware, versions and the command.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks import common
from kernels.attention import Mask, attention
from kernels.attention_flash import flash_refuses
from kernels.precision import matmul_dtype
from moxin.console import say, table

Contender = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """One shape: `document` is the mean length in tokens of the documents packed into a row, 0 for one per row."""

    head_dim: int
    heads: int
    kv_heads: int
    rows: int
    tokens: int
    window: int | None = None
    alibi: bool = False
    document: int = 0

    @property
    def kind(self) -> str:
        named = [f"window {self.window}"] if self.window else []
        named += ["ALiBi"] if self.alibi else []
        named += [f"documents of ~{self.document}"] if self.document else []
        return ", ".join(named) or "full causal"

    def mask(self, device: torch.device) -> Mask:
        segments = None
        if self.document:
            generator = torch.Generator().manual_seed(0)
            starts = torch.rand(self.rows, self.tokens, generator=generator) < 1 / self.document
            segments = starts.cumsum(1).to(device)
        return Mask.packed(self.tokens, device, self.window, segments)

    def slopes(self, device: torch.device) -> Tensor | None:
        """2^(-8 n / H), as in arXiv 2108.12409."""
        return (
            torch.exp2(-8 * torch.arange(1, self.heads + 1, device=device) / self.heads)
            if self.alibi
            else None
        )


def cases(device: torch.device) -> list[Case]:
    if device.type == "cpu":
        shapes = [(64, 6, 2, 2048 // t, t) for t in (256, 512, 1024, 2048)]
        return [
            c
            for s in shapes
            for c in (Case(*s), Case(*s, window=128), Case(*s, alibi=True), Case(*s, document=128))
        ]
    found = []
    for head_dim, heads in ((64, 32), (112, 16), (128, 16)):
        found += [Case(head_dim, heads, heads // 4, max(1, 16384 // t), t) for t in (2048, 8192, 32768)]
        shape = (head_dim, heads, heads // 4, 2, 8192)
        found += [Case(*shape, window=4096), Case(*shape, alibi=True), Case(*shape, document=1024)]
        found += [Case(head_dim, heads, heads // 4, 1, 32768, window=4096)]
    return found


def dtype_of(device: torch.device) -> torch.dtype:
    return matmul_dtype(torch.bfloat16, device)


def torch_sdpa(
    q: Tensor, k: Tensor, v: Tensor, backend: SDPBackend | None, seen: Tensor | None = None
) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if backend is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True).transpose(1, 2)
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2)


def contenders(case: Case, device: torch.device) -> dict[str, Contender]:
    mask, slopes = case.mask(device), case.slopes(device)
    ours = partial(attention, mask=mask, alibi_slopes_H=slopes)
    if device.type == "cpu":
        if mask.full and slopes is None:
            peer = partial(torch_sdpa, backend=SDPBackend.FLASH_ATTENTION)
        else:
            seen = mask.dense.unsqueeze(1) if slopes is None else mask.alibi(slopes).to(dtype_of(device))
            peer = partial(torch_sdpa, backend=None, seen=seen)
        return {"moxin": partial(ours, backend="numba"), "torch": peer}
    found: dict[str, Contender] = {"triton": partial(ours, backend="triton")}
    if mask.full and slopes is None:
        found["cudnn"] = partial(torch_sdpa, backend=SDPBackend.CUDNN_ATTENTION)
        found["torch flash"] = partial(torch_sdpa, backend=SDPBackend.FLASH_ATTENTION)
    if case.head_dim == 128 and case.tokens == 8192:
        found["flex"] = partial(ours, backend="flex")
    if flash_refuses(device, torch.bfloat16, case.head_dim, case.alibi) is None:
        found["flash-attn"] = partial(ours, backend="flash")
    return found


def inputs(case: Case, device: torch.device, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    shape = (case.rows, case.tokens)
    heads = (case.heads, case.kv_heads, case.kv_heads, case.heads)
    q, k, v, upstream = (
        torch.randn(*shape, n, case.head_dim, generator=generator, device=device, dtype=dtype) for n in heads
    )
    return [x.requires_grad_() for x in (q, k, v)], upstream


def forward_backward(function: Contender, qkv: Sequence[Tensor], upstream: Tensor) -> list[Tensor]:
    out = function(*qkv)
    return [out, *torch.autograd.grad(out, qkv, upstream)]


def check(case: Case, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Largest error of out, dq, dk and dv in units of each one's largest value, on one short row; or why there is none."""
    window = None if case.window is None else 100
    document = 60 if case.document else 0
    short = Case(case.head_dim, case.heads, case.kv_heads, 1, 512, window, case.alibi, document)
    qkv, upstream = inputs(short, device, dtype)
    wide = [x.detach().float().requires_grad_() for x in qkv]
    reference = partial(
        attention, mask=short.mask(device), alibi_slopes_H=short.slopes(device), backend="reference"
    )
    expected = forward_backward(reference, wide, upstream.float())
    found: dict[str, Any] = {}
    for name, function in contenders(short, device).items():
        try:
            got = forward_backward(function, qkv, upstream)
        except (
            RuntimeError
        ) as error:  # PyTorch's back-ends refuse widths, groups or GPUs in words of their own
            found[name] = str(error).strip().splitlines()[0]
            continue
        found[name] = agreed(name, zip(got, expected, strict=True), short)
    return found


def agreed(name: str, pairs: Iterable[tuple[Tensor, Tensor]], case: Case) -> float:
    """The largest error in units of each tensor's largest value; ends the program where it is more than rounding."""
    found = [(a.dtype, ((a.float() - b.float()).abs().max() / b.abs().max()).item()) for a, b in pairs]
    dtype, error = found[0][0], max(error for _, error in found)
    limit = 1e-4 if dtype == torch.float32 else 0.03
    if not error < limit:
        raise SystemExit(f"{name} is wrong by {error:.2g} of the largest value (limit {limit}): {case}")
    return error


def seconds(function: Callable[[], object], device: torch.device) -> float:
    if device.type == "cpu":
        began = time.perf_counter()
        function()
        return time.perf_counter() - began
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    function()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3


def measure(case: Case, device: torch.device, dtype: torch.dtype, repeats: int) -> dict[str, Any]:
    checked = check(case, device, dtype)
    running = {n: f for n, f in contenders(case, device).items() if not isinstance(checked.get(n), str)}
    qkv, upstream = inputs(case, device, dtype)
    frozen = [x.detach() for x in qkv]
    own = next(iter(running))
    for name in running.keys() - checked.keys():
        outcomes = (forward_backward(running[n], qkv, upstream) for n in (name, own))
        checked[name] = agreed(name, zip(*outcomes, strict=True), case)
    mask = case.mask(device)
    index = torch.arange(case.tokens, device=device)
    visible = int((index - mask.first_BT + 1).sum()) * (case.rows // mask.first_BT.shape[0])
    times: dict[str, dict[str, list[float]]] = {name: {"forward": [], "both": []} for name in running}
    for _ in range(2 + repeats):  # the first two warm up: compilation, allocation, caches
        for name, function in running.items():
            times[name]["forward"].append(seconds(partial(function, *frozen), device))
            both = partial(forward_backward, function, qkv, upstream)
            times[name]["both"].append(seconds(both, device))
    flops = {
        "forward": 4 * case.head_dim * visible * case.heads,
        "both": 14 * case.head_dim * visible * case.heads,
    }
    medians = {n: {part: statistics.median(s[2:]) for part, s in parts.items()} for n, parts in times.items()}
    return asdict(case) | {
        "kind": case.kind,
        "visible_pairs": visible,
        "error": checked,
        "median_seconds": medians,
        "tflops": {n: {p: flops[p] / s / 1e12 for p, s in parts.items()} for n, parts in medians.items()},
    }


def ratios(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Our own, forward and backward: time against full causal attention of the same shape, speed against the best other."""
    shape = ("head_dim", "rows", "tokens")
    full = {tuple(r[s] for s in shape): r for r in results if r["kind"] == "full causal"}
    found = []
    for result in results:
        base = full[tuple(result[s] for s in shape)]
        medians = {name: parts["both"] for name, parts in result["median_seconds"].items()}
        own = next(iter(medians))
        others = {name: t for name, t in medians.items() if name != own}
        best = min(others, key=others.__getitem__, default="")
        found.append(
            {s: result[s] for s in shape}
            | {
                "kind": result["kind"],
                "time_of_full_causal": round(medians[own] / base["median_seconds"][own]["both"], 3),
                "pairs_of_full_causal": round(result["visible_pairs"] / base["visible_pairs"], 3),
                "best_other": best,
                "speed_against_best_other": round(others[best] / medians[own], 2) if best else "",
            }
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=10, help="timed calls of each contender and case")
    parser.add_argument("--out", default=str(common.RESULTS), help="folder of the result")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = dtype_of(device)
    results = []
    for case in cases(device):
        results.append(measure(case, device, dtype, args.repeats))
        say(
            f"D {case.head_dim}, {case.rows}x{case.tokens}, {case.kind}: {len(results[-1]['tflops'])} contenders"
        )
    unit, factor = ("TFLOP/s", 1) if device.type == "cuda" else ("GFLOP/s", 1000)
    table(
        f"Attention, {unit} of visible pairs ({str(dtype).removeprefix('torch.')})",
        ("D", "heads", "batch", "mask", "contender", "forward", "forward + backward", "error"),
        [
            (
                r["head_dim"],
                f"{r['heads']}/{r['kv_heads']}",
                f"{r['rows']}x{r['tokens']}",
                r["kind"],
                name,
                *(
                    round(r["tflops"][name][p] * factor, 1) if name in r["tflops"] else "-"
                    for p in ("forward", "both")
                ),
                f"{error:.1e}" if isinstance(error, float) else error,
            )
            for r in results
            for name, error in r["error"].items()
            if name in r["tflops"] or isinstance(error, str)
        ],
    )
    compared = ratios(results)
    table(
        "Forward and backward of our own, as parts of its full causal time, and against the best other",
        ("D", "batch", "mask", "time", "pairs", "speed", "against"),
        [
            (
                r["head_dim"],
                f"{r['rows']}x{r['tokens']}",
                r["kind"],
                r["time_of_full_causal"],
                r["pairs_of_full_causal"],
                r["speed_against_best_other"],
                r["best_other"],
            )
            for r in compared
        ],
    )
    convention = "visible pairs only; per pair and query head 4 D forward, 10 D backward"
    result = {"dtype": str(dtype), "flops": convention, "ratios": compared, "results": results}
    common.write("attention", result, args.out, ("triton", "flash-attn", "flash-attn-4"))


if __name__ == "__main__":
    main()
