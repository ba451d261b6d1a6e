"""RoPE against its reference in float64, and the property that it is for."""

import pytest
import torch
from torch import Tensor

from kernels.backend import runs_triton
from kernels.rope import apply_rope, apply_rope_reference, rope_, rope_backend, rotation

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
TOLERANCES = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)], ids=["float32", "bfloat16"]
)


def angles(b: int, t: int, head_dim: int) -> tuple[Tensor, Tensor]:
    return rotation(torch.randint(-1, 5000, (b, t), device=DEVICE), head_dim, 10_000.0)


@BACKENDS
@TOLERANCES
@pytest.mark.parametrize(
    ("shape", "shared"), [((1, 1, 1, 2), False), ((2, 5, 3, 14), True), ((3, 7, 5, 96), False)]
)
def test_a_new_tensor(shape: tuple, shared: bool, dtype: torch.dtype, tolerance: float, backend: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape, device=DEVICE).to(dtype).requires_grad_()
    upstream = torch.randn(shape, device=DEVICE).to(dtype)
    by = angles(1 if shared else shape[0], shape[1], shape[3])
    before = x.detach().clone()
    got = apply_rope(x, by, backend)
    (grad,) = torch.autograd.grad(got, x, upstream)
    exact_x = x.detach().double().requires_grad_()
    exact = apply_rope_reference(exact_x, by)
    (exact_grad,) = torch.autograd.grad(exact, exact_x, upstream.double())
    assert got.dtype == grad.dtype == dtype
    assert torch.equal(x, before)
    torch.testing.assert_close(got.double(), exact, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(grad.double(), exact_grad, rtol=tolerance, atol=tolerance)


@BACKENDS
@TOLERANCES
@pytest.mark.parametrize("n_rotated", [0, 3, 5])
@pytest.mark.parametrize("view", [False, True], ids=["tensor", "view"])
def test_in_place_on_a_fused_projection(
    view: bool, n_rotated: int, dtype: torch.dtype, tolerance: float, backend: str
) -> None:
    """The road of training: a projection, its heads as a view, queries and keys rotated, all three read."""
    torch.manual_seed(0)
    b, t, h, d = 2, 7, 5, 6
    x = torch.randn(b, t, h * d, device=DEVICE).to(dtype).requires_grad_()
    upstream = torch.randn(b, t, h, d, device=DEVICE).to(dtype)
    kept = upstream.clone()
    by = angles(b, t, d)
    heads = (x * 1.0).unflatten(-1, (h, d)) if view else x.unflatten(-1, (h, d)) * 1.0
    got = rope_(heads, by, n_rotated, backend)
    assert got.data_ptr() == heads.data_ptr()
    (grad,) = torch.autograd.grad(got, x, upstream)
    assert torch.equal(upstream, kept)

    exact_x = x.detach().double().requires_grad_()
    exact_heads = exact_x.unflatten(-1, (h, d))
    exact = torch.cat(
        [apply_rope_reference(exact_heads[:, :, :n_rotated], by), exact_heads[:, :, n_rotated:]], 2
    )
    (exact_grad,) = torch.autograd.grad(exact, exact_x, upstream.double())
    torch.testing.assert_close(got.double(), exact, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(grad.double(), exact_grad, rtol=tolerance, atol=tolerance)


@BACKENDS
def test_strided_views(backend: str) -> None:
    """Heads of a fused projection, and a gradient in attention's layout, [B, H, T, D] transposed."""
    torch.manual_seed(0)
    fused = torch.randn(2, 7, 5, 6, device=DEVICE)
    by = angles(2, 7, 6)
    for view in (
        fused[:, :, 1:3],
        fused.transpose(1, 2).contiguous().transpose(1, 2),
        fused.flip(3).mT.contiguous().mT,
    ):
        x = view.detach().requires_grad_()
        got = apply_rope(x, by, backend)
        torch.testing.assert_close(got, apply_rope_reference(x, by))
        upstream = torch.randn(x.shape[0], x.shape[2], x.shape[1], x.shape[3], device=DEVICE).transpose(1, 2)
        (grad,) = torch.autograd.grad(got, x, upstream)
        torch.testing.assert_close(grad, apply_rope_reference(upstream, (by[0], -by[1])))
    with torch.no_grad():
        middle, expected = fused[:, :, 1:4], fused.clone()
        expected[:, :, 1:3] = apply_rope_reference(expected[:, :, 1:3], by)
        rope_(middle, by, 2, backend)
    torch.testing.assert_close(fused, expected)
    nothing = torch.empty(2, 0, 3, 6, device=DEVICE)
    assert apply_rope(nothing, angles(2, 0, 6), backend).shape == nothing.shape


@pytest.mark.skipif(DEVICE.type != "cpu", reason="numba runs on the CPU")
@TOLERANCES
def test_numba_has_the_same_bits_with_any_number_of_threads(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    x, by = torch.randn(3, 67, 5, 36).to(dtype), angles(3, 67, 36)
    threads = torch.get_num_threads()
    results = []
    for n in (1, 2):
        torch.set_num_threads(n)
        with torch.inference_mode():
            results.append((apply_rope(x, by, "numba"), rope_(x * 1.0, by, 4, "numba")))
    torch.set_num_threads(threads)
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))
    assert torch.equal(results[0][0][:, :, :4], results[0][1][:, :, :4])


def test_float64_gradients() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 3, 8, dtype=torch.float64, requires_grad=True)
    by = rotation(torch.tensor([[0, 1, 2, 3, 4], [0, 1, 0, 1, 5000]]), 8, 10_000.0)
    torch.testing.assert_close(apply_rope(x, by), apply_rope_reference(x, by))
    assert torch.autograd.gradcheck(lambda x: apply_rope(x, by), x)
    assert torch.autograd.gradcheck(lambda x: rope_(x.clone(), by, 2), x)
    torch.testing.assert_close(rope_(x.clone(), by, 2, "reference"), rope_(x.clone(), by, 2))


