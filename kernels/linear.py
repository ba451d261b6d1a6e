"""Products with weights that are only read: dense, int8 with a scale for each output, 4 bits with one for each 32 inputs.

Letters of tensor names: N rows, O outputs, I inputs, G groups of inputs.

| back-end | weights            | rows       | arithmetic                                                        |
| -------- | ------------------ | ---------- | ----------------------------------------------------------------- |
| `torch`  | all                | any        | `matmul_dtype` of the weights, quantised ones widened for it      |
| `numba`  | all, I % 16 (32) = 0 | up to 16 | float32, the weight read once as it is stored; CPU                |
| `numba`  | int8, I % 64 = 0   | up to 16 (with AMX 64) | integers, exact: `kernels.linear_digits`, where the CPU has them |
| `triton` | int8, 4 bits       | up to 64   | products of the activations' type, sums float32; CUDA             |

`MOXIN_LINEAR` names one. Quantised weights have the usual symmetric form (LLM.int8(), arXiv 2208.07339, §2.1; group-wise in
arXiv 2206.01861): value = integer x scale, the scale chosen so that the largest magnitude is met exactly.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.backend import choose, has_numba, runs_triton
from kernels.precision import matmul_dtype

BACKENDS = ("automatic", "torch", "numba", "triton")
GROUP = 32
"""Inputs that share a scale where weights have 4 bits."""
FEW_ROWS = {"numba": 16, "triton": 64}
"""Rows up to which the weight is read as it is stored; beyond, arithmetic is what costs, and matrix units want one type."""
FEW_ROWS_OF_TILES = 64
"""The same for int8 weights where there are matrix units for bytes."""
WHOLE_ROWS = 64
"""Rows to which fewer are filled up for a CPU's matrix units: oneDNN gives a row the same bits in any number from 64 on, and
others below (AMX, torch 2.13)."""
TILE = 1 << 24
"""Numbers of a quantised weight that are widened at a time."""
DENSE = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Weight:
    """[O, I]: float32, bfloat16 or float16 `values`; int8 ones with `scales` float32 [O]; or uint8 [O, I / 2] with `scales`
    float32 [O, G]. Byte j of a group's 16 has input j in its low half and input 16 + j in its high one, 8 being 0."""

    values: Tensor
    scales: Tensor | None = None

    @cached_property
    def n_inputs(self) -> int:
        return self.values.shape[1] * (2 if self.values.dtype == torch.uint8 else 1)

    @cached_property
    def suits_numba(self) -> bool:
        """Whether it lies on a CPU with numba, in rows of whole vectors."""
        step = GROUP if self.values.dtype == torch.uint8 else 16
        return self.values.device.type == "cpu" and has_numba() and self.n_inputs % step == 0

    @cached_property
    def in_digits(self) -> bool:
        """Whether numba's products with it are of integers."""
        if self.values.dtype != torch.int8 or not self.suits_numba:
            return False
        from kernels.linear_digits import LONGEST, STEP, has_byte_products

        return self.n_inputs % STEP == 0 and self.n_inputs <= LONGEST and has_byte_products()

    @cached_property
    def sums(self) -> Tensor:
        """Of each output's integers, int32 [O]."""
        return self.values.sum(1, dtype=torch.int32)

    @cached_property
    def few_rows(self) -> int:
        """Rows up to which reading it as it is stored is the fastest on a CPU."""
        if not self.in_digits:
            return FEW_ROWS["numba"]
        from kernels.linear_digits import has_tiles

        return FEW_ROWS_OF_TILES if has_tiles() else FEW_ROWS["numba"]

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.values), self.n_inputs

    @property
    def n_bytes(self) -> int:
        return sum(x.numel() * x.itemsize for x in (self.values, self.scales) if x is not None)

    def to(self, device: torch.device | str) -> "Weight":
        return Weight(self.values.to(device), None if self.scales is None else self.scales.to(device))

    def rows(self, ids_N: Tensor, dtype: torch.dtype) -> Tensor:
        """Some rows as numbers, [N, I]: the weight as an embedding."""
        scales = None if self.scales is None else self.scales.index_select(0, ids_N)
        return Weight(self.values.index_select(0, ids_N), scales).dequantised(dtype)

    def dequantised(self, dtype: torch.dtype, rows: slice = slice(None)) -> Tensor:
        """The numbers it stands for, [O, I], or a slice of its rows."""
        values = self.values[rows]
        if self.scales is None:
            return values.to(dtype)
        if values.dtype == torch.int8:
            return (values.float() * self.scales[rows].unsqueeze(1)).to(dtype)
        grouped = values.view(len(values), -1, GROUP // 2)
        halves = torch.cat([grouped & 15, grouped >> 4], 2).to(torch.int8) - 8
        return (halves.float() * self.scales[rows].unsqueeze(2)).flatten(1).to(dtype)


def int8_weight(weight_OI: Tensor) -> Weight:
    """8 bits with one scale for each output: an error of at most half a 127th of the row's largest magnitude."""
    scales_O = _scales(weight_OI.float().abs().amax(1), 127)
    values = (weight_OI.float() / scales_O.unsqueeze(1)).round_().to(torch.int8)
    return Weight(values, scales_O)


def int4_weight(weight_OI: Tensor) -> Weight:
    """4 bits with one scale for each 32 inputs, 5 bits a weight in all. Raises `ValueError` where I is no multiple of 32."""
    n_outputs, n_inputs = weight_OI.shape
    if n_inputs % GROUP:
        raise ValueError(
            f"4-bit weights have groups of {GROUP} inputs; {n_inputs} are no multiple of it: take int8"
        )
    grouped = weight_OI.float().view(n_outputs, -1, GROUP)
    scales_OG = _scales(grouped.abs().amax(2), 7)
    values = ((grouped / scales_OG.unsqueeze(2)).round_() + 8).to(torch.uint8)
    low, high = values.chunk(2, 2)
    return Weight((low | (high << 4)).flatten(1).contiguous(), scales_OG)


def _scales(largest: Tensor, steps: int) -> Tensor:
    if not bool(largest.isfinite().all()):
        raise ValueError("a weight holds NaN or infinity, which no scale expresses")
    return torch.where(largest > 0, largest / steps, 1.0)


def linear_backend(
    x_NI: Tensor, weight: Weight, backend: str | None = None, few_rows: int | None = None
) -> str:
    """The back-end for these rows and weights: the argument, else `MOXIN_LINEAR`, else what is for so many rows.

    `few_rows` are those up to which a CPU reads the weight as it is stored, None for the fastest. Whoever wants results that
    do not depend on the number of rows says the same back-end for all of them with it: either is consistent in itself, with
    each other they agree to rounding.
    """
    chosen = choose("linear", BACKENDS, "automatic", backend)
    if chosen != "automatic":
        return chosen
    n_rows = len(x_NI)
    if weight.suits_numba and x_NI.dtype == torch.float32:
        return "numba" if n_rows <= (weight.few_rows if few_rows is None else few_rows) else "torch"
    if weight.scales is not None and runs_triton(x_NI.device) and n_rows <= FEW_ROWS["triton"]:
        return "triton"
    return "torch"


def linear(x_NI: Tensor, weight: Weight, backend: str | None = None, few_rows: int | None = None) -> Tensor:
    """`x @ weight.T`, [N, O] in the type of `x`; without gradients. Raises `ValueError` for shapes that do not fit."""
    if x_NI.ndim != 2 or x_NI.shape[1] != weight.n_inputs:
        raise ValueError(f"rows {list(x_NI.shape)} do not fit a weight {list(weight.shape)}")
    chosen = linear_backend(x_NI, weight, backend, few_rows)
    if chosen == "numba" and weight.in_digits:
        from kernels.linear_digits import multiply as multiply_digits

        assert weight.scales is not None
        return multiply_digits(x_NI.contiguous(), weight.values, weight.scales, weight.sums)
    if chosen == "numba":
        from kernels.linear_numba import multiply  # only where it is chosen: numba takes 0.3 s to import

        return multiply(x_NI.contiguous(), weight.values, weight.scales)
    if chosen == "triton":
        from kernels.linear_triton import multiply as triton_multiply

        return triton_multiply(x_NI.contiguous(), weight.values, weight.scales)
    return _torch_linear(x_NI, weight)


def _torch_linear(x_NI: Tensor, weight: Weight) -> Tensor:
    kind = weight.values.dtype
    if kind == torch.float32:
        return F.linear(x_NI.float(), weight.values).to(x_NI.dtype)
    # Quantised weights are exact in bfloat16 (int8) or nearly so; where bfloat16 is emulated they are widened to float32.
    wanted = x_NI.dtype if x_NI.dtype != torch.float32 else kind if weight.scales is None else torch.bfloat16
    if x_NI.device.type == "cpu":
        wanted = matmul_dtype(torch.bfloat16, x_NI.device)
    n_rows, rows = len(x_NI), x_NI.to(wanted)
    if x_NI.device.type == "cpu" and n_rows < WHOLE_ROWS:
        rows = F.pad(rows, (0, 0, 0, WHOLE_ROWS - n_rows))
    if weight.scales is None:
        return F.linear(rows, weight.values.to(wanted))[:n_rows].to(x_NI.dtype)
    n_outputs, n_inputs = weight.shape
    out_NO = torch.empty(n_rows, n_outputs, dtype=x_NI.dtype, device=x_NI.device)
    step = max(1, TILE // n_inputs)
    for first in range(0, n_outputs, step):
        part = slice(first, first + step)
        if kind == torch.int8:  # the integers are exact; the scale comes after
            assert weight.scales is not None
            out_NO[:, part] = F.linear(rows, weight.values[part].to(wanted))[:n_rows] * weight.scales[part]
        else:
            out_NO[:, part] = F.linear(rows, weight.dequantised(wanted, part))[:n_rows]
    return out_NO
