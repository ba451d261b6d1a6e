"""Every Triton kernel of norms, rotation, SwiGLU and cross-entropy becomes machine code for NVIDIA GPUs, without one.

The interpreter accepts what the compiler does not (a global name, a loop variable that changes its type), and it replaces
the compiler in a process; so this runs in one of its own.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kernels.backend import has_triton

COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from kernels import cross_entropy_triton, norm_triton, rope_triton, swiglu_triton

def machine_code(kernel, types, **constants):
    types = iter(types)
    signature = {name: "constexpr" if name in constants else next(types) for name in kernel.arg_names}
    for capability in (80, 90):
        source = ASTSource(kernel, signature=signature, constexprs=constants, attrs={})
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 8})
        assert compiled.asm["cubin"], kernel

W = "*fp32"
for T in ("*bf16", "*fp32"):
    for centred, add in ((False, False), (True, True)):
        flags = {"CENTRED": centred, "ADD": add, "BLOCK": 4096}
        machine_code(norm_triton._forward_kernel, [T, T, W, T, T, W, W, "i32", "i32", "i32", "fp32"], **flags)
        backward = [T, T, T, W, W, W, T, W, "i32", "i32", "i32"]
        machine_code(norm_triton._backward_kernel, [*backward, "i32", "i32", "i32"], **flags)
        # An integer of 1 is passed as a constant.
        machine_code(norm_triton._backward_kernel, backward, n_rows=1, rows_each=1, d=1, **flags)
    machine_code(rope_triton._rotate_kernel, [T, T, W, W, *["i32"] * 11, "fp32"], HEADS=32, HALF=64)
    machine_code(swiglu_triton._forward_kernel, [T, T, "i32", "i32"], BLOCK=1024)
    machine_code(swiglu_triton._backward_kernel, [T, T, T, "i32", "i32", "i32"], BLOCK=1024)
    for measure, grad in ((True, False), (False, True), (True, True)):
        machine_code(
            cross_entropy_triton._rows_kernel, [T, "*i64", W, W, W, W, "i32", "fp32"],
            VOCABULARY=32000, MEASURE=measure, GRAD=grad, BLOCK=8192,
        )
"""


@pytest.mark.skipif(not has_triton(), reason="Triton is not installed")
def test_every_kernel_compiles(tmp_path: Path) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE],
        env=environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
