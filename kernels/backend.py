"""Which implementation of a kernel runs: the argument, else an environment variable, else what suits the device.

Every kernel has a `reference` (plain mathematics in float32 or float64, differentiated by autograd), `torch` (PyTorch
operations with a backward pass of their own), `numba` (a CPU's choice for float32 and bfloat16) and `triton` (CUDA's).
Triton needs CUDA, or its interpreter (`TRITON_INTERPRET=1`), which is slow and there for tests. Attention's are in
`kernels.attention`.
"""

import importlib.util
import os
from collections.abc import Sequence
from functools import lru_cache

import torch


@lru_cache
def has_triton() -> bool:
    """Whether Triton is installed; not whether it can run on a given device."""
    return importlib.util.find_spec("triton") is not None


def runs_triton(device: torch.device) -> bool:
    """Whether a Triton kernel can run on tensors of this device."""
    return has_triton() and (device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1")


def choose(kernel: str, backends: Sequence[str], automatic: str, backend: str | None = None) -> str:
    """The back-end of `kernel`: `backend`, else the variable `MOXIN_<KERNEL>`, else `automatic`.

    Raises `ValueError` for a name that is not among `backends`.
    """
    variable = f"MOXIN_{kernel.upper()}"
    chosen = backend or os.environ.get(variable) or automatic
    if chosen not in backends:
        raise ValueError(f"{kernel} back-end {chosen!r} is not one of {', '.join(backends)} ({variable})")
    return chosen
