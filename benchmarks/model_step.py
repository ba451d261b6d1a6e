#!/usr/bin/env python
"""A whole training step (forward, backward, fused AdamW) of our decoder against `transformers`' Mistral and MPT.

    make bench-model                                # on a CPU about 7 minutes; use an idle machine
    python benchmarks/model_step.py --repeats 3     # quicker and noisier
    python benchmarks/model_step.py                 # on CUDA: 1.3B and Moxin's shape, meant for 4 minutes

Both get the same weights, tokens and types and run in the same process, taking turns step by step; the median of the steps
counts. The share of the matrix peak is (6 N + 12 L d s) x tokens/s, llm-foundry's convention for MFU: N parameters without
the input embedding (a tied one multiplies as the head and counts), attention as if it were not causal, nothing for
recomputation; the peak on a CPU is that of a product of 2048^3 in the same run, on a GPU the vendor's. Peak memory is the
growth of a process of its own over three steps, weights, gradients and optimizer included.

Prints a table and writes `benchmarks/results/model_step-<date>.json` with hardware, versions and the command.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from benchmarks import common
from kernels.attention import attention_backend
from kernels.cross_entropy import cross_entropy_backend
from kernels.norm import norm_backend
from kernels.precision import matmul_dtype
from kernels.rope import rope_backend
from kernels.swiglu import swiglu_backend
from moxin.console import say, table
from moxin.model.decoder import Decoder
from moxin.model.layouts import pieces, to_hf_config
from moxin.model.presets import PRESETS
from moxin.recipe import ModelConfig

GPU_PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bfloat16 FLOP/s of the SXM cards, from NVIDIA's data sheets."""


@dataclass(frozen=True)
class Case:
    name: str
    config: ModelConfig
    rows: int
    context: int
    recompute: str = "none"

    @property
    def flops_per_token(self) -> int:
        config = self.config
        with torch.device("meta"):
            n = Decoder(config).n_parameters()
        if not config.tie_embeddings:
            n -= config.vocab_size * config.d_model
        return 6 * n + 12 * config.n_layers * config.d_model * self.context


def mpt(config: ModelConfig) -> ModelConfig:
    """MPT's architecture at the size of a Mistral."""
    return replace(
        config,
        n_kv_heads=config.n_heads,
        d_ff=4 * config.d_model,
        norm="layer",
        activation="gelu",
        position="alibi",
        tie_embeddings=True,
        init="kaiming",
    )


def cpu_cases() -> list[Case]:
    small = ModelConfig(n_layers=4, d_model=192, n_heads=6, n_kv_heads=2, d_ff=512, max_seq_len=1024)
    medium = ModelConfig(n_layers=8, d_model=256, n_heads=4, n_kv_heads=2, d_ff=960, max_seq_len=1024)
    large = replace(PRESETS["60m"], max_seq_len=1024)
    sizes = (
        ("1.6M", small, 2048, 8, 256),
        ("1.6M", small, 2048, 2, 1024),
        ("7.5M", medium, 2048, 4, 512),
        ("7.5M", medium, 32000, 4, 512),
        ("61M", large, 32000, 2, 1024),
    )
    cases = []
    for name, config, vocab, rows, context in sizes:
        config = replace(config, vocab_size=vocab)
        cases.append(Case(f"Mistral {name}", config, rows, context))
        cases.append(Case(f"MPT {name}", mpt(config), rows, context))
    return cases


def gpu_cases() -> list[Case]:
    large, moxin = PRESETS["1.3b"], replace(PRESETS["moxin_7b"], max_seq_len=4096)
    return [
        Case("1.3b", large, 8, 2048),
        Case("1.3b as MPT", mpt(large), 8, 2048),
        Case("Moxin-7B, recomputing", moxin, 2, 2048, recompute="full"),
    ]


def ours(case: Case, device: torch.device) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    with torch.device(device):
        model = Decoder(case.config, seed=None, recompute=case.recompute).bfloat16()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0.0, 0.02) if p.ndim > 1 else p.fill_(1.0)

    def loss(tokens_BT: Tensor) -> Tensor:
        inputs, targets = tokens_BT[:, :-1].contiguous(), tokens_BT[:, 1:].contiguous()
        return model(inputs, targets_BT=targets, reduction="sum")[0] / targets.numel()

    return model, loss


