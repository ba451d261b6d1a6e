#!/usr/bin/env python
"""A whole training step (forward, backward, fused AdamW) of our decoder against `transformers`' Mistral, on the CPU.

    python benchmarks/model_step.py                 # about 4 minutes; transformers in bfloat16 takes most of it
    python benchmarks/model_step.py --repeats 5     # quicker and noisier

Both get the same weights, tokens and types and run in the same process, taking turns step by step; the median of the steps
counts. Prints a table and writes `benchmarks/results/model_step-<date>.json` with hardware, versions and the command.
"""

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from transformers import MistralConfig, MistralForCausalLM

from kernels.attention import attention_backend
from kernels.precision import matmul_dtype
from moxin import storage
from moxin.console import say, table
from moxin.model.checkpoint import to_hf_config
from moxin.model.decoder import Decoder
from moxin.recipe import ModelConfig

DEMO = ModelConfig(n_layers=4, d_model=192, n_heads=6, n_kv_heads=2, d_ff=512, sliding_window=128)
SHAPES = ((8, 128), (4, 256))
"""Rows and context of a micro-batch of 1024 tokens, as in the demo's phases."""
WARM_UP = 2


def ours(model: Decoder, tokens_BT: Tensor) -> Tensor:
    return model(tokens_BT[:, :-1].contiguous(), targets_BT=tokens_BT[:, 1:].contiguous()).mean()


def theirs(model: MistralForCausalLM, tokens_BT: Tensor) -> Tensor:
    logits = model(input_ids=tokens_BT[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.float().flatten(0, 1), tokens_BT[:, 1:].flatten())


def stepper(
    model: torch.nn.Module, loss_of: Callable[..., Tensor], rows: int, context: int
) -> Callable[[], float]:
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    generator = torch.Generator().manual_seed(0)

    def step() -> float:
        tokens_BT = torch.randint(DEMO.vocab_size, (rows, context + 1), generator=generator)
        loss = loss_of(model, tokens_BT)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def compare(dtype: torch.dtype, threads: int, rows: int, context: int, repeats: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    mine = Decoder(DEMO)
    peer = MistralForCausalLM(MistralConfig(**to_hf_config(DEMO), attn_implementation="sdpa"))
    peer.load_state_dict(mine.state_dict())
    steps = {
        "moxin": stepper(mine.to(dtype), ours, rows, context),
        "transformers": stepper(peer.to(dtype), theirs, rows, context),
    }
    losses: dict[str, list[float]] = {name: [] for name in steps}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(WARM_UP + repeats):
        for name, step in steps.items():
            began = time.perf_counter()
            losses[name].append(step())
            seconds[name].append(time.perf_counter() - began)
    tokens = rows * context
    rates = {name: tokens / statistics.median(times[WARM_UP:]) for name, times in seconds.items()}
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "threads": threads,
        "rows": rows,
        "context": context,
        "tokens_per_second": {name: round(rate) for name, rate in rates.items()},
        "ratio": round(rates["moxin"] / rates["transformers"], 2),
        "first_loss": {name: losses[name][0] for name in losses},
        "last_loss": {name: losses[name][-1] for name in losses},
        "step_seconds": {name: [round(s, 4) for s in times[WARM_UP:]] for name, times in seconds.items()},
    }


def processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=15, help="timed steps of each model and setting")
    parser.add_argument("--out", default=str(Path(__file__).parent / "results"), help="folder of the result")
    args = parser.parse_args()
    dtypes = (torch.bfloat16, torch.float32)
    rows = []
    for dtype in dtypes:
        for threads in sorted({1, min(2, os.cpu_count() or 1)}):
            for shape in SHAPES:
                rows.append(compare(dtype, threads, *shape, args.repeats))
                say(f"{dtype}, {threads} threads, {shape[0]}x{shape[1]}: {rows[-1]['ratio']}x transformers")
    cpu = torch.device("cpu")
    multiplied_in = {str(dtype): str(matmul_dtype(dtype, cpu)) for dtype in dtypes}
    table(
        f"Training step, tokens per second ({DEMO.n_layers} layers of {DEMO.d_model}, window {DEMO.sliding_window})",
        ("weights", "threads", "batch", "moxin", "transformers", "ratio"),
        [
            (
                row["dtype"],
                row["threads"],
                f"{row['rows']}x{row['context']}",
                *row["tokens_per_second"].values(),
                row["ratio"],
            )
            for row in rows
        ],
    )
    say(
        f"attention: {attention_backend()}; bfloat16 weights are multiplied in {multiplied_in['torch.bfloat16']}"
    )
    result = {
        "benchmark": "model_step",
        "command": " ".join(["python", *sys.argv]),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "hardware": {
            "cpu": processor(),
            "cores": os.cpu_count(),
            "isa": torch.backends.cpu.get_cpu_capability(),
        },
        "load_average_at_end": os.getloadavg(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "model": to_hf_config(DEMO),
        "optimizer": "torch.optim.AdamW(fused=True)",
        "transformers_attention": "sdpa",
        "moxin_attention": attention_backend(),
        "multiplied_in": multiplied_in,
        "results": rows,
    }
    url = str(Path(args.out) / f"model_step-{time.strftime('%Y-%m-%d', time.gmtime())}.json")
    storage.write_json(url, result)
    say(f"wrote {url}")


if __name__ == "__main__":
    main()
