"""Attention in Triton for square masks: window, documents, ALiBi and grouped-query heads, forward and backward.

Imported only where the back-end is chosen, since Triton need not be installed. The kernels are in `attention_triton_forward`
and `attention_triton_backward`; their launches and block sizes are here.

Block sizes come from a table by width, type and GPU. `triton.autotune` takes what was fastest when it looked, so two runs
or two ranks of one recipe could get different blocks: another order of sums, other last bits of the loss. It would also stop
for seconds at every new shape.
"""

import math
import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.attention_mask import Mask
from kernels.attention_triton_backward import delta_kernel, keys_kernel, queries_kernel
from kernels.attention_triton_forward import forward_kernel

MAX_HEAD_DIM = 256
LOG2_E = math.log2(math.e)


@dataclass(frozen=True)
class Blocks:
    """Queries and keys of a block (at least 16), warps of a program, loads in flight."""

    queries: int
    keys: int
    warps: int = 4
    stages: int = 1


@dataclass(frozen=True)
class Plan:
    """Blocks of the three kernels: forward; gradients of keys and values; gradients of queries."""

    forward: Blocks
    keys: Blocks
    queries: Blocks


@lru_cache
def plan(head_dim: int, dtype: torch.dtype, capability: tuple[int, int]) -> Plan:
    """The table. `capability` is the GPU's compute capability, (9, 0) for an H100.

    Chosen so that `ptxas` for sm_80 and sm_90 reports few or no spilled registers at widths 64 and 128 and the blocks fit
    into shared memory; how fast they are against other choices is not measured yet.
    """
    width = max(16, triton.next_power_of_2(head_dim))
    if dtype == torch.float32:  # exact products, which run without tensor cores: for tests, not for speed
        side = 32 if width <= 128 else 16
        return Plan(*(Blocks(side, side) for _ in range(3)))
    if capability not in (
        (8, 0),
        (9, 0),
        (10, 0),
        (10, 3),
    ):  # 99 KB of shared memory per block, not 163 or more
        if width <= 64:
            return Plan(Blocks(128, 64, 4, 2), Blocks(32, 64, 4, 2), Blocks(64, 32, 4, 2))
        if width <= 128:
            return Plan(Blocks(64, 32, 4, 2), Blocks(32, 64, 4, 1), Blocks(64, 32, 4, 1))
        return Plan(Blocks(32, 32, 4, 1), Blocks(16, 32, 4, 1), Blocks(32, 16, 4, 1))
    hopper = capability[0] >= 9
    if width <= 64:
        return Plan(Blocks(128, 128 if hopper else 64, 8, 3), Blocks(32, 128, 8, 2), Blocks(128, 64, 8, 3))
    if width <= 128:
        keys = Blocks(32, 128, 8, 2) if hopper else Blocks(64, 64, 8, 2)
        return Plan(Blocks(128, 64, 8, 3 if hopper else 2), keys, Blocks(128, 64 if hopper else 32, 8, 2))
    return Plan(Blocks(64, 32, 4, 2), Blocks(32, 64, 8, 1), Blocks(64, 32, 8, 1))


