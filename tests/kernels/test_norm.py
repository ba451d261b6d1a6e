"""RMSNorm and LayerNorm, alone and after a residual addition, against their formulas in float64: values and gradients."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.backend import runs_triton
from kernels.norm import (
    add_layer_norm,
    add_rms_norm,
    layer_norm,
    layer_norm_reference,
    norm_backend,
    rms_norm,
    rms_norm_reference,
)

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
EPS = 1e-5
BACKENDS = [
    "torch",
    pytest.param("numba", marks=pytest.mark.skipif(DEVICE.type != "cpu", reason="numba runs on the CPU")),
    pytest.param(
        "triton", marks=pytest.mark.skipif(not runs_triton(DEVICE), reason="Triton cannot run here")
    ),
]
NORMS = pytest.mark.parametrize(
    ("alone", "added", "reference"),
    [(rms_norm, add_rms_norm, rms_norm_reference), (layer_norm, add_layer_norm, layer_norm_reference)],
    ids=["rms", "layer"],
)
TOLERANCES = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)], ids=["float32", "bfloat16"]
)


def assert_near(ours: Tensor, exact: Tensor, tolerance: float) -> None:
    """Within `tolerance` of each value, or of the tensor's size where a value is small because larger ones cancel."""
    size = exact.abs().max().item()
    torch.testing.assert_close(
        ours.double().cpu(), exact.cpu(), rtol=tolerance, atol=tolerance * max(size, 1.0)
    )


@pytest.mark.parametrize("backend", BACKENDS)
@TOLERANCES
@NORMS
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (65, 96), (1, 1024), (2, 5, 130)])
def test_values_and_gradients(
    alone: Callable,
    added: Callable,
    reference: Callable,
    shape: tuple,
    dtype: torch.dtype,
    tolerance: float,
    backend: str,
) -> None:
    torch.manual_seed(0)
    if shape == (1, 1):  # LayerNorm of one column is 0; what cancels is 1 / sqrt(EPS) = 316 times the input
        tolerance *= 10
    # Squares of such values lose the small ones in bfloat16; the offset is what LayerNorm removes.
    x, delta, up, up_total = (torch.randn(4, *shape) * 3 + 1).to(dtype).to(DEVICE).unbind(0)
    weight = torch.randn(shape[-1], device=DEVICE)  # a float32 master whatever x is
    x, delta, weight = (leaf.clone().requires_grad_() for leaf in (x, delta, weight))

    normed, total = added(x, delta, weight, EPS, backend=backend)
    assert normed.dtype == total.dtype == dtype
    if (
        backend == "triton" and DEVICE.type == "cpu"
    ):  # the interpreter cuts bfloat16 off where hardware rounds
        torch.testing.assert_close(total, x + delta, rtol=2**-7, atol=0)
    else:
        assert torch.equal(total, x + delta)
    assert torch.equal(normed, alone(total.detach(), weight, EPS, backend=backend))
    grads = torch.autograd.grad((normed, total), (x, delta, weight), (up, up_total))
    assert [grad.dtype for grad in grads] == [dtype, dtype, torch.float32]

    # What is normalised is the rounded sum, so the exact result starts from it.
    exact_total = total.detach().double().requires_grad_()
    exact_weight = weight.detach().double().requires_grad_()
    exact = reference(exact_total, exact_weight, EPS)
    exact_grad, exact_grad_weight = torch.autograd.grad(exact, (exact_total, exact_weight), up.double())
    assert_near(normed, exact, tolerance)
    assert_near(grads[0], exact_grad + up_total.double(), tolerance)
    assert torch.equal(grads[0], grads[1])
    assert_near(grads[2], exact_grad_weight, 1e-5)  # summed in float32

    total = total.detach().requires_grad_()
    grads = torch.autograd.grad(alone(total, weight, EPS, backend=backend), (total, weight), up)
    assert_near(grads[0], exact_grad, tolerance)
    assert_near(grads[1], exact_grad_weight, 1e-5)


