"""Which checkpoints are taken: whole ones, of this very job."""

import errno
import functools
from dataclasses import replace

import pytest
from safetensors import SafetensorError
from stores import curriculum
from train_cases import CountingBatches, small_job

from moxin import storage
from moxin.recipe import PhaseConfig
from moxin.train import checkpoint, shards
from moxin.train.job import Keeping
from moxin.train.local import fit_local
from moxin.train.pretrain import PhaseBatches


@pytest.fixture
def folder(tmp_path):
    """Checkpoints after steps 4 and 8."""
    fit_local(small_job(), tmp_path)
    assert checkpoint.newest(str(tmp_path)) == (checkpoint.name_of(8), [checkpoint.name_of(4)])
    return tmp_path


@pytest.mark.parametrize("damage", ["missing", "short", "no metadata", "half metadata", "no list of files"])
def test_a_damaged_newest_checkpoint_is_passed_over(folder, damage):
    newest = folder / checkpoint.name_of(8)
    if damage == "missing":
        (newest / "shard-0.safetensors").unlink()
    elif damage == "short":
        (newest / "shard-0.safetensors").write_bytes((newest / "shard-0.safetensors").read_bytes()[:-1])
    elif damage == "no metadata":
        (newest / "checkpoint.json").unlink()
    elif damage == "half metadata":
        (newest / "checkpoint.json").write_text('{"world": 1')
    else:
        (newest / "part-0.json").unlink()
    assert checkpoint.newest(str(folder)) == (checkpoint.name_of(4), [checkpoint.name_of(8)])


def test_a_full_disk_is_called_so(tmp_path, monkeypatch):
    """A stand-in for the disk: filling a real one needs the right to mount it, which tests/test_disk.py asks for."""

    def full(tensors, path):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    engine, rows = fit_local(small_job(), stop_after=1)
    monkeypatch.setattr(shards, "save_file", full)
    with pytest.raises(OSError, match="No space left on device") as failed:
        checkpoint.save(engine, small_job(), rows, tmp_path / "part")
    assert failed.value.errno == errno.ENOSPC


def test_nothing_is_no_checkpoint(tmp_path):
    assert checkpoint.newest(str(tmp_path / "nowhere")) == ("", [])


def test_a_checkpoint_of_another_recipe_is_refused_with_the_difference(folder):
    other = small_job(peak_lr=3e-3, model=replace(small_job().model, n_layers=3))
    with pytest.raises(
        ValueError, match=r"model\.n_layers was 2, now it is 3; peak_lr was 0.01, now it is 0.003"
    ):
        fit_local(other, folder)


def test_what_does_not_decide_the_weights_may_change_on_the_way(folder):
    rows = fit_local(small_job(keeping=Keeping(3), n_workers=8, max_failures=0), folder)[1]
    assert len(rows) == small_job().schedule.total_steps


def test_a_state_to_carry_over_needs_only_the_same_model(folder):
    url = str(folder / checkpoint.name_of(8))
    checkpoint.check(url, small_job(name="next", peak_lr=1.0, batches=CountingBatches), carried=True)
    with pytest.raises(ValueError, match=r"model\.d_ff was 64, now it is 32"):
        checkpoint.check(url, small_job(model=replace(small_job().model, d_ff=32)), carried=True)


def test_a_run_that_was_moved_is_the_same_run():
    def job(root, key="0123456789ab", micro_batch=64, weight=1.0):
        phase = PhaseConfig("phase1", 1000, 16, {"a": weight})
        batches = functools.partial(
            PhaseBatches, f"{root}/tokenize-{key}", curriculum(phase), 64, micro_batch=micro_batch
        )
        return small_job(batches=batches, state=f"{root}/pretrain-phase1-{key}/state", initial="/models/mine")

    here = checkpoint.identity(job("/home/me/runs/demo"))
    assert here["state"] == "pretrain-phase1-0123456789ab/state"
    assert here["initial"] == "/models/mine"
    assert checkpoint.identity(job("s3://bucket/elsewhere", micro_batch=32)) == here
    assert checkpoint.identity(job("/home/me/runs/demo", key="ba9876543210")) != here
    assert checkpoint.identity(job("/home/me/runs/demo", weight=0.5)) != here


def test_metadata_says_what_a_person_asks(folder):
    about = storage.read_json(str(folder / checkpoint.name_of(8) / "checkpoint.json"))
    assert (about["step"], about["tokens"], about["world"], about["zero_stage"]) == (8, 8 * 128, 1, 1)
    assert about["job"]["objective"] == {"function": "moxin.train.objective.next_token"}
