"""The whole road at a reduced size: what it leaves behind, and that no kill or Ctrl-C on the way changes the result."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from road import ROOT, Walk, begun, finished

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    walk = Walk(run)
    assert walk.wait() == 0, walk.tail()
    return run


def result_of(run: Path) -> dict[str, str]:
    """What a run is judged by: weights, loss curves, documents, tokens and evaluation; not its times."""
    parts = {}
    for path in sorted(run.glob("*-*/**/*")):
        name = path.relative_to(run).as_posix()
        if path.suffix in (".safetensors", ".parquet", ".bin", ".idx") or path.name == "results.json":
            parts[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif path.name == "metrics.jsonl":
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            parts[name] = json.dumps(
                [[row["step"], row["loss"], row["lr"], row["grad_norm"]] for row in rows]
            )
    return parts


def test_the_results_have_everything_that_was_promised(undisturbed):
    results = json.loads((undisturbed / "results.json").read_text())
    assert results["curation"]["documents_in"] > results["curation"]["documents_out"] > 0
    for kind in ("exact_duplicate", "near_duplicate", "gibberish", "foreign", "personal", "leak"):
        assert (
            0
            < results["curation"]["planted"][kind]["found"]
            <= results["curation"]["planted"][kind]["planted"]
        )
    assert results["tokens"]["vocab_size"] > 256
    assert results["tokens"]["total"] > 10_000
    assert [phase["name"] for phase in results["pretrain"]["phases"]] == ["phase1", "phase2", "phase3"]
    first = results["pretrain"]["phases"][0]
    assert first["loss_last"] < first["loss_first"]
    assert first["tokens_per_second"] > 0
    for trained in ("pretrained", "sft", "dpo"):
        assert 0 <= results["evaluation"][trained]["tinyworld_mc"] <= 1
        assert results["evaluation"][trained]["chance"] == 0.25
    assert results["export"]["max_abs_logit_difference"] < 1e-3
    assert len(results["serve"]["answers"]) == 3
    assert all(answer["question"] and answer["answer"] for answer in results["serve"]["answers"])
    assert 0 < results["peak_rss_bytes"] < 10 * 2**30
    assert results["wall_seconds"] > 0
    page = (undisturbed / "report.html").read_text()
    assert "<svg" in page


def test_no_evaluation_question_is_in_the_training_tokens(undisturbed):
    (manifest,) = undisturbed.glob("tokenize-*/manifest.json")
    assert json.loads(manifest.read_text())["counts"]["questions_found"] == 0


def test_what_was_trained_on_can_be_asked(undisturbed):
    inspect = [sys.executable, "-m", "moxin.cli", "inspect", "tokens", str(undisturbed), "--phase", "phase2"]
    step = subprocess.run([*inspect, "--step", "3"], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert step.returncode == 0, step.stderr + step.stdout
    assert [line.split()[0] for line in step.stdout.splitlines()[-16:]] == [str(i) for i in range(32, 48)]
    sample = subprocess.run(
        [*inspect, "--sample", "35"], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert sample.returncode == 0, sample.stderr + sample.stdout
    assert "phase2, sample 35 of 384" in sample.stdout
    assert "shards/" in sample.stdout
    (manifest,) = undisturbed.glob("pretrain-phase2-*/manifest.json")
    mixture = json.loads(manifest.read_text())["counts"]["mixture"]
    assert sum(row["samples"] for row in mixture) == 384
    assert {row["source"] for row in mixture} == {"tinyworld", "prose", "code"}


def test_a_run_that_is_killed_and_interrupted_again_and_again_ends_the_same(undisturbed):
    run = undisturbed.parent / "disturbed"

    walk = Walk(run)
    walk.until(lambda: begun(run, "curate"))
    assert walk.interrupt() == 130, walk.tail()

    walk = Walk(run)
    walk.until(lambda: begun(run, "tokenize"))
    walk.kill()

    walk = Walk(run)
    walk.until(lambda: begun(run, "evaluate-phase1"))
    walk.kill()

    walk = Walk(run)
    walk.until(lambda: any(run.glob("pretrain-phase2-*/.scratch/**/checkpoint*")))
    walk.kill()

    walk = Walk(run)
    walk.until(lambda: begun(run, "sft"))
    assert walk.interrupt() == 130, walk.tail()

    walk = Walk(run)
    walk.until(lambda: begun(run, "dpo"))
    walk.kill()

    walk = Walk(run)
    walk.until(lambda: begun(run, "release"))
    walk.kill()

    walk = Walk(run)
    assert walk.wait() == 0, walk.tail()
    assert finished(run, "release")
    expected, got = result_of(undisturbed), result_of(run)
    assert got.keys() == expected.keys()
    assert [name for name in expected if got[name] != expected[name]] == []


def test_a_second_run_makes_nothing_again(undisturbed):
    before = {path: path.stat().st_mtime_ns for path in undisturbed.glob("*-*/manifest.json")}
    walk = Walk(undisturbed)
    assert walk.wait() == 0, walk.tail()
    assert {path: path.stat().st_mtime_ns for path in undisturbed.glob("*-*/manifest.json")} == before
    assert walk.output().count("there already") == len(before)