@NORMS
@pytest.mark.parametrize("shape", [(3, 7), (2, 5, 33)])
def test_float64_gradients(alone: Callable, added: Callable, reference: Callable, shape: tuple) -> None:
    torch.manual_seed(0)
    x, delta = torch.randn(2, *shape, dtype=torch.float64).unbind(0)
    weight = torch.randn(shape[-1], dtype=torch.float64)
    inputs = [leaf.clone().requires_grad_() for leaf in (x, delta, weight)]
    torch.testing.assert_close(alone(x, weight, EPS), reference(x, weight, EPS))
    assert torch.autograd.gradcheck(lambda x, weight: alone(x, weight, EPS), (inputs[0], inputs[2]))
    assert torch.autograd.gradcheck(lambda *leaves: added(*leaves, EPS), inputs)
    # Either result alone: the other's gradient does not exist.
    assert torch.autograd.gradcheck(lambda *leaves: added(*leaves, EPS)[0], inputs)
    (grad,) = torch.autograd.grad(added(*inputs, EPS)[1].sum(), inputs[1])
    assert torch.equal(grad, torch.ones_like(grad))


def test_layer_norm_is_that_of_pytorch() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(5, 33), torch.randn(33)
    torch.testing.assert_close(layer_norm(x, weight, EPS), F.layer_norm(x, (33,), weight, None, EPS))
    torch.testing.assert_close(rms_norm(x, weight, EPS), F.rms_norm(x, (33,), weight, EPS))


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_and_empty_inputs(backend: str) -> None:
    torch.manual_seed(0)
    wide = torch.randn(4, 6, 10, device=DEVICE)
    weight = torch.randn(6, device=DEVICE)
    for view in (wide[:, :, 0], wide[..., :6], wide.transpose(1, 2)):
        x = view.detach().requires_grad_()
        (grad,) = torch.autograd.grad(rms_norm(x, weight, EPS, backend).square().sum(), x)
        (exact,) = torch.autograd.grad(rms_norm_reference(x, weight, EPS).square().sum(), x)
        torch.testing.assert_close(grad, exact, rtol=1e-4, atol=1e-5)
    nothing = torch.empty(0, 6, device=DEVICE, requires_grad=True)
    weight.requires_grad_()
    rms_norm(nothing, weight, EPS, backend).sum().backward()
    assert not weight.grad.any()


