"""Speed of the inference engine beside its peers, in one process, taking turns: medians of what they do in the same minutes.

    python benchmarks/infer.py single 60m 760m        # one request: transformers.generate, llama.cpp
    python benchmarks/infer.py concurrent 60m 760m    # 16 requests of mixed length: one padded batch, and one by one
    python benchmarks/infer.py gpu                    # on a CUDA device: Moxin-7B and MPT-30B shapes against the targets

Weights are random: speed does not depend on them. llama.cpp is measured where llama-cpp-python and gguf are installed.
"""

import argparse
import gc
import itertools
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
import common
from infer_peers import LlamaCpp, Transformers

from moxin.console import say, table
from moxin.infer.engine import Engine
from moxin.infer.load import converted
from moxin.infer.memory import cache_bytes_per_token, fit, weight_bytes
from moxin.infer.model import InferenceModel
from moxin.infer.request import Request
from moxin.infer.sampling import SamplingParams
from moxin.model.decoder import Decoder
from moxin.model.presets import PRESETS
from moxin.recipe import ModelConfig

PROMPT, ANSWER = 32, 32
"""Tokens of the single request."""
N_CONCURRENT = 16
KINDS = ("float32", "bfloat16", "int8", "int4")


class Moxin:
    def __init__(self, model: InferenceModel, **settings: Any) -> None:
        self.engine = Engine(model, **{"max_batch": 1, "prefix_caching": False, **settings})

    def token_seconds(self, prompt: list[int], n: int) -> list[float]:
        """Seconds between the tokens of one answer."""
        self.engine.add(Request("a", prompt, SamplingParams(max_tokens=n)))
        times = []
        while self.engine.has_work:
            if self.engine.step():
                times.append(time.perf_counter())
        return [later - earlier for earlier, later in itertools.pairwise(times)]

    def seconds(self, requests: list[tuple[list[int], int]]) -> float:
        """For all answers of a list of (prompt, tokens)."""
        start = time.perf_counter()
        for number, (prompt, n) in enumerate(requests):
            self.engine.add(Request(str(number), prompt, SamplingParams(max_tokens=n)))
        while self.engine.has_work:
            self.engine.step()
        return time.perf_counter() - start


def prompt_of(n: int, vocab_size: int, seed: int = 0) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(vocab_size) for _ in range(n)]


