"""The activations between the two projections of a feed-forward block: SwiGLU (Shazeer, arXiv 2002.05202),
`silu(gate) * up`, and GELU (Hendrycks and Gimpel, arXiv 1606.08415).

Back-ends of SwiGLU: `reference`, `torch`, `numba`, `triton` (`MOXIN_SWIGLU`). GELU has none in Triton (`MOXIN_GELU`):
PyTorch's is one fused kernel in each direction that keeps nothing but its input.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.backend import choose, suited
from kernels.precision import accumulator_dtype

BACKENDS = ("reference", "torch", "numba", "triton")
GELU_BACKENDS = ("reference", "torch", "numba")


def swiglu(gate_up: Tensor, backend: str | None = None) -> Tensor:
    """`silu(gate) * up`, where `gate_up` is [..., 2F]: first the gate, then up, as one fused projection gives them.

    The result is [..., F], of the type of `gate_up`, as is the one gradient, [..., 2F]. An odd width raises `ValueError`.
    """
    if gate_up.shape[-1] % 2:
        raise ValueError(f"swiglu takes a gate and an up of one width, [..., 2F], not {tuple(gate_up.shape)}")
    chosen = swiglu_backend(gate_up.device, backend, gate_up.dtype)
    if chosen == "reference":
        return swiglu_reference(gate_up)
    return _SwiGLU.apply(gate_up, chosen) if torch.is_grad_enabled() else _KERNELS[chosen]().forward(gate_up)


def swiglu_backend(
    device: torch.device, backend: str | None = None, dtype: torch.dtype = torch.float32
) -> str:
    """The back-end that SwiGLU of `dtype` takes on `device`: the argument, else `MOXIN_SWIGLU`, else what suits both."""
    return choose("swiglu", BACKENDS, suited(device, dtype), backend)


def swiglu_reference(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.to(accumulator_dtype(gate_up.dtype)).chunk(2, -1)
    return (gate * torch.sigmoid(gate) * up).to(gate_up.dtype)


def gelu(x: Tensor, backend: str | None = None) -> Tensor:
    """`x * Phi(x)` with the exact error function, as MPT has it; the result has the shape and type of `x`."""
    chosen = gelu_backend(x.device, backend, x.dtype)
    if chosen == "reference":
        return gelu_reference(x)
    return F.gelu(x) if chosen == "torch" else _GELU.apply(x)


def gelu_backend(device: torch.device, backend: str | None = None, dtype: torch.dtype = torch.float32) -> str:
    """The back-end that `gelu` of `dtype` takes on `device`: the argument, else `MOXIN_GELU`, else what suits both."""
    fits = suited(device, dtype) == "numba"
    return choose("gelu", GELU_BACKENDS, "numba" if fits else "torch", backend)


def gelu_reference(x: Tensor) -> Tensor:
    wide = x.to(accumulator_dtype(x.dtype))
    return (wide * 0.5 * (1.0 + torch.erf(wide * 0.5**0.5))).to(x.dtype)


class Kernels(NamedTuple):
    """What a back-end supplies: `forward(gate_up) -> out` and `backward(grad_out, gate_up) -> grad_gate_up`."""

    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], Tensor]


class _SwiGLU(torch.autograd.Function):
    """Keeps its input only and computes silu again on the way back: a third less memory than autograd."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor, backend: str) -> Tensor:
        ctx.save_for_backward(gate_up)
        ctx.kernels = _KERNELS[backend]()
        return ctx.kernels.forward(gate_up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        return ctx.kernels.backward(grads[0], *ctx.saved_tensors), None


class _GELU(torch.autograd.Function):
    """The numba back-end; PyTorch's has its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        from kernels import swiglu_numba

        ctx.save_for_backward(x)
        return swiglu_numba.gelu_forward(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Tensor:
        from kernels import swiglu_numba

        return swiglu_numba.gelu_backward(grads[0], *ctx.saved_tensors)


def _forward(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate).mul_(up)


def _backward(grad: Tensor, gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, -1)
    grad_gate_up = torch.empty(gate_up.shape, dtype=gate_up.dtype, device=gate_up.device)
    grad_gate, grad_up = grad_gate_up.chunk(2, -1)
    torch.mul(grad, up, out=grad_gate)  # in place from here on: no other memory
    torch.ops.aten.silu_backward.grad_input(grad_gate, gate, grad_input=grad_gate)
    torch.mul(F.silu(gate), grad, out=grad_up)
    return grad_gate_up


def _torch_kernels() -> Kernels:
    return Kernels(_forward, _backward)


def _numba_kernels() -> Kernels:
    from kernels import swiglu_numba  # only where it is chosen: numba takes 0.3 s to import

    return Kernels(swiglu_numba.forward, swiglu_numba.backward)


def _triton_kernels() -> Kernels:
    from kernels import swiglu_triton  # only where it is chosen: a machine without a GPU may have no Triton

    return Kernels(swiglu_triton.forward, swiglu_triton.backward)


_KERNELS: dict[str, Callable[[], Kernels]] = {
    "torch": _torch_kernels,
    "numba": _numba_kernels,
    "triton": _triton_kernels,
}