def triton_attention(
    q_BTHD: Tensor,
    k_BTKD: Tensor,
    v_BTKD: Tensor,
    mask: Mask,
    slopes_H: Tensor | None,
    scale: float,
    blocks: Plan | None = None,
) -> Tensor:
    """[B, T, H, D] contiguous in the type of `q`: bfloat16, float16 or float32. Memory is linear in T.

    Inputs may be views with any strides of rows, tokens and heads. `blocks` overrides the table, for tests.
    """
    bounded = not mask.full
    if blocks is None:
        on_gpu = q_BTHD.device.type == "cuda"
        capability = torch.cuda.get_device_capability(q_BTHD.device) if on_gpu else (0, 0)
        blocks = plan(q_BTHD.shape[3], q_BTHD.dtype, capability)
    slopes = None if slopes_H is None else (slopes_H.to(q_BTHD.device, torch.float32) * LOG2_E).contiguous()
    first, end = (mask.first_BT.contiguous(), mask.end_BT) if bounded else (None, None)
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q_BTHD, k_BTKD, v_BTKD))
    return _Attention.apply(q, k, v, first, end, slopes, scale, mask.causal, blocks)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        first: Tensor | None,
        end: Tensor | None,
        slopes: Tensor | None,
        scale: float,
        causal: bool,
        blocks: Plan,
    ) -> Tensor:
        b, t, h, _ = q.shape
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        lse = torch.empty(b, h, t, dtype=torch.float32, device=q.device)
        with _on(q.device):
            forward_kernel[(triton.cdiv(t, blocks.forward.queries), b * h)](
                q, k, v, out, lse,
                *_common(q, k, first, end, slopes),
                *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
                scale=scale * LOG2_E,
                **_constants(q, first, slopes, causal, blocks.forward),
            )  # fmt: skip
        ctx.save_for_backward(q, k, v, out, lse, first, end, slopes)
        ctx.scale, ctx.causal, ctx.blocks = scale, causal, blocks
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse, first, end, slopes = ctx.saved_tensors
        blocks: Plan = ctx.blocks
        dout = dout if dout.stride(-1) == 1 else dout.contiguous()
        (b, t, h, d), n_kv_heads = q.shape, k.shape[2]
        delta = torch.empty_like(lse)
        dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
        strides = (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *dout.stride()[:3])
        scales = {"scale": ctx.scale * LOG2_E, "dscale": ctx.scale}
        with _on(q.device):
            width = max(16, triton.next_power_of_2(d))
            delta_kernel[(triton.cdiv(t, 64), b * h)](
                out, dout, delta, t, h, *dout.stride()[:3], HEAD_DIM=d, D=width, BLOCK=64
            )
            keys_kernel[(triton.cdiv(t, blocks.keys.keys), b * n_kv_heads)](
                q, k, v, dout, lse, delta, dk, dv,
                *_common(q, k, first, end, slopes), *strides,
                **scales, **_constants(q, first, slopes, ctx.causal, blocks.keys),
            )  # fmt: skip
            queries_kernel[(triton.cdiv(t, blocks.queries.queries), b * h)](
                q, k, v, dout, lse, delta, dq,
                *_common(q, k, first, end, slopes), *strides,
                **scales, **_constants(q, first, slopes, ctx.causal, blocks.queries),
            )  # fmt: skip
        return dq, dk, dv, None, None, None, None, None, None


def _common(
    q: Tensor, k: Tensor, first: Tensor | None, end: Tensor | None, slopes: Tensor | None
) -> tuple[Any, ...]:
    """first, end, slopes, n_tokens, n_heads, group, mask_stride; an array that is not there is stood in for by `q`."""
    t, h = q.shape[1:3]
    shared = first is None or first.shape[0] == 1
    arrays = (q if x is None else x for x in (first, end, slopes))
    return *arrays, t, h, h // k.shape[2], 0 if shared else t


def _constants(
    q: Tensor, first: Tensor | None, slopes: Tensor | None, causal: bool, blocks: Blocks
) -> dict[str, Any]:
    return {
        "HEAD_DIM": q.shape[3],
        "D": max(16, triton.next_power_of_2(q.shape[3])),
        "BLOCK_Q": blocks.queries,
        "BLOCK_K": blocks.keys,
        "CAUSAL": causal,
        "BOUNDED": first is not None,
        "ALIBI": slopes is not None,
        "WIDEN": q.device.type == "cpu"
        and os.environ.get("TRITON_INTERPRET") == "1"
        and q.dtype == torch.bfloat16,
        "num_warps": blocks.warps,
        "num_stages": blocks.stages,
    }


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the current GPU, which need not be the tensors'."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