def random_decoder(config: ModelConfig) -> Decoder:
    """Filled from one block of random numbers over and over: making them all would take longer than the measurement."""
    decoder = Decoder(config, seed=None).eval()
    block = 0.02 * torch.randn(2**20 + 7, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in decoder.parameters():
            if parameter.ndim == 1:
                parameter.fill_(1.0)
            else:
                repeats = -(-parameter.numel() // len(block))
                parameter.copy_(block.repeat(repeats)[: parameter.numel()].view_as(parameter))
    return decoder


def taking_turns(peers: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[Any]]:
    """What each returns in every round, after one that is not counted."""
    for run in peers.values():
        run()
    found: dict[str, list[Any]] = {name: [] for name in peers}
    for turn in range(rounds):
        names = list(peers) if turn % 2 == 0 else list(peers)[::-1]
        for name in names:
            found[name].append(peers[name]())
    return found


def single(preset: str, rounds: int, kinds: list[str]) -> dict[str, Any]:
    """Milliseconds a token at batch 1: the median over tokens and rounds."""
    config = PRESETS[preset]
    decoder = random_decoder(config)
    prompt = prompt_of(PROMPT, config.vocab_size)
    dense = InferenceModel.of(decoder)
    peers: dict[str, Any] = {}
    for kind in kinds:
        peers[f"moxin {kind}"] = Moxin(dense if kind == "float32" else converted(dense, kind))
    theirs = [kind for kind in kinds if kind in ("float32", "bfloat16")] or ["bfloat16"]
    for kind in theirs:
        peers[f"transformers {kind}"] = Transformers(decoder, getattr(torch, kind))
    with tempfile.TemporaryDirectory() as folder:
        if LlamaCpp.installed():
            for kind in [kind for kind in kinds if kind != "int4"]:
                peers[f"llama.cpp {kind}"] = LlamaCpp(decoder, kind, Path(folder))
        del decoder, dense
        gc.collect()
        runs = {
            name: (lambda peer=peer: statistics.median(peer.token_seconds(prompt, ANSWER)))
            for name, peer in peers.items()
        }
        found = {name: 1000 * statistics.median(times) for name, times in taking_turns(runs, rounds).items()}
    table(
        f"{preset}, one request, {torch.get_num_threads()} threads",
        ("engine", "ms a token", "GB/s of weights", *(f"x transformers {kind}" for kind in theirs)),
        [
            (
                name,
                f"{ms:.2f}",
                f"{weight_bytes(config, name.split()[1]) / ms / 1e6:.1f}",
                *(f"{found[f'transformers {kind}'] / ms:.2f}" for kind in theirs),
            )
            for name, ms in found.items()
        ],
    )
    return {"preset": preset, "prompt": PROMPT, "answer": ANSWER, "ms_per_token": found}


def mixed_requests(vocab_size: int) -> list[tuple[list[int], int]]:
    """Prompts of 8 to 128 tokens and answers of 8 to 128, as uneven as users are."""
    draw = random.Random(7)
    return [
        (prompt_of(round(8 * 16 ** draw.random()), vocab_size, i), round(8 * 16 ** draw.random()))
        for i in range(N_CONCURRENT)
    ]


def concurrent(preset: str, rounds: int, kinds: list[str]) -> dict[str, Any]:
    """Output tokens a second of 16 requests that come at once."""
    config = PRESETS[preset]
    decoder = random_decoder(config)
    requests = mixed_requests(config.vocab_size)
    total = sum(n for _, n in requests)
    dense = InferenceModel.of(decoder)
    dtypes = [kind for kind in kinds if kind in ("float32", "bfloat16")] or ["bfloat16"]
    theirs = {dtype: Transformers(decoder, getattr(torch, dtype)) for dtype in dtypes}
    runs: dict[str, Callable[[], float]] = {}
    for kind in kinds:
        ours = Moxin(dense if kind == "float32" else converted(dense, kind), max_batch=N_CONCURRENT)
        runs[f"moxin {kind}"] = lambda ours=ours: ours.seconds(requests)
    for dtype, peer in theirs.items():
        runs[f"transformers {dtype}, padded batch"] = lambda peer=peer: peer.batch_seconds(requests)
    runs["transformers, one by one"] = lambda: theirs[dtypes[-1]].each_seconds(requests)
    seconds = {name: statistics.median(times) for name, times in taking_turns(runs, rounds).items()}
    speed = {name: total / value for name, value in seconds.items()}
    best = max(value for name, value in speed.items() if "padded" in name)
    alone = speed["transformers, one by one"]
    table(
        f"{preset}, {N_CONCURRENT} requests, {total} tokens, {torch.get_num_threads()} threads",
        ("engine", "tokens/s", "x best padded batch", "x one by one"),
        [(name, f"{v:.1f}", f"{v / best:.2f}", f"{v / alone:.2f}") for name, v in speed.items()],
    )
    return {"preset": preset, "requests": [(len(p), n) for p, n in requests], "tokens_per_second": speed}


def random_on_gpu(preset: str, weights: str) -> InferenceModel:
    """Quantised matrix by matrix, so that MPT-30B never stands there in 16 bits."""
    from kernels.linear import Weight, int8_weight
    from moxin.infer.model import Layer

    config = PRESETS[preset]

    def matrix(n_outputs: int, n_inputs: int) -> Weight:
        numbers = 0.02 * torch.randn(n_outputs, n_inputs, device="cuda", dtype=torch.bfloat16)
        return int8_weight(numbers) if weights == "int8" else Weight(numbers)

    def ones() -> torch.Tensor:
        return torch.ones(config.d_model, device="cuda", dtype=torch.bfloat16)

    heads = (config.n_heads + 2 * config.n_kv_heads) * config.head_dim
    up = config.d_ff * (2 if config.activation == "swiglu" else 1)
    layers = tuple(
        Layer(
            ones(),
            matrix(heads, config.d_model),
            matrix(config.d_model, config.d_model),
            ones(),
            matrix(up, config.d_model),
            matrix(config.d_model, config.d_ff),
        )
        for _ in range(config.n_layers)
    )
    embedding = matrix(config.vocab_size, config.d_model)
    head = embedding if config.tie_embeddings else matrix(config.vocab_size, config.d_model)
    return InferenceModel(config, embedding, layers, ones(), head, torch.bfloat16)


def gpu_bandwidth() -> float:
    """Bytes a second of a copy, read and write counted."""
    x = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    y = torch.empty_like(x)
    times = []
    for _ in range(20):
        torch.cuda.synchronize()
        start = time.perf_counter()
        y.copy_(x)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return 2 * x.numel() / statistics.median(times)


def on_gpu() -> dict[str, Any]:
    """Moxin-7B: batch 1 in bfloat16 against the bandwidth, int8 against bfloat16, 256 requests of 512 + 256 tokens; MPT-30B
    int8 within 40 GiB."""
    bandwidth = gpu_bandwidth()
    prompt = prompt_of(512, 32_000)
    found: dict[str, Any] = {"bandwidth": bandwidth}
    rows = []
    for weights in ("bfloat16", "int8"):
        engine = Moxin(random_on_gpu("moxin_7b", weights), max_len=1024, max_batch=1)
        engine.token_seconds(prompt, 32)
        ms = 1000 * statistics.median(engine.token_seconds(prompt, 256))
        found[f"moxin_7b {weights} ms"] = ms
        share = weight_bytes(PRESETS["moxin_7b"], weights) / bandwidth / ms * 1000
        rows.append(
            (f"moxin_7b {weights}, batch 1", f"{ms:.2f} ms a token", f"{share:.0%} of the bandwidth's bound")
        )
        del engine
        torch.cuda.empty_cache()
    ratio = found["moxin_7b bfloat16 ms"] / found["moxin_7b int8 ms"]
    rows.append(("int8 against bfloat16", f"{ratio:.2f} x", "target 1.6; bfloat16's bound: 80 %"))
    engine = Moxin(random_on_gpu("moxin_7b", "bfloat16"), max_len=1024, max_batch=256, prefill_budget=8192)
    engine.seconds([(prompt_of(512, 32_000, i), 16) for i in range(256)])
    speed = 256 * 256 / engine.seconds([(prompt_of(512, 32_000, i), 256) for i in range(256)])
    rows.append(("moxin_7b bfloat16, 256 x (512 + 256)", f"{speed:,.0f} tokens/s", "target 5,300"))
    found["moxin_7b tokens/s"] = speed
    del engine
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    config = PRESETS["mpt_30b"]
    room = fit(config, "int8", "bfloat16", 40 * 2**30).n_tokens
    engine = Moxin(
        random_on_gpu("mpt_30b", "int8"), max_len=4096, max_batch=1, cache_tokens=room, prefill_chunk=512
    )
    ms = 1000 * statistics.median(engine.token_seconds(prompt_of(2048, 50_000), 64))
    peak = torch.cuda.max_memory_allocated()
    found |= {"mpt_30b ms": ms, "mpt_30b peak bytes": peak}
    cache = room * cache_bytes_per_token(config, "bfloat16") / 2**30
    what = f"mpt_30b int8, {room:,} tokens of cache ({cache:.1f} GiB)"
    rows.append((what, f"{ms:.1f} ms", f"peak {peak / 2**30:.1f} GiB"))
    table(torch.cuda.get_device_name(), ("what", "measured", "against"), rows)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("single", "concurrent", "gpu"))
    parser.add_argument("presets", nargs="*", help="shapes of moxin.model.presets (default: 60m)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS, help="of weights")
    parser.add_argument("--threads", type=int, default=0, help="of the CPU; as many as PyTorch takes where 0")
    parser.add_argument("--out", default=str(common.RESULTS), help="folder of the result")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.what == "gpu":
        results: Any = on_gpu()
    else:
        run = single if args.what == "single" else concurrent
        results = [run(preset, args.rounds, args.kinds) for preset in args.presets or ["60m"]]
    say("")
    packages = ("transformers", "numba", "triton", "llama_cpp_python")
    common.write(f"infer-{args.what}", {"rounds": args.rounds, "results": results}, args.out, packages)


if __name__ == "__main__":
    main()
