"""Products with dense and quantised weights against float64, by every back-end; results that do not depend on company."""

import math

import pytest
import torch
from torch import Tensor

from kernels.linear import DENSE, Weight, int4_weight, int8_weight, linear
from kernels.linear_digits import has_byte_products, has_tiles, multiply

SHAPES = [(96, 64), (130, 160), (7, 32), (257, 1024)]


def weight_of(kind: str, n_outputs: int, n_inputs: int) -> Weight:
    numbers = torch.randn(n_outputs, n_inputs, generator=torch.Generator().manual_seed(n_outputs))
    if kind in ("int8", "int4"):
        return {"int8": int8_weight, "int4": int4_weight}[kind](numbers)
    return Weight(numbers.to(getattr(torch, kind)))


def rows_of(n_rows: int, n_inputs: int) -> Tensor:
    return torch.randn(n_rows, n_inputs, generator=torch.Generator().manual_seed(n_rows))


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "float16", "int8", "int4"])
@pytest.mark.parametrize("shape", SHAPES)
def test_numba_is_float64_to_float32_rounding(kind: str, shape: tuple[int, int]) -> None:
    weight = weight_of(kind, *shape)
    assert weight.shape == shape
    for n_rows in (1, 2, 3, 5, 16):
        x = rows_of(n_rows, shape[1])
        expected = x.double() @ weight.dequantised(torch.float64).T
        torch.testing.assert_close(
            linear(x, weight, "numba").double(), expected, rtol=2e-6, atol=2e-6 * shape[1]
        )


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "float16", "int8", "int4"])
def test_a_row_has_the_same_bits_in_any_company(kind: str) -> None:
    n_inputs = 192 if kind == "int8" else 160  # integers want multiples of 64
    weight, x = weight_of(kind, 130, n_inputs), rows_of(16, n_inputs)
    together = linear(x, weight, "numba")
    for n_rows in (1, 2, 3, 7):
        for first in range(0, 16 - n_rows, n_rows):
            part = slice(first, first + n_rows)
            assert torch.equal(linear(x[part], weight, "numba"), together[part])


@pytest.mark.skipif(not has_byte_products(), reason="this CPU has no products of bytes (AVX-512 VNNI)")
@pytest.mark.parametrize("shape", [(96, 64), (7, 128), (257, 1024), (64, 576), (1, 64)])
def test_integers_are_float64_whatever_the_magnitudes(shape: tuple[int, int]) -> None:
    """Rows of very different magnitudes, an outlier in each, against float64; with a matrix unit for tiles the same bits."""
    weight = weight_of("int8", *shape)
    assert weight.in_digits
    assert weight.scales is not None
    arguments = (weight.values, weight.scales, weight.sums)
    for n_rows in (1, 2, 3, 4, 15, 16, 17, 40):
        x = rows_of(n_rows, shape[1]) * torch.logspace(-6, 6, n_rows).unsqueeze(1)
        x[:, shape[1] // 2] *= 1000
        found = multiply(x, *arguments, tiles=False)
        expected = x.double() @ weight.dequantised(torch.float64).T
        size = x.abs().amax(1, keepdim=True) * weight.dequantised(torch.float32).norm(dim=1)
        assert ((found - expected).abs() <= 2e-7 * size).all()
        if has_tiles():
            assert torch.equal(multiply(x, *arguments, tiles=True), found)


@pytest.mark.skipif(not has_byte_products(), reason="this CPU has no products of bytes (AVX-512 VNNI)")
def test_integers_keep_what_is_not_finite_to_its_row() -> None:
    weight, x = weight_of("int8", 96, 64), rows_of(8, 64)
    expected = linear(x, weight, "numba")
    x[1], x[2, 5], x[4, 0], x[6, 63] = 0, math.nan, math.inf, -math.inf
    for part in (x, x[1:3]):  # tiles, and rows too few for them
        found = linear(part, weight, "numba")
        for row, values in zip(part, found, strict=True):
            if not row.isfinite().all():
                assert values.isnan().all()
            elif not row.any():
                assert not values.any()
    assert torch.equal(linear(x, weight, "numba")[[0, 3, 5, 7]], expected[[0, 3, 5, 7]])


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8", "int4"])
def test_many_rows_agree_with_few(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, x = weight_of(kind, 96, 64), rows_of(40, 64)
    few = torch.cat([linear(part, weight) for part in x.split(8)])
    monkeypatch.setenv("MOXIN_MATMUL_DTYPE", "float32")
    torch.testing.assert_close(linear(x, weight), few, rtol=1e-5, atol=1e-4)
    monkeypatch.setenv("MOXIN_MATMUL_DTYPE", "bfloat16")
    torch.testing.assert_close(linear(x, weight), few, rtol=2e-2, atol=0.2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("n_rows", [1, 5, 33])
def test_triton_reads_quantised_weights(kind: str, n_rows: int, dtype: torch.dtype) -> None:
    weight, x = weight_of(kind, 130, 160), rows_of(n_rows, 160).to(dtype)
    expected = x.double() @ weight.dequantised(torch.float64).T
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    found = linear(x, weight, "triton")
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=10 * tolerance)


def test_int8_is_off_by_half_a_step_at_most_and_int4_too() -> None:
    numbers = torch.randn(64, 128) * torch.logspace(-3, 3, 64).unsqueeze(1)
    numbers[5] = 0
    error = (int8_weight(numbers).dequantised(torch.float32) - numbers).abs()
    assert (error <= numbers.abs().amax(1, keepdim=True) / 127 * 0.5001).all()
    groups = numbers.view(64, 4, 32)
    error = (int4_weight(numbers).dequantised(torch.float32) - numbers).abs().view(64, 4, 32)
    assert (error <= groups.abs().amax(2, keepdim=True) / 7 * 0.5001).all()


def test_weights_as_an_embedding() -> None:
    ids = torch.tensor([3, 0, 3, 95])
    for kind in ("float32", "int8", "int4"):
        weight = weight_of(kind, 96, 64)
        assert torch.equal(weight.rows(ids, torch.float32), weight.dequantised(torch.float32)[ids])


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"rows \[2, 3\] do not fit a weight \[4, 5\]"):
        linear(torch.zeros(2, 3), Weight(torch.zeros(4, 5)))
    with pytest.raises(ValueError, match="groups of 32 inputs; 48 are no multiple"):
        int4_weight(torch.zeros(4, 48))
    with pytest.raises(ValueError, match="NaN or infinity"):
        int8_weight(torch.tensor([[1.0, float("nan")]]))
    with pytest.raises(ValueError, match="'quick' is not one of"):
        linear(torch.zeros(2, 5), Weight(torch.zeros(4, 5)), "quick")
    assert torch.float64 not in DENSE
