#!/usr/bin/env python
"""The whole training loop (data, DeepSpeed under Ray Train, logging, checkpoints) beside the bare step of the same model and
beside the `transformers` Trainer: tokens per second.

benchmarks/train.py [--shapes 7m 60m] [--layouts 1x2 2x1] [--rounds 3] [--steps 24] [--precision bf16]

A layout is workers x threads. All have float32 weights and AdamW, with bf16 under autocast (ZeRO 0), the same batch cut
alike, on random tokens. The three take turns; each is started anew for every round, and its first steps are left out.
Medians over the steps of all rounds.
The loop also tells how long it waited for data and for checkpoints, and how long it took from the start to the first step.
"""

import argparse
import functools
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from common import hardware, write

from moxin import console
from moxin.model.presets import PRESETS
from moxin.recipe import ModelConfig, PhaseConfig, ScalingConfig

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = 4
CONTEXT, ROWS = 512, 4
SHAPES: dict[str, ModelConfig] = {
    "7m": ModelConfig(
        n_layers=8, d_model=256, n_heads=4, n_kv_heads=2, d_ff=960, vocab_size=2048, max_seq_len=CONTEXT
    ),
    "60m": replace(PRESETS["60m"], max_seq_len=CONTEXT),
}
CHECKPOINT_EVERY = 20
LONG = 100 * CONTEXT
HOLDERS = ("bare", "loop", "trainer")


def place(world: int, rank: int, port: str) -> dict[str, str]:
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world}
    return {
        **{name: str(value) for name, value in names.items()},
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }


