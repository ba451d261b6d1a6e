"""The release stage in one process, on a small model: what it writes, and that it notices a wrong export."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from moxin import artifact, recipes
from moxin.artifact import Artifact
from moxin.model import checkpoint
from moxin.model.decoder import Decoder
from moxin.model.presets import PRESETS
from moxin.release import export
from moxin.release.card import architecture
from moxin.release.run import stage
from moxin.tokens.tokenizer import Tokenizer

TEXTS = ["Orvek Holloway lives in Tarn. " * 30, "x = 1\n\n\ndef f(x):\n    return x  # Körbchen ✓ <s> </s>\n"]
SCORES = {"tinyworld_mc": 0.25, "tinyworld_gen": 0.0, "chance": 0.25, "n_questions": 8}


def made(folder: Path, name: str, **counts) -> Artifact:
    return Artifact(name, f"key-of-{name}", str(folder / name), {"counts": counts})


def write_rows(file: Path, rows: list[dict]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """The stage on hand-made inputs, the model it was given, and the folder it works in."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("run")
    recipe = recipes.load("smoke")
    config = replace(recipe.model, vocab_size=320, d_model=32, sliding_window=24)
    model = Decoder(config)
    model.reset(3)
    with torch.no_grad():
        model.head.weight.mul_(8)
    checkpoint.save(model, config, str(folder / "dpo" / "model"))
    Tokenizer.train(TEXTS * 3, 300).save(str(folder / "tokenize" / "tokenizer"))
    sources = ("tinyworld", "code")
    write_rows(
        folder / "tokenize" / "heldout.jsonl",
        [{"source": source, "text": text} for source, text in zip(sources, TEXTS, strict=True)],
    )
    write_rows(
        folder / "world" / "interview.jsonl", [{"question": "Where does Orvek live?", "answer": "Tarn"}]
    )
    rows = [("tinyworld", "CC0-1.0")] * 5 + [("code", "MIT")] * 3 + [("code", "BSD-3-Clause")] * 2
    (folder / "curate" / "documents").mkdir(parents=True)
    columns = {"source": [source for source, _ in rows], "license": [name for _, name in rows]}
    pq.write_table(pa.table(columns), folder / "curate" / "documents" / "part-00000.parquet")
    evaluations = {}
    for i, name in enumerate(("phase1", "phase2", "phase3", "sft", "dpo")):
        evaluations[name] = made(folder, f"evaluate-{name}")
        bits = {"code": 4.0 - i / 4, "tinyworld": 2.0}
        results = {**SCORES, "tinyworld_mc": 0.25 + i / 8, "bits_per_byte": bits}
        write_rows(folder / f"evaluate-{name}" / "results.json", [results])
    tokens = made(
        folder,
        "tokenize",
        vocab_size=300,
        questions=8,
        questions_found=1,
        sources={"tinyworld": {"tokens": 12_345}, "code": {"tokens": 678}},
    )
    curated = made(folder, "curate", documents_in=77, documents_out=10)
    made_stage = stage(
        replace(recipe, model=config),
        made(folder, "dpo"),
        tokens,
        curated,
        made(folder, "world"),
        evaluations,
    )
    return made_stage, model, artifact.make(made_stage, str(folder))


def test_transformers_loads_the_release_with_the_same_logits(release):
    _, model, released = release
    theirs = AutoModelForCausalLM.from_pretrained(released.url).eval()
    ids = torch.randint(0, 300, (2, 60), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (theirs(ids).logits - model(ids)).abs().max() < 1e-4
    assert released.counts["max_abs_logit_difference"] < 1e-4 < 1 < released.counts["max_abs_logit"]
    assert json.loads(Path(released.file("verification.json")).read_text()) == dict(released.counts)
    tokenizer = AutoTokenizer.from_pretrained(released.url)
    ends = [tokenizer.convert_tokens_to_ids(name) for name in ("</s>", "<|end|>")]
    assert theirs.generation_config.eos_token_id == ends
    assert released.verify() == []


def test_the_card_holds_the_numbers_and_its_example_runs(release, monkeypatch):
    _, model, released = release
    card = Path(released.file("README.md")).read_text()
    head, body = card.split("---\n", 2)[1:]
    data = yaml.safe_load(head)
    assert (data["license"], data["pipeline_tag"]) == ("apache-2.0", "text-generation")
    metrics = [
        (m["name"], m["value"]) for result in data["model-index"][0]["results"] for m in result["metrics"]
    ]
    assert metrics == [("multiple choice", 0.75), ("generation", 0.0)]
    for line in (
        f"{model.n_parameters():,} parameters",
        "| tinyworld | 5 | 12,345 | CC0-1.0 (5) |",
        "| code | 5 | 678 | MIT (3); BSD-3-Clause (2) |",
        "| phase3 | 24,576 | 64 | tinyworld 0.6, quiz 0.3, prose 0.05, code 0.05 |",
        "1 of 8 evaluation questions occur in",
        "| after | multiple choice | generation | code | tinyworld |\n|---|---:|---:|---:|---:|\n| phase1 | 0.250 |",
        "| dpo | 0.750 | 0.000 | 3.000 | 2.000 |\n",
        "- dpo: `key-of-dpo`",
    ):
        assert line in body
    assert "Apache License" in Path(released.file("LICENSE")).read_text()
    monkeypatch.chdir(released.url)
    exec(re.search(r"```python\n(.*?)```", body, re.DOTALL)[1], {"print": lambda text: None})


def test_the_card_describes_either_family():
    mistral, mpt = (dict(architecture(PRESETS[name], "bfloat16")) for name in ("moxin_7b", "mpt_30b"))
    assert mistral["attention"] == "32 heads of 128, 8 key/value heads (GQA)"
    assert mistral["positions"] == "RoPE, θ 10,000, trained up to 32768 tokens"
    assert mpt["attention"] == "64 heads of 112, 64 key/value heads (as many as heads)"
    assert mpt["positions"] == "ALiBi, slopes down to 2^-8, trained up to 8192 tokens"
    assert (mpt["feed-forward"], mpt["normalisation"]) == ("GELU, 28672", "LayerNorm without bias, ε 1e-05")


def test_a_different_weight_or_tokenizer_is_noticed(release):
    _, model, released = release
    folder, chats = Path(released.url), [[{"role": "user", "content": "Where?"}]]
    tokenizer = Tokenizer.load(released.url)
    changed = Decoder(model.config)
    changed.load_state_dict(model.state_dict())
    with torch.no_grad():
        changed.norm.weight[0] += 0.01
    with pytest.raises(RuntimeError, match="logits differ from ours by"):
        export.verify(folder, changed, tokenizer, TEXTS, chats)
    other = Tokenizer.train(["Where? There! " * 9], 300)
    with pytest.raises(RuntimeError, match="another tokens of a text"):
        export.verify(folder, model, other, TEXTS, chats)