def theirs(case: Case, device: torch.device) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    values = to_hf_config(case.config, "bfloat16")
    with torch.device(device):
        model: Any
        if values["model_type"] == "mpt":  # has no sdpa
            model = transformers.MptForCausalLM(transformers.MptConfig(**values)).bfloat16()
        else:
            config = transformers.MistralConfig(**values, attn_implementation="sdpa")
            model = transformers.MistralForCausalLM(config).bfloat16()
    if case.recompute != "none":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()

    def loss(tokens_BT: Tensor) -> Tensor:
        logits = model(input_ids=tokens_BT[:, :-1], use_cache=False).logits
        return F.cross_entropy(logits.float().flatten(0, 1), tokens_BT[:, 1:].flatten())

    return model, loss


MODELS = {"moxin": ours, "transformers": theirs}


def stepper(
    case: Case, device: torch.device, model: nn.Module, loss_of: Callable[[Tensor], Tensor]
) -> Callable[[], float]:
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    generator = torch.Generator().manual_seed(0)

    def step() -> float:
        tokens_BT = torch.randint(case.config.vocab_size, (case.rows, case.context + 1), generator=generator)
        loss = loss_of(tokens_BT.to(device))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()  # waits for the device

    return step


@torch.no_grad()
def same_weights(case: Case, source: nn.Module, target: nn.Module) -> None:
    state = target.state_dict()
    for piece in pieces(case.config):
        rows = source.get_parameter(piece.ours)[piece.first :][: piece.shape[0]]
        state[piece.theirs].copy_(rows)


def speed(case: Case, device: torch.device, repeats: int, warm_up: int) -> dict[str, dict[str, Any]]:
    made = {name: make(case, device) for name, make in MODELS.items()}
    same_weights(case, made["moxin"][0], made["transformers"][0])
    steps = {name: stepper(case, device, *pair) for name, pair in made.items()}
    losses: dict[str, list[float]] = {name: [] for name in steps}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(warm_up + repeats):
        for name, step in steps.items():
            began = time.perf_counter()
            losses[name].append(step())
            seconds[name].append(time.perf_counter() - began)
    return {
        name: {
            "tokens_per_second": case.rows * case.context / statistics.median(seconds[name][warm_up:]),
            "step_seconds": [round(s, 4) for s in seconds[name][warm_up:]],
            "first_loss": losses[name][0],
            "last_loss": losses[name][-1],
        }
        for name in steps
    }


