"""SwiGLU and GELU against their references in float64."""

import pytest
import torch

from kernels.backend import runs_triton
from kernels.swiglu import gelu, gelu_backend, gelu_reference, swiglu, swiglu_backend, swiglu_reference

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
NUMBA = pytest.param("numba", marks=pytest.mark.skipif(DEVICE.type != "cpu", reason="numba runs on the CPU"))
BACKENDS = pytest.mark.parametrize(
    "backend",
    [
        "torch",
        NUMBA,
        pytest.param(
            "triton", marks=pytest.mark.skipif(not runs_triton(DEVICE), reason="Triton cannot run here")
        ),
    ],
)


@BACKENDS
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)], ids=["float32", "bfloat16"]
)
@pytest.mark.parametrize("shape", [(1, 2), (3, 14), (65, 192), (2, 3, 2600)])
def test_values_and_gradients(shape: tuple, dtype: torch.dtype, tolerance: float, backend: str) -> None:
    torch.manual_seed(0)
    x = (torch.randn(shape, device=DEVICE) * 3).to(dtype).requires_grad_()
    upstream = torch.randn(*shape[:-1], shape[-1] // 2, device=DEVICE).to(dtype)
    got = swiglu(x, backend)
    (grad,) = torch.autograd.grad(got, x, upstream)
    exact_x = x.detach().double().requires_grad_()
    exact = swiglu_reference(exact_x)
    (exact_grad,) = torch.autograd.grad(exact, exact_x, upstream.double())
    assert got.dtype == grad.dtype == dtype
    torch.testing.assert_close(got.double(), exact, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(grad.double(), exact_grad, rtol=tolerance, atol=tolerance)


@BACKENDS
def test_strided_and_empty_inputs(backend: str) -> None:
    torch.manual_seed(0)
    wide = torch.randn(4, 6, 10, device=DEVICE)
    for view in (wide[:, :, 0], wide[..., 1:7], wide.transpose(1, 2)):
        x = view.detach().requires_grad_()
        got, exact = swiglu(x, backend), swiglu_reference(x)
        torch.testing.assert_close(got, exact)
        # An expanded gradient, as `sum` gives one, has strides of 0.
        for ours, theirs in zip(
            torch.autograd.grad(got.sum(), x), torch.autograd.grad(exact.sum(), x), strict=True
        ):
            torch.testing.assert_close(ours, theirs)
    assert swiglu(wide[:0], backend).shape == (0, 6, 5)


def test_float64_gradients_of_gate_and_up() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4, 6, dtype=torch.float64, requires_grad=True)
    gate, up = x.chunk(2, -1)
    torch.testing.assert_close(swiglu(x), torch.nn.functional.silu(gate) * up)
    assert torch.autograd.gradcheck(swiglu, x)


@pytest.mark.parametrize("backend", ["torch", NUMBA])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 1e-2)], ids=["float32", "bfloat16"]
)
def test_gelu_is_the_exact_one(dtype: torch.dtype, tolerance: float, backend: str) -> None:
    """Everywhere: where it is nearly linear, where it bends, and where one of its factors vanishes."""
    x = torch.linspace(-12, 12, 100_001, device=DEVICE).to(dtype).requires_grad_()
    upstream = torch.randn(x.shape, device=DEVICE).to(dtype)
    exact_x = x.detach().double().requires_grad_()
    ours, exact = gelu(x, backend), gelu_reference(exact_x)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours.double(), exact, rtol=tolerance, atol=tolerance)
    (grad,) = torch.autograd.grad(ours, x, upstream)
    (exact_grad,) = torch.autograd.grad(exact, exact_x, upstream.double())
    torch.testing.assert_close(grad.double(), exact_grad, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("backend", ["torch", NUMBA])
def test_gelu_of_strided_empty_and_float64_inputs(backend: str) -> None:
    wide = torch.randn(4, 6, 10, device=DEVICE)
    for view in (wide[:, :, 0], wide[..., 1:7], wide.transpose(1, 2), wide[:0]):
        x = view.detach().requires_grad_()
        torch.testing.assert_close(gelu(x, backend), gelu_reference(x))
        ours, theirs = (torch.autograd.grad(gelu(x, b).sum(), x)[0] for b in (backend, "reference"))
        torch.testing.assert_close(ours, theirs)
    x = wide[0].double().requires_grad_()
    assert torch.equal(gelu(x), gelu(x, "torch"))
    assert torch.autograd.gradcheck(gelu, x)


@pytest.mark.skipif(DEVICE.type != "cpu", reason="numba runs on the CPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_numba_has_the_same_bits_with_any_number_of_threads(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, up = torch.randn(131, 258).to(dtype).requires_grad_(), torch.randn(131, 258).to(dtype)
    threads = torch.get_num_threads()
    results = []
    for n in (1, 2):
        torch.set_num_threads(n)
        fused, alone = swiglu(x, "numba"), gelu(x, "numba")
        results.append([fused, alone])
        results[-1] += torch.autograd.grad((fused, alone), x, (up[:, :129], up))
    torch.set_num_threads(threads)
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


@pytest.mark.skipif(DEVICE.type != "cpu", reason="numba runs on the CPU")
def test_numba_keeps_nan_and_takes_large_values() -> None:
    x = torch.tensor([[float("nan"), 1.0], [1.0, float("nan")], [-1e4, 1.0], [1e4, 2.0], [-88.5, 1.0]])
    with torch.inference_mode():
        got, bent = swiglu(x * 1.0, "numba").squeeze(1), gelu(x * 1.0, "numba")
    assert got.isnan().tolist() == [True, True, False, False, False]
    torch.testing.assert_close(got[2:], torch.tensor([0.0, 2e4, 0.0]), rtol=1e-6, atol=1e-30)
    torch.testing.assert_close(bent, gelu_reference(x), equal_nan=True)


def test_an_odd_width_and_unknown_back_ends_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="2F"):
        swiglu(torch.zeros(2, 3))
    monkeypatch.delenv("MOXIN_SWIGLU", raising=False)
    monkeypatch.delenv("MOXIN_GELU", raising=False)
    cpu = torch.device("cpu")
    assert swiglu_backend(cpu) == gelu_backend(cpu) == "numba"
    assert swiglu_backend(cpu, dtype=torch.float64) == gelu_backend(cpu, dtype=torch.float64) == "torch"
    assert gelu_backend(torch.device("cuda")) == "torch"
    monkeypatch.setenv("MOXIN_SWIGLU", "cudnn")
    with pytest.raises(ValueError, match="MOXIN_SWIGLU"):
        swiglu_backend(torch.device("cpu"))
    with pytest.raises(ValueError, match="MOXIN_GELU"):
        gelu_backend(torch.device("cpu"), "triton")


@BACKENDS
def test_only_torch_takes_float64(backend: str) -> None:
    x = torch.zeros(2, 4, dtype=torch.float64, device=DEVICE)
    if backend == "torch":
        swiglu(x, backend)
    else:
        with pytest.raises(ValueError, match="float64"):
            swiglu(x, backend)
