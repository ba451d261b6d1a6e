"""RMSNorm against its formula in float64, values and gradients."""

import pytest
import torch

from kernels.norm import rms_norm, rms_norm_reference


@pytest.mark.parametrize("shape", [(3, 7), (2, 5, 33), (1, 1)])
def test_float64_gradients(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(shape[-1], dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(rms_norm(x, weight, 1e-5), rms_norm_reference(x, weight, 1e-5))
    assert torch.autograd.gradcheck(lambda x, weight: rms_norm(x, weight, 1e-5), (x, weight))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_narrow_types_compute_in_float32(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    # Squares of such values overflow a 16-bit float and lose the small ones in bfloat16.
    x = (torch.randn(4, 256) * 300).to(dtype).requires_grad_()
    weight = torch.randn(256).to(dtype).requires_grad_()
    upstream = torch.randn(4, 256).to(dtype)
    got = rms_norm(x, weight, 1e-5)
    assert got.dtype == dtype
    grads = torch.autograd.grad(got, (x, weight), upstream)
    wide = [x.detach().double().requires_grad_(), weight.detach().double().requires_grad_()]
    exact = rms_norm_reference(*wide, 1e-5)
    exact_grads = torch.autograd.grad(exact, wide, upstream.double())
    for ours, theirs in zip((got, *grads), (exact, *exact_grads), strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=tolerance, atol=tolerance)