def bare(config: ModelConfig, world: int, rank: int, steps: int, precision: str) -> list[float]:
    """Forward, backward, gradients averaged, fused AdamW: seconds by step."""
    from torch import distributed, nn

    from moxin.model.decoder import Decoder

    if world > 1:
        distributed.init_process_group("gloo")
    model = Decoder(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    rng = np.random.default_rng(rank)
    seconds = []
    for _ in range(steps):
        rows = rng.integers(0, config.vocab_size, (ROWS // world, CONTEXT + 1))
        tokens = torch.from_numpy(rows)
        started = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss, _ = model(
                tokens[:, :-1].contiguous(), targets_BT=tokens[:, 1:].contiguous(), reduction="sum"
            )
        (loss / tokens[:, 1:].numel()).backward()
        if world > 1:
            flat = torch.cat([p.grad.view(-1) for p in model.parameters() if p.grad is not None])
            distributed.all_reduce(flat)
            offset = 0
            for parameter in model.parameters():
                assert parameter.grad is not None
                n = parameter.numel()
                parameter.grad.copy_(flat[offset : offset + n].view_as(parameter) / world)
                offset += n
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - started)
    return seconds


def trainer(config: ModelConfig, world: int, rank: int, steps: int, precision: str) -> list[float]:
    """`transformers.Trainer` with the same model in its own code: seconds by step."""
    import transformers

    from moxin.model.layouts import to_hf_config

    class Rows(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return steps * ROWS

        def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
            ids = torch.from_numpy(np.random.default_rng(i).integers(0, config.vocab_size, CONTEXT))
            return {"input_ids": ids, "labels": ids}

    class Clock(transformers.TrainerCallback):
        def __init__(self) -> None:
            self.times = [time.perf_counter()]

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.times.append(time.perf_counter())

    clock = Clock()
    made = transformers.MistralForCausalLM(
        transformers.MistralConfig(**to_hf_config(config, "float32"), attn_implementation="sdpa")
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            folder,
            per_device_train_batch_size=ROWS // world,
            max_steps=steps,
            use_cpu=True,
            bf16=precision == "bf16",
            optim="adamw_torch_fused",
            logging_steps=1,
            save_steps=CHECKPOINT_EVERY,
            save_total_limit=2,
            report_to=[],
            disable_tqdm=True,
            max_grad_norm=1.0,
            ddp_backend="gloo" if world > 1 else None,
        )
        transformers.Trainer(made, arguments, train_dataset=Rows(), callbacks=[clock]).train()
    return [after - before for before, after in zip(clock.times, clock.times[1:], strict=False)]


def loop(config: ModelConfig, world: int, threads: int, steps: int, precision: str) -> dict[str, Any]:
    """Our own, through Ray Train, on a store of random tokens: metrics by step, and the time to the first of them."""
    sys.path.insert(0, str(ROOT / "tests"))
    from stores import write_store

    from moxin import storage
    from moxin.artifact import Builder
    from moxin.tokens.loader import Curriculum
    from moxin.train import pretrain
    from moxin.train.job import FitJob, Keeping, OptimizerSettings, Schedule
    from moxin.train.objective import next_token
    from moxin.train.run import fit

    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        # Long ones: where documents end inside a row, attention has less to do than the others' has.
        n_documents = -(-steps * ROWS * (CONTEXT + 1) // LONG) + 1
        documents = [rng.integers(7, config.vocab_size, LONG).tolist() for _ in range(n_documents)]
        url = write_store(folder + "/tokens", {"a": [documents]}, config.vocab_size)
        phase = PhaseConfig("p", steps * ROWS * CONTEXT, CONTEXT, {"a": 1.0})
        batch = ROWS * CONTEXT
        job = FitJob(
            name="loop",
            model=config,
            initial="",
            state="",
            batches=functools.partial(
                pretrain.PhaseBatches, url, Curriculum((phase,), 1, CONTEXT, 2**32), batch, micro_batch=batch
            ),
            objective=functools.partial(next_token, n_sources=1),
            peak_lr=1e-4,
            schedule=Schedule(steps),
            optimizer=OptimizerSettings(),
            keeping=Keeping(CHECKPOINT_EVERY),
            seed=0,
            scaling=ScalingConfig(n_workers=world, cpu_threads=threads, zero_stage="0", precision=precision),
            parts=("a",),
            context=CONTEXT,
        )
        began = time.time()
        fit(job, Builder(folder + "/run", {}))
        rows = storage.read_jsonl(folder + "/run/metrics.jsonl")
        (attempt,) = Path(folder, "run", "attempts").iterdir()
        # The log of the attempt begins with the first step: when that was made, to a second or so.
        first = attempt.stat().st_ctime - sum(row["seconds"] for row in rows[1:])
        return {"rows": rows, "first_step_after_s": first - began, "began": began}


def child(holder: str, shape: str, world: int, rank: int, threads: int, steps: int, precision: str) -> None:
    torch.set_num_threads(threads)
    config = SHAPES[shape]
    if holder == "loop":
        print(json.dumps(loop(config, world, threads, steps, precision)))
    else:
        run = bare if holder == "bare" else trainer
        print(json.dumps(run(config, world, rank, steps, precision)))


def run_apart(holder: str, shape: str, world: int, threads: int, steps: int, precision: str) -> Any:
    """One round of one of them in processes of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ranks = 1 if holder == "loop" else world
    processes = []
    for rank in range(ranks):
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        if holder != "loop" and world > 1:
            environment |= place(world, rank, port)
        command = [sys.executable, __file__, "--child", holder, shape, str(world), str(rank), str(threads)]
        processes.append(
            subprocess.Popen(
                [*command, str(steps), precision],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment,
            )
        )
    told = [process.communicate() for process in processes]
    for process, (_, error) in zip(processes, told, strict=True):
        if process.returncode:
            raise RuntimeError(f"{holder}: {error[-2000:]}")
    return json.loads(told[0][0].strip().splitlines()[-1])


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        holder, shape, world, rank, threads, steps, precision = sys.argv[2:]
        child(holder, shape, int(world), int(rank), int(threads), int(steps), precision)
        return
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    options.add_argument("--layouts", nargs="+", default=["1x2", "2x1"])
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--steps", type=int, default=24)
    options.add_argument("--precision", default="bf16", choices=("bf16", "fp32"))
    asked = options.parse_args()
    lines, results = [], []
    for shape in asked.shapes:
        for layout in asked.layouts:
            world, threads = map(int, layout.split("x"))
            seconds: dict[str, list[float]] = {holder: [] for holder in HOLDERS}
            waits, starts = {"data": 0.0, "checkpoint": 0.0, "all": 0.0}, []
            for _ in range(asked.rounds):
                for holder in HOLDERS:
                    found = run_apart(holder, shape, world, threads, asked.steps, asked.precision)
                    if holder == "loop":
                        rows = found["rows"][LEFT_OUT:]
                        starts.append(found["first_step_after_s"])
                        waits["data"] += sum(row["data_seconds"] for row in rows)
                        waits["checkpoint"] += sum(row["checkpoint_seconds"] for row in rows)
                        waits["all"] += sum(row["seconds"] + row["checkpoint_seconds"] for row in rows)
                        found = [row["seconds"] + row["checkpoint_seconds"] for row in found["rows"]]
                    seconds[holder] += found[LEFT_OUT:]
            rates = {name: ROWS * CONTEXT / statistics.median(values) for name, values in seconds.items()}
            means = {name: ROWS * CONTEXT / statistics.fmean(values) for name, values in seconds.items()}
            result = {
                "shape": shape,
                "layout": layout,
                "tokens_per_second": rates,
                "tokens_per_second_mean": means,
                "loop_to_bare": rates["loop"] / rates["bare"],
                "loop_to_trainer": rates["loop"] / rates["trainer"],
                "data_wait": waits["data"] / waits["all"],
                "checkpoint_wait": waits["checkpoint"] / waits["all"],
                "first_step_after_s": statistics.median(starts),
            }
            results.append(result)
            lines.append(
                (
                    shape,
                    layout,
                    *(round(rates[name]) for name in HOLDERS),
                    f"{100 * result['loop_to_bare']:.0f} %",
                    f"{result['loop_to_trainer']:.2f}x",
                    f"{100 * result['data_wait']:.1f} %",
                    f"{100 * result['checkpoint_wait']:.1f} %",
                    f"{result['first_step_after_s']:.0f} s",
                )
            )
            columns = ("shape", "workers x threads", "bare", "loop", "Trainer", "loop/bare", "loop/Trainer")
            console.table(
                f"Tokens per second, {asked.precision}, {ROWS} x {CONTEXT}, {hardware()['cpu']}",
                (*columns, "data wait", "checkpoint wait", "first step after"),
                lines,
            )
    write(
        f"train_{'_'.join(asked.shapes)}_{asked.precision}",
        {"results": results},
        packages=("transformers", "ray", "deepspeed"),
    )


if __name__ == "__main__":
    main()
