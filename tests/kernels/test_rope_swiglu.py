"""RoPE and SwiGLU against their references in float64, and the property that RoPE is for."""

import torch

from kernels.rope import apply_rope, apply_rope_reference, rotation
from kernels.swiglu import swiglu, swiglu_reference


def test_rope_is_the_reference_with_its_gradient() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 3, 8, dtype=torch.float64, requires_grad=True)
    by = rotation(torch.tensor([[0, 1, 2, 3, 4], [0, 1, 0, 1, 5000]]), 8, 10_000.0)
    torch.testing.assert_close(apply_rope(x, by), apply_rope_reference(x, by))
    assert torch.autograd.gradcheck(lambda x: apply_rope(x, by), x)
    narrow = apply_rope(x.bfloat16(), by)
    assert narrow.dtype == torch.bfloat16
    torch.testing.assert_close(narrow.double(), apply_rope_reference(x, by), rtol=0.02, atol=0.02)


def test_rope_scores_depend_on_the_distance_only() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 16, dtype=torch.float64)
    at = [rotation(torch.tensor([[position]]), 16, 10_000.0) for position in (3, 10, 503, 510)]
    near = (apply_rope(q, at[1]) * apply_rope(k, at[0])).sum()
    far = (apply_rope(q, at[3]) * apply_rope(k, at[2])).sum()
    torch.testing.assert_close(near, far, rtol=1e-4, atol=1e-4)  # angles are float32


def test_swiglu_is_the_reference_with_its_gradient() -> None:
    torch.manual_seed(0)
    gate, up = torch.randn(2, 4, 6, dtype=torch.float64).requires_grad_()
    torch.testing.assert_close(swiglu(gate, up), swiglu_reference(gate, up))
    assert torch.autograd.gradcheck(swiglu, (gate, up))
    narrow = swiglu(gate.bfloat16(), up.bfloat16())
    torch.testing.assert_close(narrow.double(), swiglu_reference(gate, up), rtol=0.02, atol=0.02)
