"""The Triton kernels compile for A100 and H100, also where there is no GPU, and fit into a block's shared memory.

Triton's interpreter accepts what its compiler does not. A process is one or the other: the compiler runs in a second one.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

SHARED_MEMORY = {(8, 0): 163 * 1024, (9, 0): 227 * 1024}
"""Bytes that one block may have: CUDA C++ Programming Guide, compute capabilities 8.0 and 9.0."""
POINTERS = {"first": "*i32", "end": "*i32", "lse": "*fp32", "delta": "*fp32", "slopes": "*fp32"}
ROWS = ("q", "k", "v", "out", "dout", "dq", "dk", "dv")


def shared_memory(
    kernel: Any, blocks: Any, head_dim: int, capability: tuple[int, int], flags: dict[str, bool]
) -> int:
    """Compiles a kernel for a GPU and returns how many bytes of shared memory a program of it takes."""
    from triton import next_power_of_2
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    constants = {"HEAD_DIM": head_dim, "D": next_power_of_2(head_dim), "WIDEN": False, **flags}
    constants |= {"BLOCK_Q": blocks.queries, "BLOCK_K": blocks.keys}
    types = dict.fromkeys(kernel.arg_names, "i32") | dict.fromkeys(("scale", "dscale"), "fp32") | POINTERS
    types |= dict.fromkeys(ROWS, "*bf16") | dict.fromkeys(constants, "constexpr")
    # As at run time: pointers and strides are multiples of 16.
    aligned = [
        n for n, name in enumerate(kernel.arg_names) if types[name][0] == "*" or name.startswith("stride_")
    ]
    source = ASTSource(
        kernel,
        {name: types[name] for name in kernel.arg_names},
        constexprs={(n,): constants[name] for n, name in enumerate(kernel.arg_names) if name in constants},
        attrs={(n,): [["tt.divisibility", 16]] for n in aligned},
    )
    target = GPUTarget("cuda", capability[0] * 10 + capability[1], 32)
    return compile(source, target, {"num_warps": blocks.warps, "num_stages": blocks.stages}).metadata.shared


@pytest.mark.slow
@pytest.mark.parametrize("capability", SHARED_MEMORY, ids=["A100", "H100"])
def test_kernels_compile(capability: tuple[int, int], tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, __file__, *map(str, capability)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    sizes = [int(line) for line in done.stdout.split()]
    assert len(sizes) == 6
    assert max(sizes) <= SHARED_MEMORY[capability], sizes


if __name__ == "__main__":
    import torch

    from kernels.attention_triton import forward_kernel, keys_kernel, plan, queries_kernel

    gpu = (int(sys.argv[1]), int(sys.argv[2]))
    for width, mask_flags in (
        (64, {"CAUSAL": True, "BOUNDED": True, "ALIBI": True}),
        (112, {"CAUSAL": True, "BOUNDED": False, "ALIBI": False}),
    ):
        chosen = plan(width, torch.bfloat16, gpu)
        for function, its_blocks in (
            (forward_kernel, chosen.forward),
            (keys_kernel, chosen.keys),
            (queries_kernel, chosen.queries),
        ):
            print(shared_memory(function, its_blocks, width, gpu, mask_flags))
