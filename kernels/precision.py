"""In which type to multiply matrices: bfloat16 where the hardware multiplies it, float32 where it would only be emulated."""

import os
from functools import lru_cache

import torch

_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def matmul_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The type that activations and weights of `dtype` are multiplied in on `device`.

    A CPU without AMX or AVX512-BF16 emulates bfloat16 products at a tenth of the speed of float32 ones (EPYC 7003, one
    thread, [1024, 192] x [192, 1024]: 6 against 64 GFLOP/s), so bfloat16 weights are widened there for the length of the
    product. `MOXIN_MATMUL_DTYPE` (`bfloat16` or `float32`) overrides the choice for bfloat16 weights; other types are kept.
    """
    if dtype != torch.bfloat16:
        return dtype
    if chosen := os.environ.get("MOXIN_MATMUL_DTYPE"):
        if chosen not in _DTYPES:
            raise ValueError(f"MOXIN_MATMUL_DTYPE={chosen!r}: expected one of {', '.join(_DTYPES)}")
        return _DTYPES[chosen]
    return torch.float32 if device.type == "cpu" and not _cpu_multiplies_bfloat16() else dtype


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type of sums, norms and losses over values of `dtype`: float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


@lru_cache
def _cpu_multiplies_bfloat16() -> bool:
    found = torch.cpu.get_capabilities()
    return any(found.get(name, False) for name in ("amx_bf16", "avx512_bf16", "bf16"))