def test_scores_depend_on_the_distance_only() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 16, dtype=torch.float64)
    at = [rotation(torch.tensor([[position]]), 16, 10_000.0) for position in (3, 10, 503, 510)]
    near = (apply_rope(q, at[1]) * apply_rope(k, at[0])).sum()
    far = (apply_rope(q, at[3]) * apply_rope(k, at[2])).sum()
    torch.testing.assert_close(near, far, rtol=1e-4, atol=1e-4)  # angles are float32


def test_the_longest_position_may_be_given() -> None:
    positions = torch.tensor([[0, -1, 3000]])
    for ours, looked_up in zip(rotation(positions, 4, 1e4, 4096), rotation(positions, 4, 1e4), strict=True):
        assert torch.equal(ours, looked_up)
    with pytest.raises(IndexError):
        rotation(positions, 4, 1e4, longest=10)


def test_errors_name_the_values() -> None:
    with pytest.raises(ValueError, match="must be even, not 7"):
        rotation(torch.zeros(1, 1, dtype=torch.int64), 7, 1e4)
    x, by = torch.zeros(1, 2, 3, 4), rotation(torch.zeros(1, 2, dtype=torch.int64), 4, 1e4)
    with pytest.raises(ValueError, match="n_rotated is 4"):
        rope_(x, by, 4)
    with pytest.raises(ValueError, match="does not fit"):
        apply_rope(x[:, :1], by)


def test_back_end_by_argument_environment_and_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MOXIN_ROPE", raising=False)
    assert rope_backend(torch.device("cpu")) == "numba"
    assert rope_backend(torch.device("cpu"), dtype=torch.float64) == "torch"
    monkeypatch.setenv("MOXIN_ROPE", "triton")
    assert rope_backend(torch.device("cpu")) == "triton"
    assert rope_backend(torch.device("cpu"), "reference") == "reference"


@BACKENDS
def test_only_torch_takes_float64(backend: str) -> None:
    x = torch.zeros(1, 2, 3, 4, dtype=torch.float64, device=DEVICE)
    if backend == "torch":
        apply_rope(x, angles(1, 2, 4), backend)
    else:
        with pytest.raises(ValueError, match="float64"):
            apply_rope(x, angles(1, 2, 4), backend)
