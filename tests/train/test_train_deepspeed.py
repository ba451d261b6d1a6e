"""The DeepSpeed engine, in this process with one worker, against plain PyTorch."""

import pytest
import torch
from train_cases import curve, small_job

from moxin.train import checkpoint
from moxin.train.engine_deepspeed import DeepSpeedEngine
from moxin.train.local import fit_local

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_worker")]


@pytest.mark.parametrize("stage", ["0", "1", "2", "3"])
def test_every_zero_stage_trains_as_plain_pytorch_does(stage):
    reference, rows = fit_local(small_job())
    engine, sharded = fit_local(small_job(micro_rows=3, zero_stage=stage), engine_of=DeepSpeedEngine)
    assert [row["loss"] for row in sharded] == pytest.approx([row["loss"] for row in rows], abs=1e-5)
    assert [row["grad_norm"] for row in sharded] == pytest.approx(
        [row["grad_norm"] for row in rows], abs=1e-5
    )
    weights = engine.weights()
    for name, weight in reference.weights().items():
        torch.testing.assert_close(weights[name], weight, atol=2e-5, rtol=0)


@pytest.mark.parametrize("stage", ["0", "1", "3"])
def test_bf16_stays_near_float32(stage):
    rows = fit_local(small_job())[1]
    half = fit_local(small_job(zero_stage=stage, precision="bf16"), engine_of=DeepSpeedEngine)[1]
    assert [row["loss"] for row in half] == pytest.approx([row["loss"] for row in rows], abs=0.03)


@pytest.mark.parametrize("stage", ["0", "1", "2", "3"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_resumed_is_bit_for_bit_uninterrupted(tmp_path, stage, precision):
    job = small_job(zero_stage=stage, precision=precision)
    engine, rows = fit_local(job, engine_of=DeepSpeedEngine)
    fit_local(job, tmp_path, DeepSpeedEngine, stop_after=6)
    again, resumed = fit_local(job, tmp_path, DeepSpeedEngine)
    assert curve(resumed) == curve(rows)
    assert all(torch.equal(again.weights()[name], weight) for name, weight in engine.weights().items())


@pytest.mark.parametrize(("saved", "loaded"), [("0", "3"), ("1", "2"), ("2", "0"), ("3", "1")])
def test_a_checkpoint_of_another_zero_stage_goes_on_as_the_run_would(tmp_path, saved, loaded):
    rows = fit_local(small_job(zero_stage=saved), engine_of=DeepSpeedEngine)[1]
    fit_local(small_job(zero_stage=saved), tmp_path, DeepSpeedEngine, stop_after=6)
    resumed = fit_local(small_job(zero_stage=loaded), tmp_path, DeepSpeedEngine)[1]
    assert [row["loss"] for row in resumed] == pytest.approx([row["loss"] for row in rows], abs=1e-6)


def test_the_settings_of_this_job_hold_over_those_of_the_state_it_carries_over(tmp_path):
    first, rows = fit_local(small_job(), engine_of=DeepSpeedEngine)
    checkpoint.save(first, small_job(), rows, tmp_path / "state")
    job = small_job(
        state=str(tmp_path / "state"), weight_decay=0.3, betas=(0.8, 0.9), grad_clip=0.25, name="next"
    )
    engine, _ = fit_local(job, engine_of=DeepSpeedEngine, stop_after=1)
    assert [group["weight_decay"] for group in engine.optimizer.param_groups] == [0.3, 0.0]
    assert all(tuple(group["betas"]) == (0.8, 0.9) for group in engine.optimizer.param_groups)
    assert engine.grad_clip == 0.25
