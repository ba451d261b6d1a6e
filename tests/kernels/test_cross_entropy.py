"""Chunked cross-entropy against PyTorch's on full logits."""

import pytest
import torch

from kernels.cross_entropy import IGNORE, linear_cross_entropy, linear_cross_entropy_reference

V = 11


def inputs(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    x = torch.randn(7, 5, dtype=dtype, requires_grad=True)
    weight = torch.randn(V, 5, dtype=dtype, requires_grad=True)
    return x, weight, torch.tensor([3, IGNORE, 0, 10, IGNORE, 5, 5])


@pytest.mark.parametrize("chunk_bytes", [1, 2 * V * 4, 10**6])
@pytest.mark.parametrize("ignore", [False, True])
def test_float64_values_and_gradients_at_every_chunking(chunk_bytes: int, ignore: bool) -> None:
    x, weight, targets = inputs()
    targets = targets if ignore else targets.clamp(min=1)
    got = linear_cross_entropy(x, weight, targets, chunk_bytes)
    torch.testing.assert_close(got, linear_cross_entropy_reference(x, weight, targets))
    # The gradient of every token's loss on its own, as DPO takes it, not of their sum alone.
    assert torch.autograd.gradcheck(
        lambda x, weight: linear_cross_entropy(x, weight, targets, chunk_bytes), (x, weight)
    )


def test_all_tokens_ignored_is_zero_and_has_a_gradient() -> None:
    x, weight, targets = inputs()
    nll = linear_cross_entropy(x, weight, torch.full_like(targets, IGNORE))
    nll.sum().backward()
    assert nll.tolist() == [0.0] * 7
    assert not x.grad.any()
    assert not weight.grad.any()


def test_improbable_targets_keep_their_loss() -> None:
    """A probability below the smallest float32 has a logarithm all the same."""
    x = torch.tensor([[200.0]])
    weight = torch.tensor([[1.0], [-1.0]])
    assert linear_cross_entropy(x, weight, torch.tensor([1])).item() == pytest.approx(400.0)


def test_bfloat16_gives_float32_losses() -> None:
    x, weight, targets = inputs()
    got = linear_cross_entropy(x.bfloat16(), weight.bfloat16(), targets, 2 * V * 4)
    assert got.dtype == torch.float32
    exact = linear_cross_entropy_reference(x, weight, targets)
    torch.testing.assert_close(got.double(), exact, rtol=0.05, atol=0.05)
    grads = torch.autograd.grad(got.sum(), (x, weight))
    exact_grads = torch.autograd.grad(exact.sum(), (x, weight))
    for ours, theirs in zip(grads, exact_grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.05)