def resident(field: str) -> int:
    """Bytes of this process: `VmRSS` now, `VmHWM` at the most."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith(field))


def memory(index: int, name: str) -> None:
    """In a process of its own: prints how many bytes three steps of one model added at the most."""
    device, case = torch.device("cpu"), cpu_cases()[index]
    tiny = Case("", replace(case.config, n_layers=1, vocab_size=64), 1, 64)
    stepper(tiny, device, *MODELS[name](tiny, device))()  # libraries, thread pools, compiled kernels
    before = resident("VmRSS")
    step = stepper(case, device, *MODELS[name](case, device))
    for _ in range(3):
        step()
    say(str(resident("VmHWM") - before))


def memory_of(index: int, name: str) -> int:
    command = [sys.executable, __file__, "--memory", str(index), name]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


def matrix_peak() -> float:
    """FLOP/s of a bfloat16 product of 2048^3 on this CPU, the best of ten."""
    a, b = torch.randn(2, 2048, 2048).to(matmul_dtype(torch.bfloat16, torch.device("cpu")))
    times = []
    for _ in range(10):
        began = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - began)
    return 2 * 2048**3 / min(times)


def on_cpu(repeats: int) -> tuple[float, list[dict[str, Any]]]:
    device, peak, results = torch.device("cpu"), matrix_peak(), []
    for index, case in enumerate(cpu_cases()):
        row: dict[str, Any] = {"case": case.name, "rows": case.rows, "context": case.context}
        row["vocab_size"] = case.config.vocab_size
        row |= speed(case, device, repeats, warm_up=2)
        for name in MODELS:
            row[name]["peak_bytes"] = memory_of(index, name)
            row[name]["share_of_peak"] = case.flops_per_token * row[name]["tokens_per_second"] / peak
        results.append(summary(row))
    return peak, results


def on_gpu(repeats: int) -> tuple[float, list[dict[str, Any]]]:
    device, results = torch.device("cuda"), []
    card = torch.cuda.get_device_name()
    peak = next((flops for name, flops in GPU_PEAK.items() if name in card), float("nan"))
    for case in gpu_cases():
        row: dict[str, Any] = {"case": case.name, "rows": case.rows, "context": case.context}
        row["vocab_size"] = case.config.vocab_size
        # 65 GB of weights, gradients and moments: two such models do not fit beside each other, so they come in turn.
        for name, make in MODELS.items():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            try:
                step = stepper(case, device, *make(case, device))
                losses, seconds = [], []
                for _ in range(3 + repeats):
                    began = time.perf_counter()
                    losses.append(step())
                    seconds.append(time.perf_counter() - began)
            except torch.cuda.OutOfMemoryError as error:
                say(f"{case.name}, {name}: does not fit ({error})")
                row[name] = {"tokens_per_second": float("nan"), "out_of_memory": str(error)}
            else:
                rate = case.rows * case.context / statistics.median(seconds[3:])
                row[name] = {"tokens_per_second": rate, "step_seconds": seconds[3:], "last_loss": losses[-1]}
            step = None  # frees the model
            row[name]["peak_bytes"] = torch.cuda.max_memory_allocated()
            row[name]["share_of_peak"] = case.flops_per_token * row[name]["tokens_per_second"] / peak
        results.append(summary(row))
    return peak, results


def summary(row: dict[str, Any]) -> dict[str, Any]:
    mine, peer = row["moxin"], row["transformers"]
    row["speed_ratio"] = round(mine["tokens_per_second"] / peer["tokens_per_second"], 2)
    row["memory_ratio"] = round(mine["peak_bytes"] / peer["peak_bytes"], 2)
    say(
        f"{row['case']}, {row['rows']}x{row['context']}, vocabulary {row['vocab_size']:,}: "
        f"{row['speed_ratio']}x the speed, {row['memory_ratio']}x the memory"
    )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=9, help="timed steps of each model and case")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="on a CPU")
    parser.add_argument("--out", default=str(common.RESULTS), help="folder of the result")
    parser.add_argument("--memory", nargs=2, metavar=("CASE", "MODEL"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory:
        memory(int(args.memory[0]), args.memory[1])
        return
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    peak, rows = (on_gpu if gpu else on_cpu)(args.repeats)
    table(
        f"Training step in bfloat16, {common.processor() if not gpu else torch.cuda.get_device_name()}, "
        f"{peak / 1e9:,.0f} GFLOP/s at the most",
        (
            "model",
            "batch",
            "vocab",
            "moxin tok/s",
            "transformers",
            "speed",
            "of peak",
            "peer",
            "MiB",
            "peer",
            "memory",
        ),
        [
            (
                row["case"],
                f"{row['rows']}x{row['context']}",
                f"{row['vocab_size']:,}",
                *(f"{row[name]['tokens_per_second']:,.0f}" for name in MODELS),
                f"{row['speed_ratio']}x",
                *(f"{row[name]['share_of_peak']:.0%}" for name in MODELS),
                *(f"{row[name]['peak_bytes'] / 2**20:,.0f}" for name in MODELS),
                f"{row['memory_ratio']}x",
            )
            for row in rows
        ],
    )
    backends = {
        "attention": attention_backend(device=device, dtype=torch.bfloat16),
        "norm": norm_backend(device),
        "rope": rope_backend(device),
        "swiglu": swiglu_backend(device),
        "cross_entropy": cross_entropy_backend(device),
        "products": str(matmul_dtype(torch.bfloat16, device)),
    }
    say(json.dumps(backends))
    result = {
        "optimizer": "torch.optim.AdamW(fused=True)",
        "peak_flops": peak,
        "backends": backends,
        "threads": args.threads,
        "results": rows,
    }
    common.write("model_step", result, args.out, ("transformers", "numba", "triton"))


if __name__ == "__main__":
    main()
