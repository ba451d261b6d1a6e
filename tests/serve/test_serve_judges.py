"""Clients and testers that others wrote against a running service: schemathesis, litellm, llm, guidellm (`make judge`).

They live in an environment of their own, whose programs MOXIN_JUDGES names; a test is skipped where its tool is not there.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from serve_helpers import served, tiny_tokenizer
from small import noisy

from moxin.infer.engine import Engine
from moxin.infer.grammar import Grammars
from moxin.infer.load import load
from moxin.model import huggingface
from moxin.recipe import ModelConfig

pytestmark = pytest.mark.slow
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
LITELLM = """
import sys, litellm
asked = dict(api_base=sys.argv[1] + "/v1", api_key="k", messages=[{"role": "user", "content": "dog"}], max_tokens=5,
             temperature=0)
whole = litellm.completion(model="openai/tiny", **asked)
parts = litellm.completion(model="openai/tiny", stream=True, **asked)
assert "".join(part.choices[0].delta.content or "" for part in parts) == whole.choices[0].message.content
assert whole.usage.completion_tokens <= 5
try:
    litellm.completion(model="openai/none", **asked)
except litellm.NotFoundError:
    print("as it should be")
"""


def tool(name: str) -> str:
    found = shutil.which(name, path=os.environ.get("MOXIN_JUDGES", os.environ["PATH"]))
    if found is None:
        pytest.skip(f"{name} is not installed; make judge installs it")
    return found


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Base URL and release folder of a tiny model with random weights."""
    folder = tmp_path_factory.mktemp("judges")
    config = ModelConfig(n_layers=2, d_model=32, n_heads=4, n_kv_heads=2, d_ff=64, vocab_size=300, max_seq_len=512,
                         sliding_window=64)  # fmt: skip
    tokenizer = tiny_tokenizer()
    tokenizer.save(str(folder / "tokenizer"))
    release = str(folder / "release")
    huggingface.export(noisy(config, seed=3), str(folder / "tokenizer"), release, dtype="float32")
    torch.set_num_threads(1)
    grammars = Grammars(tokenizer.spec, 300, [tokenizer.eos_id, tokenizer.end_id])
    engine = Engine(load(release), max_batch=8, decode=tokenizer.decode, grammars=grammars)
    with served(engine, tokenizer, limit=64, max_len=512) as (url, _):
        yield url, release


def run(folder: Path, *command: str, timeout: float = 300, **environment: str) -> str:
    """What a program prints, which runs in `folder`: some leave files where they run."""
    settings = {**os.environ, **environment}
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=settings, cwd=folder)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


def test_schemathesis_finds_no_failure(service: tuple[str, str], tmp_path: Path) -> None:
    options = [
        "-c",
        CHECKS,
        "--phases",
        "examples,coverage,fuzzing",
        "--max-examples",
        "30",
        "--seed",
        "1",
        "-w",
        "1",
    ]
    run(tmp_path, tool("schemathesis"), "run", f"{service[0]}/openapi.json", *options)


def test_litellm_is_a_client(service: tuple[str, str], tmp_path: Path) -> None:
    python = str(Path(tool("litellm")).with_name("python"))
    assert "as it should be" in run(
        tmp_path, python, "-c", LITELLM, service[0], LITELLM_LOCAL_MODEL_COST_MAP="True"
    )


def test_llm_is_a_client(service: tuple[str, str], tmp_path: Path) -> None:
    models = f"- model_id: tiny\n  model_name: tiny\n  api_base: {service[0]}/v1\n"
    (tmp_path / "extra-openai-models.yaml").write_text(models)
    asked = ["-m", "tiny", "--key", "k", "-o", "max_tokens", "6", "-o", "temperature", "0", "dog"]
    streamed = run(tmp_path, tool("llm"), *asked, LLM_USER_PATH=str(tmp_path))
    whole = run(tmp_path, tool("llm"), *asked, "--no-stream", LLM_USER_PATH=str(tmp_path))
    assert streamed.strip() == whole.strip() != ""


def test_guidellm_sees_no_failed_request_below_saturation(service: tuple[str, str], tmp_path: Path) -> None:
    """Its sweep finds the rate at saturation, where refusals are right, and asks at rates below it."""
    run(
        tmp_path,
        tool("guidellm"), "run", "--backend", f"kind=openai_http,target={service[0]},model=tiny",
        "--profile", "kind=sweep,sweep_size=4", "--constraint", "kind=max_duration,seconds=5",
        "--data", "kind=synthetic_text,prompt_tokens=32,output_tokens=16",
        "--tokenizer", f"kind=huggingface_auto,model={service[1]}",
        "--output", f"kind=json,path={tmp_path / 'sweep.json'}", "--disable-console-interactive",
        timeout=600, HF_HUB_OFFLINE="1",
    )  # fmt: skip
    report = json.loads((tmp_path / "sweep.json").read_text())
    seen = 0
    for benchmark in report["benchmarks"]:
        strategy = benchmark["config"]["strategy"]["type_"]
        totals = benchmark["metrics"]["request_totals"]
        if strategy != "throughput":
            assert totals["errored"] == 0, (strategy, totals)
            seen += totals["successful"]
    assert len(report["benchmarks"]) == 4
    assert seen > 20
