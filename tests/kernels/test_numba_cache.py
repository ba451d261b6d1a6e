"""A kernel rounds alike in the process that meets it first and in those that find it in numba's cache."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import hashlib, torch
from kernels import cross_entropy_numba, norm_numba
generator = torch.Generator().manual_seed(0)
x, grad = torch.randn(2, 64, 32, generator=generator)
logits, weight = torch.randn(64, 65, generator=generator), torch.rand(32, generator=generator)
normed = norm_numba.forward(x, grad, weight, 1e-5, True)
results = [*normed, *norm_numba.backward(grad, grad, x, weight, *normed[2:])]
results += cross_entropy_numba.NumbaRows().measure_and_differentiate(logits, torch.arange(64), 1e-4)
print(hashlib.sha256(b"".join(result.numpy().tobytes() for result in results)).hexdigest())
"""


@pytest.mark.slow
def test_compiled_and_cached_are_the_same_to_the_bit(tmp_path: Path) -> None:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PROGRAM]
    together = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) for _ in range(2)]
    results = [process.communicate()[0] for process in together]
    results.append(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)
    assert len(results[0].strip()) == 64
    assert len(set(results)) == 1
    assert any(tmp_path.rglob("*.nbc"))
