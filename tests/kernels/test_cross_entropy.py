"""Chunked cross-entropy against PyTorch's on full logits in float64."""

import pytest
import torch
from torch import Tensor

from kernels.backend import runs_triton
from kernels.cross_entropy import (
    IGNORE,
    cross_entropy_backend,
    linear_cross_entropy,
    linear_cross_entropy_lse,
    linear_cross_entropy_reference,
    linear_cross_entropy_sum,
)

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BACKENDS = pytest.mark.parametrize(
    "backend",
    [
        "torch",
        pytest.param("numba", marks=pytest.mark.skipif(DEVICE.type != "cpu", reason="numba runs on the CPU")),
        pytest.param(
            "triton", marks=pytest.mark.skipif(not runs_triton(DEVICE), reason="Triton cannot run here")
        ),
    ],
)
V = 11
CHUNKS = pytest.mark.parametrize("chunk_bytes", [1, 2 * V * 4, None], ids=["row", "two rows", "one chunk"])


def inputs(
    n: int = 7, v: int = V, d: int = 5, dtype: torch.dtype = torch.float64, ignored: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Leaves x [n, d] and weight [v, d] with logits of size 1, and targets of which every third is ignored."""
    torch.manual_seed(0)
    x = torch.randn(n, d, device=DEVICE).to(dtype).requires_grad_()
    weight = (torch.randn(v, d, device=DEVICE) / d**0.5).to(dtype).requires_grad_()
    targets = torch.randint(0, v, (n,), device=DEVICE)
    targets[0], targets[-1] = 0, v - 1
    if ignored:
        targets[1::3] = IGNORE
    return x, weight, targets


def exact(x: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Loss and logsumexp in float64, and the leaves that they come from."""
    leaves = [leaf.detach().double().requires_grad_() for leaf in (x, weight)]
    return *linear_cross_entropy_reference(*leaves, targets), leaves


def assert_near(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    size = max(theirs.abs().max().item(), 1.0)
    torch.testing.assert_close(ours.double(), theirs, rtol=tolerance, atol=tolerance * size)


@CHUNKS
@pytest.mark.parametrize("ignored", [False, True])
def test_float64_gradients_at_every_chunking(chunk_bytes: int | None, ignored: bool) -> None:
    x, weight, targets = inputs(ignored=ignored)
    nll, lse = linear_cross_entropy_lse(x, weight, targets, chunk_bytes)
    exact_nll, exact_lse = linear_cross_entropy_reference(x, weight, targets)
    torch.testing.assert_close(nll, exact_nll)
    torch.testing.assert_close(lse, exact_lse)
    assert torch.equal(linear_cross_entropy(x, weight, targets, chunk_bytes), nll)
    # The gradient of every token's loss on its own, as DPO takes it, not of their sum alone.
    assert torch.autograd.gradcheck(
        lambda x, weight: linear_cross_entropy_lse(x, weight, targets, chunk_bytes, "torch"), (x, weight)
    )


@CHUNKS
@pytest.mark.parametrize("z_loss", [0.0, 0.1])
@pytest.mark.parametrize("ignored", [False, True])
def test_float64_sum_is_the_sum_of_the_tokens(chunk_bytes: int | None, z_loss: float, ignored: bool) -> None:
    x, weight, targets = inputs(ignored=ignored)
    loss, each = linear_cross_entropy_sum(x, weight, targets, z_loss, chunk_bytes, "torch")
    nll, lse = linear_cross_entropy_lse(x, weight, targets, chunk_bytes, "torch")
    expected = (nll + z_loss * lse.square()).sum()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(each, nll.detach())
    assert loss.requires_grad
    assert not each.requires_grad
    grads = torch.autograd.grad(loss / 3, (x, weight))
    for ours, theirs in zip(grads, torch.autograd.grad(expected / 3, (x, weight)), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_micro_batches_add_up_to_the_batch() -> None:
    """Micro-batches of unlike numbers of tokens, each divided by the count of all."""
    x, weight, targets = inputs(n=9)
    count = (targets != IGNORE).sum()
    (linear_cross_entropy_sum(x, weight, targets, 0.01)[0] / count).backward()
    whole = x.grad, weight.grad
    x.grad = weight.grad = None
    for rows in (slice(0, 2), slice(2, 9)):
        (linear_cross_entropy_sum(x[rows], weight, targets[rows], 0.01)[0] / count).backward()
    torch.testing.assert_close(x.grad, whole[0])
    torch.testing.assert_close(weight.grad, whole[1])


@BACKENDS
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)], ids=["float32", "bfloat16"]
)
@pytest.mark.parametrize(("n", "v", "d"), [(1, 11, 1), (65, 513, 7), (3, 2050, 130), (1, 9000, 8)])
@pytest.mark.parametrize("one_chunk", [True, False])
def test_narrow_types_against_float64(
    n: int, v: int, d: int, one_chunk: bool, dtype: torch.dtype, tolerance: float, backend: str
) -> None:
    x, weight, targets = inputs(n, v, d, dtype, ignored=n > 1)
    chunk_bytes = None if one_chunk else 4 * v * 40
    exact_nll, exact_lse, leaves = exact(x, weight, targets)
    up_nll, up_lse = torch.randn(2, n, device=DEVICE)

    nll, lse = linear_cross_entropy_lse(x, weight, targets, chunk_bytes, backend)
    assert nll.dtype == lse.dtype == torch.float32
    assert_near(nll, exact_nll, tolerance)
    assert_near(lse, exact_lse, tolerance)
    grads = torch.autograd.grad((nll * up_nll + lse * up_lse).sum(), (x, weight))
    exact_sum = (exact_nll * up_nll + exact_lse * up_lse).sum()
    for ours, theirs in zip(grads, torch.autograd.grad(exact_sum, leaves, retain_graph=True), strict=True):
        assert ours.dtype == dtype
        assert_near(ours, theirs, tolerance)

    loss, each = linear_cross_entropy_sum(x, weight, targets, 0.01, chunk_bytes, backend)
    exact_loss = (exact_nll + 0.01 * exact_lse.square()).sum()
    assert_near(loss, exact_loss, tolerance)
    assert_near(each, exact_nll, tolerance)
    grads = torch.autograd.grad(loss / 3, (x, weight))
    for ours, theirs in zip(grads, torch.autograd.grad(exact_loss / 3, leaves), strict=True):
        assert ours.dtype == dtype
        assert_near(ours, theirs, tolerance)


