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


@lru_cache
def has_numba() -> bool:
    """Whether numba is installed; a GPU machine can do without."""
    return importlib.util.find_spec("numba") is not None


def runs_triton(device: torch.device) -> bool:
    """Whether a Triton kernel can run on tensors of this device."""
    return has_triton() and (device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1")


def suited(device: torch.device, dtype: torch.dtype) -> str:
    """The fastest back-end for tensors of `dtype` on `device`: `numba`, `triton`, or `torch` where neither is for them."""
    if device.type == "cpu" and dtype in (torch.float32, torch.bfloat16) and has_numba():
        return "numba"
    if device.type == "cuda" and dtype != torch.float64 and has_triton():
        return "triton"
    return "torch"


def choose(kernel: str, backends: Sequence[str], automatic: str, backend: str | None = None) -> str:
    """The back-end of `kernel`: `backend`, else the variable `MOXIN_<KERNEL>`, else `automatic`.

    Raises `ValueError` for a name that is not among `backends`.
    """
    variable = f"MOXIN_{kernel.upper()}"
    chosen = backend or os.environ.get(variable) or automatic
    if chosen not in backends:
        raise ValueError(f"{kernel} back-end {chosen!r} is not one of {', '.join(backends)} ({variable})")
    return chosen
