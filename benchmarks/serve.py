"""What HTTP and Ray Serve cost: the service beside the bare engine, in turns, with the same model, threads and requests.

    python benchmarks/serve.py --rounds 5 --interval-ms 0 20

Both answer `--requests` prompts at once, as many as the engine works on, with `--tokens` tokens each. Throughput is all
tokens over all time; inter-token latency is the time between two events of an answer, over the tokens of the later one. The
client shares the machine with the service. Weights are random: speed does not depend on them.
"""

import argparse
import asyncio
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("NUMBA_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Ray runs its workers at niceness 15: beside other programs of the machine they would come last, the bare engine would not.
os.environ.setdefault("RAY_worker_niceness", "0")

# The checkout, not this folder: its file of this name would hide the package `serve`.
sys.path[0] = str(Path(__file__).resolve().parent.parent)
sys.path.append(str(Path(__file__).resolve().parent))
import common
import psutil
import torch

from moxin import session
from moxin.console import say, table
from moxin.infer.engine import Engine
from moxin.infer.load import load
from moxin.infer.request import Request
from moxin.infer.sampling import SamplingParams
from moxin.model import huggingface
from moxin.model.decoder import Decoder
from moxin.recipe import ModelConfig
from moxin.tokens.tokenizer import BYTE_TOKENS, CONTROL_TOKENS, Tokenizer
from serve.run import serving_app

SHAPES = {
    "15m": {"n_layers": 6, "d_model": 384, "n_heads": 6, "n_kv_heads": 2, "d_ff": 1024},
    "60m": {"n_layers": 8, "d_model": 640, "n_heads": 10, "n_kv_heads": 2, "d_ff": 2560},
}
TEXT = "The quick brown fox jumps over the lazy dog. Who owns the dog? Ada owns the lazy dog. "
Measured = tuple[float, list[float]]
"""Tokens a second, and seconds between tokens."""


def release(folder: str, shape: str) -> str:
    tokenizer = Tokenizer.train([TEXT] * 20, vocab_size=400)
    tokenizer.save(f"{folder}/tokenizer")
    config = ModelConfig(
        **SHAPES[shape], vocab_size=tokenizer.vocab_size, max_seq_len=2048, sliding_window=None
    )
    model = Decoder(config)
    model.reset(seed=1)
    with torch.no_grad():
        model.head.weight[: len(CONTROL_TOKENS) + len(BYTE_TOKENS)] = (
            0  # greedy answers are text, not halves of characters
        )
    huggingface.export(model, f"{folder}/tokenizer", f"{folder}/release", dtype="float32")
    return f"{folder}/release"


def bare(engine: Engine, prompts: list[list[int]], n_tokens: int) -> Measured:
    params = SamplingParams(max_tokens=n_tokens, ignore_eos=True)
    started, last, gaps, n = time.perf_counter(), dict[str, float](), list[float](), 0
    for number, prompt in enumerate(prompts):
        engine.add(Request(str(number), prompt, params))
    while engine.has_work:
        events = engine.step()
        now = time.perf_counter()
        for event in events:
            n += event.token is not None
            if event.id in last:
                gaps.append(now - last[event.id])
            last[event.id] = now
    return n / (time.perf_counter() - started), gaps


def served(url: str, model: str, prompts: list[list[int]], n_tokens: int) -> Measured:
    """Over plain sockets, so that the client costs little of the machine."""

    async def one(prompt: list[int]) -> tuple[int, list[float]]:
        host, _, port = url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        body = {"model": model, "prompt": prompt, "max_tokens": n_tokens, "temperature": 0, "ignore_eos": True,
                "stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}  # fmt: skip
        raw = json.dumps(body).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
        writer.write(
            head.encode() + f"Content-Length: {len(raw)}\r\nConnection: close\r\n\r\n".encode() + raw
        )
        arrived: list[tuple[float, int]] = []
        async for line in reader:
            if line.startswith(b"data: {"):
                count = json.loads(line[6:])["usage"]["completion_tokens"]
                if not arrived or count > arrived[-1][1]:
                    arrived.append((time.perf_counter(), count))
        writer.close()
        gaps = [
            (later - earlier) / (b - a)
            for (earlier, a), (later, b) in itertools.pairwise(arrived)
            for _ in range(b - a)
        ]
        return arrived[-1][1], gaps

    async def all_of_them() -> Measured:
        started = time.perf_counter()
        found = await asyncio.gather(*(one(prompt) for prompt in prompts))
        took = time.perf_counter() - started
        return sum(n for n, _ in found) / took, [gap for _, gaps in found for gap in gaps]

    return asyncio.run(all_of_them())


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--shape", default="60m", choices=SHAPES)
    options.add_argument("--requests", type=int, default=16)
    options.add_argument("--prompt", type=int, default=32, help="tokens of a prompt")
    options.add_argument("--tokens", type=int, default=96, help="tokens of an answer")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument(
        "--interval-ms", type=float, nargs="+", default=[0.0, 50.0], help="stream_interval_ms, each in turn"
    )
    chosen = options.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        url = release(folder, chosen.shape)
        engine = Engine(load(url), max_batch=chosen.requests, prefix_caching=False)
        session.start()
        for interval in chosen.interval_ms:
            settings = {
                "model": url,
                "name": "m",
                "max_batch": chosen.requests,
                "stream_interval_ms": interval,
                "gpus": 0,
            }
            with serving_app(settings) as base_url:
                rows.append(compare(engine, base_url, chosen, interval))
        session.stop()
    speeds, costs = list(rows[0])[:7], [name for name in rows[0] if name.startswith("cpu_")]
    table(
        f"Service against bare engine, {chosen.shape}, {chosen.requests} requests at once",
        (
            "interval ms",
            "engine tok/s",
            "service tok/s",
            "overhead",
            "engine ITL ms",
            "service ITL ms",
            "more ms",
        ),
        [tuple(f"{row[name]:.2f}" for name in speeds) for row in rows],
    )
    table(
        "CPU time per token, ms (what other programs of the machine do hardly changes it)",
        ("interval ms", "bare engine", "engine's process", "ingress", "proxy"),
        [tuple(f"{row[name]:.2f}" for name in ("interval_ms", *costs)) for row in rows],
    )
    common.write("serve", {"settings": vars(chosen), "rows": rows}, packages=("ray", "fastapi", "uvicorn"))


def compare(engine: Engine, base_url: str, chosen: argparse.Namespace, interval: float) -> dict[str, float]:
    """Medians over the rounds, of which the first is not counted."""
    throughputs: dict[str, list[float]] = {"engine": [], "service": []}
    cpu: dict[str, list[float]] = {"bare": [], "engine": [], "ingress": [], "proxy": []}
    latencies: dict[str, list[float]] = {"engine": [], "service": []}
    for number in range(chosen.rounds + 1):
        # Other prompts every round: the service remembers them.
        prompts = [
            [(7 * number + 3 * i + j) % 200 + 20 for j in range(chosen.prompt)]
            for i in range(chosen.requests)
        ]
        at = [cpu_seconds()]
        alone = bare(engine, prompts, chosen.tokens)
        at.append(cpu_seconds())
        over_http = served(base_url, "m", prompts, chosen.tokens)
        at.append(cpu_seconds())
        for name, (throughput, gaps) in (("engine", alone), ("service", over_http)):
            if number:
                throughputs[name].append(throughput)
                latencies[name].append(statistics.median(gaps) * 1000)
        if number:
            for name, found in cpu.items():
                turn = 0 if name == "bare" else 1
                found.append((at[turn + 1][name] - at[turn][name]) / (chosen.requests * chosen.tokens) * 1000)
        say(f"round {number}: {throughput:.0f} tokens/s over HTTP", style="dim")
    speed = {name: statistics.median(found) for name, found in throughputs.items()}
    gap = {name: statistics.median(found) for name, found in latencies.items()}
    return {
        "interval_ms": interval,
        "engine_tokens_per_s": speed["engine"],
        "service_tokens_per_s": speed["service"],
        "overhead": 1 - speed["service"] / speed["engine"],
        "engine_itl_ms": gap["engine"],
        "service_itl_ms": gap["service"],
        "more_itl_ms": gap["service"] - gap["engine"],
    } | {f"cpu_ms_per_token_{name}": statistics.median(found) for name, found in cpu.items()}


def cpu_seconds() -> dict[str, float]:
    """Of this process, which is the bare engine or the client, and of the service's."""
    titles = {
        "engine": "ServeReplica:default:engine",
        "ingress": "ServeReplica:default:ingress",
        "proxy": "ProxyActor",
    }
    found = {"bare": time.process_time(), **dict.fromkeys(titles, 0.0)}
    for process in psutil.process_iter(["cmdline", "cpu_times"]):
        line, times = " ".join(process.info["cmdline"] or ()), process.info["cpu_times"]
        for name, title in titles.items():
            if title in line and times is not None:
                found[name] += times.user + times.system
    return found


if __name__ == "__main__":
    main()