@BACKENDS
def test_all_tokens_ignored_is_zero_and_has_a_gradient(backend: str) -> None:
    x, weight, targets = inputs(dtype=torch.float32)
    nothing = torch.full_like(targets, IGNORE)
    for loss in (
        linear_cross_entropy(x, weight, nothing, backend=backend).sum(),
        linear_cross_entropy_sum(x, weight, nothing, 0.1, backend=backend)[0],
    ):
        x.grad = weight.grad = None
        loss.backward()
        assert loss.item() == 0.0
        assert not x.grad.any()
        assert not weight.grad.any()


@BACKENDS
def test_improbable_targets_keep_their_loss(backend: str) -> None:
    """A probability below the smallest float32 has a logarithm all the same."""
    x = torch.tensor([[200.0]], device=DEVICE)
    weight = torch.tensor([[1.0], [-1.0]], device=DEVICE)
    nll = linear_cross_entropy(x, weight, torch.tensor([1], device=DEVICE), backend=backend)
    assert nll.item() == pytest.approx(400.0)


@BACKENDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_and_masked_logits(dtype: torch.dtype, backend: str) -> None:
    """Logits of ±10⁴, and -inf for a word that cannot be: logits are the weights where x is 1."""
    x = torch.ones(2, 1, device=DEVICE, dtype=dtype, requires_grad=True)
    column = [1e4, 9984.0, -1e4, float("-inf"), *[0.0] * 40]
    weight = torch.tensor(column, device=DEVICE, dtype=dtype)[:, None].requires_grad_()
    targets = torch.tensor([1, 2], device=DEVICE)
    exact_nll, _, leaves = exact(x, weight, targets)
    loss, each = linear_cross_entropy_sum(x, weight, targets, backend=backend)
    nll = linear_cross_entropy(x, weight, targets, backend=backend)
    torch.testing.assert_close(nll.double(), exact_nll, rtol=1e-6, atol=2e-3)  # a last place of 10⁴
    torch.testing.assert_close(each, nll.detach())
    (theirs,) = torch.autograd.grad(exact_nll.sum(), leaves[1])
    for total in (loss, nll.sum()):
        (grad,) = torch.autograd.grad(total, weight)
        torch.testing.assert_close(grad.double(), theirs, rtol=1e-2, atol=4e-3)


@BACKENDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bad", ["nan", "-nan", "inf"])
def test_a_bad_logit_is_a_bad_loss(bad: str, dtype: torch.dtype, backend: str) -> None:
    """The trainer's guard looks at the loss: it must not be finite, wherever in the row the logit is."""
    for at in (0, 3, 40):
        x = torch.ones(3, 1, device=DEVICE, dtype=dtype, requires_grad=True)
        weight = torch.linspace(-1, 1, 41, device=DEVICE).to(dtype)[:, None].clone()
        value = torch.tensor(float(bad.removeprefix("-")))
        weight[at] = torch.copysign(value, torch.tensor(-1.0)) if bad == "-nan" else value
        weight.requires_grad_()
        targets = torch.tensor([IGNORE, 3, 5], device=DEVICE)
        loss, each = linear_cross_entropy_sum(x, weight, targets, backend=backend)
        nll = linear_cross_entropy(x, weight, targets, backend=backend)
        assert not loss.isfinite()
        assert not each.sum().isfinite()
        assert not nll[1:].isfinite().any()
        for total in (loss, nll.sum()):
            assert torch.autograd.grad(total, x)[0][1:].isnan().all()


@pytest.mark.skipif(DEVICE.type != "cpu", reason="numba runs on the CPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_numba_has_the_same_bits_with_any_number_of_threads(dtype: torch.dtype) -> None:
    from kernels.cross_entropy_numba import NumbaRows

    torch.manual_seed(0)
    logits, targets = torch.randn(37, 999).to(dtype), torch.randint(0, 999, (37,))
    up_nll, up_lse = torch.randn(2, 37).unbind(0)
    threads = torch.get_num_threads()
    results = []
    for n in (1, 2):
        torch.set_num_threads(n)
        rows = NumbaRows()
        measured = rows.measure(logits, targets)
        results.append([*measured, *rows.measure_and_differentiate(logits.clone(), targets, 0.1)])
        results[-1].append(rows.differentiate(logits.clone(), targets, measured[1], up_nll, up_lse))
    torch.set_num_threads(threads)
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))
    nll, lse, again_nll, again_lse, grad, _ = results[0]
    assert torch.equal(nll, again_nll)
    assert torch.equal(lse, again_lse)
    assert grad.dtype == dtype


@BACKENDS
@pytest.mark.parametrize("needed", ["x", "weight", "neither"])
def test_only_the_gradients_that_are_needed(needed: str, backend: str) -> None:
    x, weight, targets = inputs(dtype=torch.float32)
    exact_nll, _, leaves = exact(x, weight, targets)
    x, weight = x.detach().requires_grad_(needed == "x"), weight.detach().requires_grad_(needed == "weight")
    loss, _ = linear_cross_entropy_sum(x, weight, targets, backend=backend)
    nll = linear_cross_entropy(x, weight, targets, backend=backend)
    assert loss.requires_grad == nll.requires_grad == (needed != "neither")
    torch.testing.assert_close(loss.double(), exact_nll.sum(), rtol=1e-5, atol=0)
    if needed != "neither":
        leaf, of = (x, leaves[0]) if needed == "x" else (weight, leaves[1])
        (theirs,) = torch.autograd.grad(exact_nll.sum(), of)
        for total in (loss, nll.sum()):
            assert_near(torch.autograd.grad(total, leaf)[0], theirs, 1e-5)