@pytest.mark.parametrize("backend", BACKENDS)
@NORMS
def test_a_narrow_delta_on_a_wide_stream(
    alone: Callable, added: Callable, reference: Callable, backend: str
) -> None:
    """As under autocast: products are bfloat16, the residual stream and the weights float32."""
    torch.manual_seed(0)
    x, delta, up, up_total = torch.randn(4, 5, 33, device=DEVICE).unbind(0)
    x, weight = x.clone().requires_grad_(), torch.randn(33, device=DEVICE, requires_grad=True)
    delta = delta.bfloat16().requires_grad_()
    normed, total = added(x, delta, weight, EPS, backend=backend)
    assert normed.dtype == total.dtype == torch.float32
    assert torch.equal(total, x + delta)
    grads = torch.autograd.grad((normed, total), (x, delta, weight), (up, up_total))
    assert [grad.dtype for grad in grads] == [torch.float32, torch.bfloat16, torch.float32]
    leaves = [leaf.detach().double().requires_grad_() for leaf in (x, delta, weight)]
    exact = reference(leaves[0] + leaves[1], leaves[2], EPS), leaves[0] + leaves[1]
    assert_near(normed, exact[0], 1e-5)
    exact_grads = torch.autograd.grad(exact, leaves, (up.double(), up_total.double()))
    for ours, theirs, tolerance in zip(grads, exact_grads, (1e-5, 1e-2, 1e-5), strict=True):
        assert_near(ours, theirs, tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
@NORMS
def test_a_bfloat16_weight(alone: Callable, added: Callable, reference: Callable, backend: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(9, 33, device=DEVICE).bfloat16().requires_grad_()
    weight = torch.randn(33, device=DEVICE).bfloat16().requires_grad_()
    leaves = [leaf.detach().double().requires_grad_() for leaf in (x, weight)]
    ours, exact = alone(x, weight, EPS, backend), reference(*leaves, EPS)
    assert_near(ours, exact, 1e-2)
    up = torch.randn_like(x)
    grads = torch.autograd.grad(ours, (x, weight), up)
    for grad, exact_grad in zip(grads, torch.autograd.grad(exact, leaves, up.double()), strict=True):
        assert grad.dtype == torch.bfloat16
        assert_near(grad, exact_grad, 1e-2)


@pytest.mark.skipif(DEVICE.type != "cpu", reason="numba runs on the CPU")
@TOLERANCES
@NORMS
@pytest.mark.parametrize("n_rows", [3, 63, 130, 517])
def test_numba_has_the_same_bits_with_any_number_of_threads(
    alone: Callable, added: Callable, reference: Callable, n_rows: int, dtype: torch.dtype, tolerance: float
) -> None:
    torch.manual_seed(0)
    x, delta, up, up_total = torch.randn(4, n_rows, 257).to(dtype).unbind(0)
    x, weight = x.requires_grad_(), torch.randn(257, requires_grad=True)
    results = []
    threads = torch.get_num_threads()
    for n in (1, 2):
        torch.set_num_threads(n)
        both = added(x, delta, weight, EPS, backend="numba")
        results.append([*both, *torch.autograd.grad(both, (x, weight), (up, up_total))])
    torch.set_num_threads(threads)
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


@pytest.mark.skipif(DEVICE.type != "cpu", reason="numba runs on the CPU")
@NORMS
def test_numba_keeps_nan_and_works_without_gradients(
    alone: Callable, added: Callable, reference: Callable
) -> None:
    x = torch.randn(4, 100)
    x[1, 70], x[2, 3] = float("nan"), float("inf")
    with torch.inference_mode():
        x = x * 1.0  # an inference tensor, which has no version counter
        rows = alone(x, torch.ones(100), EPS, "numba").isfinite().all(-1)
    assert rows.tolist() == [True, False, False, True]


@pytest.mark.skipif(DEVICE.type != "cpu", reason="numba runs on the CPU")
@pytest.mark.parametrize("n", [1, 2])
def test_numba_leaves_torch_its_number_of_threads(n: int) -> None:
    """numba starts its threads once in a process, and on its own accord sets OpenMP's number, which is torch's."""
    code = (
        f"import torch; torch.set_num_threads({n}); from kernels.norm import rms_norm\n"
        "for _ in range(2): rms_norm(torch.zeros(300, 300), torch.ones(300), 1e-5, 'numba')\n"
        "import numba; print(torch.get_num_threads(), numba.get_num_threads())"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    most = min(n, len(os.sched_getaffinity(0)))
    assert done.stdout.split() == [str(n), str(most)], done.stderr


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_numba_refuses_other_types(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(2, 3, dtype=dtype)
    with pytest.raises(ValueError, match="float32 and bfloat16 tensors on the CPU, not float"):
        rms_norm(x, x[0], EPS, "numba")
    monkeypatch.setenv("MOXIN_NORM", "numba")
    with pytest.raises(ValueError, match="on meta; MOXIN_NORM=torch"):
        rms_norm(torch.zeros(2, 3, device="meta"), torch.zeros(3, device="meta"), EPS)


@pytest.mark.skipif(not runs_triton(DEVICE), reason="Triton cannot run here")
def test_triton_refuses_float64() -> None:
    x = torch.zeros(2, 3, dtype=torch.float64, device=DEVICE)
    with pytest.raises(ValueError, match="no float64"):
        rms_norm(x, x[0], EPS, "triton")


def test_mismatched_shapes_are_named() -> None:
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="over 3 columns"):
        rms_norm(x, torch.zeros(4), EPS)
    with pytest.raises(ValueError, match=r"no wider type: x is .*bfloat16"):
        add_rms_norm(x.bfloat16(), x, x[0], EPS)


def test_back_end_by_argument_environment_and_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MOXIN_NORM", raising=False)
    cpu = torch.device("cpu")
    assert norm_backend(cpu) == norm_backend(cpu, dtype=torch.bfloat16) == "numba"
    assert norm_backend(cpu, dtype=torch.float64) == norm_backend(torch.device("meta")) == "torch"
    assert norm_backend(torch.device("cuda"), dtype=torch.float64) == "torch"
    monkeypatch.setenv("MOXIN_NORM", "reference")
    assert norm_backend(cpu) == "reference"
    assert norm_backend(cpu, "triton") == "triton"
    with pytest.raises(ValueError, match="MOXIN_NORM"):
        norm_backend(cpu, "cudnn")
