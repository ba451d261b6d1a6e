"""What the preflight takes a checkpoint for, against one that is written."""

import pytest
from train_cases import MODEL, small_job

from moxin.doctor.need import Need
from moxin.recipe import ModelConfig
from moxin.train import checkpoint
from moxin.train.build import build
from moxin.train.engine_deepspeed import DeepSpeedEngine
from moxin.train.loop import train

LARGER = ModelConfig(
    **{**{name: getattr(MODEL, name) for name in MODEL.__dataclass_fields__}, "d_model": 256, "d_ff": 1024}
)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("zero_stage", ["0", "1", "2", "3"])
def test_a_checkpoint_is_as_large_as_the_preflight_says(one_worker, tmp_path, precision, zero_stage):
    job = small_job(model=LARGER, precision=precision, zero_stage=zero_stage)
    engine = DeepSpeedEngine(build(job), job)
    checkpoint.save(engine, job, train(engine, job, job.batches(), [], stop_after=1), tmp_path)
    written = sum(file.stat().st_size for file in tmp_path.rglob("*"))
    assert written == pytest.approx(Need.of(job.model, job.scaling).checkpoint_bytes, rel=0.05)
