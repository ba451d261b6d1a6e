"""What kernels ask of their tensors before they are launched."""

import torch
from torch import Tensor

from kernels.backend import runs_triton


def require(kernel: str, *tensors: Tensor) -> None:
    """Raises `ValueError` where the Triton back-end of `kernel` cannot run: its device, float64, or two devices."""
    device = tensors[0].device
    if not runs_triton(device):
        raise ValueError(
            f"{kernel}: the triton back-end needs Triton and a CUDA device, or its interpreter (TRITON_INTERPRET=1 "
            f"before the first import); the tensors are on {device}. MOXIN_{kernel.upper()}=torch runs anywhere"
        )
    if others := {str(x.device) for x in tensors if x.device != device}:
        raise ValueError(
            f"{kernel}: tensors on {device} and {', '.join(sorted(others))}; all must share a device"
        )
    if any(x.dtype == torch.float64 for x in tensors):
        raise ValueError(
            f"{kernel}: the triton back-end computes in float32 and takes no float64; MOXIN_{kernel.upper()}=torch does"
        )


def rows_of(x: Tensor) -> Tensor:
    """`x` as [rows, D] with adjacent columns: a view where the strides allow it, else a copy."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(1) == 1 or rows.shape[1] <= 1 else rows.contiguous()