def test_no_grad_computes_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, targets = inputs()
    with_gradient, _ = linear_cross_entropy_sum(x, weight, targets, 0.1)
    monkeypatch.setattr("kernels.cross_entropy._TorchRows.measure_and_differentiate", None)
    with torch.no_grad():
        loss, _ = linear_cross_entropy_sum(x, weight, targets, 0.1)
    torch.testing.assert_close(loss, with_gradient.detach())


def test_a_factor_that_bfloat16_cannot_hold_is_not_rounded() -> None:
    """1 / count as a bfloat16 would scale every gradient by up to 0.4 %."""
    x, weight, targets = inputs(dtype=torch.bfloat16)
    factor = 1 / 131
    loss, _ = linear_cross_entropy_sum(x, weight, targets, chunk_bytes=1)
    grads = torch.autograd.grad(loss, (x, weight))
    scaled = torch.autograd.grad(
        linear_cross_entropy_sum(x, weight, targets, chunk_bytes=1)[0] * factor, (x, weight)
    )
    assert torch.equal(scaled[0], (grads[0].float() * factor).bfloat16())
    torch.testing.assert_close(scaled[1].float(), grads[1].float() * factor, rtol=2**-7, atol=1e-9)


def test_the_sum_has_one_backward_pass() -> None:
    x, weight, targets = inputs()
    loss, _ = linear_cross_entropy_sum(x, weight, targets)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="linear_cross_entropy where several"):
        loss.backward()


@pytest.mark.skipif(DEVICE.type != "cpu", reason="a device assertion on a GPU, which ends the process")
@pytest.mark.parametrize(("wrong", "worst"), [(V, V), (-1, -1), (-7, -7)])
def test_targets_outside_the_vocabulary_are_named(wrong: int, worst: int) -> None:
    x, weight, targets = inputs()
    targets[2] = wrong
    for function in (linear_cross_entropy, linear_cross_entropy_sum):
        with pytest.raises(ValueError, match=f"target {worst} is outside the vocabulary of {V}"):
            function(x, weight, targets)


def test_arguments_that_do_not_go_together() -> None:
    x, weight, targets = inputs()
    with pytest.raises(ValueError, match=r"targets \[N\]"):
        linear_cross_entropy(x, weight[:, 1:], targets)
    with pytest.raises(ValueError, match="one type"):
        linear_cross_entropy(x, weight.float(), targets)
    with pytest.raises(ValueError, match="int64"):
        linear_cross_entropy(x, weight, targets.int())


def test_back_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MOXIN_CROSS_ENTROPY", raising=False)
    assert cross_entropy_backend(torch.device("cpu")) == "numba"
    assert cross_entropy_backend(torch.device("cpu"), dtype=torch.float64) == "torch"
    monkeypatch.setenv("MOXIN_CROSS_ENTROPY", "reference")
    assert cross_entropy_backend(torch.device("cpu")) == "reference"
    x, weight, targets = inputs()
    for backend in (None, "torch"):
        loss, nll = linear_cross_entropy_sum(x, weight, targets, 0.1, backend=backend)
        torch.testing.assert_close(
            loss, linear_cross_entropy_sum(x, weight, targets, 0.1, backend="torch")[0]
        )
        assert not nll.requires_grad
    for backend in ["numba"] + ["triton"] * runs_triton(DEVICE):
        with pytest.raises(ValueError, match="float64"):
            linear_cross_entropy(x, weight, targets, backend=backend)
