"""The flash-attn package for square masks: documents as sequences of variable length, without a mask.

Of https://github.com/Dao-AILab/flash-attention two generations are used: FlashAttention-2 (`flash_attn`), from Ampere on and
with ALiBi; and FlashAttention-4 (`flash_attn.cute`, a package of its own, flash-attn-4), which is preferred on Hopper and
Blackwell where no ALiBi is asked. Neither is needed: nothing is imported until asked for.
"""

import importlib
import inspect
import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from kernels.attention_mask import Mask

MAX_HEAD_DIM = 256


@lru_cache
def _import(module: str) -> tuple[Callable[..., Any] | None, str]:
    """`flash_attn_varlen_func` of the module, or None and why."""
    try:
        return importlib.import_module(module).flash_attn_varlen_func, ""
    # Otherwise: built for another PyTorch or CUDA, a dependency is missing, or only the other package's folder is there.
    except (ImportError, AttributeError, OSError) as error:
        absent = isinstance(error, ModuleNotFoundError) and error.name in (module, "flash_attn")
        return None, f"{module} is not installed" if absent else f"{module}: {error}"


def flash_attention_2() -> Callable[..., Any] | None:
    """FlashAttention-2's function for sequences of variable length, or None."""
    return _import("flash_attn")[0]


def flash_attention_4(device: torch.device, head_dim: int | None) -> Callable[..., Any] | None:
    """FlashAttention-4's, or None where it is missing or does not cover forward and backward on this GPU.

    Early releases ignore the window in the backward pass, or refuse it and variable length on Hopper; the sources that have
    the argument `score_mod_bwd` support both. Widths above 128 have kernels and limits of their own: not used.
    """
    function = _import("flash_attn.cute")[0]
    if function is None or torch.cuda.get_device_capability(device)[0] not in (9, 10):
        return None
    complete = "score_mod_bwd" in inspect.signature(function).parameters
    return function if complete and (head_dim is None or head_dim <= 128) else None


def flash_refuses(
    device: torch.device, dtype: torch.dtype | None, head_dim: int | None, alibi: bool
) -> str | None:
    """Why flash-attn cannot serve this case, or None."""
    if device.type != "cuda":
        return f"needs a CUDA device, not {device}"
    if dtype not in (None, torch.float16, torch.bfloat16):
        return f"takes bfloat16 or float16, not {str(dtype).removeprefix('torch.')}"
    if head_dim is not None and (head_dim % 8 or head_dim > MAX_HEAD_DIM):
        return f"needs a head_dim that is a multiple of 8 up to {MAX_HEAD_DIM}, not {head_dim}"
    if torch.cuda.get_device_capability(device)[0] < 8:
        return "needs an Ampere GPU or newer"
    if flash_attention_2() is None and (alibi or flash_attention_4(device, head_dim) is None):
        reasons = [why for why in (_import("flash_attn")[1], _import("flash_attn.cute")[1]) if why]
        alone = "; FlashAttention-4 alone has no ALiBi, or not this case" if len(reasons) < 2 else ""
        return f"is not available ({'; '.join(reasons)}{alone}): pip install flash-attn"
    return None


@lru_cache
def warn_if_broken() -> None:
    """Says once that flash-attn is installed but cannot be imported: the automatic choice would pass over it in silence."""
    (_, why), (newest, _) = _import("flash_attn"), _import("flash_attn.cute")
    if why and not why.endswith("is not installed") and newest is None:
        warnings.warn(f"flash-attn cannot be imported ({why}); attention goes on without it", stacklevel=3)


def flash_attention(
    q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor, mask: Mask, slopes_H: Tensor | None, scale: float
) -> Tensor:
    """[B, T, H, D] in the type of `q`, bfloat16 or float16. Raises what `flash_refuses` says as `ValueError` in `attention`.

    A window of w is `window_size=(w - 1, 0)`: both numbers count keys beside the query's own.
    """
    b, t = q_BTHD.shape[:2]
    cu_seqlens, longest = mask.cu_seqlens(b)
    packed = [x.flatten(0, 1) for x in (q_BTHD, k_BTKD, v_BTKD)]
    shared: dict[str, Any] = {
        "cu_seqlens_q": cu_seqlens,
        "cu_seqlens_k": cu_seqlens,
        "max_seqlen_q": longest,
        "max_seqlen_k": longest,
        "softmax_scale": scale,
        "causal": mask.causal,
    }
    back = None if mask.window is None else mask.window - 1
    ahead = 0 if mask.causal else back
    newest = None if slopes_H is not None else flash_attention_4(q_BTHD.device, q_BTHD.shape[3])
    if newest is not None:
        window = (None, None) if back is None else (back, ahead)
        # All by keyword: releases have put new arguments in between. They return (out, log-sum-exp).
        out_NHD = newest(*packed, **shared, window_size=window)[0]
    else:
        function = flash_attention_2()
        assert function is not None, "the choice of back-end checks that flash-attn is there"
        out_NHD = function(
            *packed,
            **shared,
            window_size=(-1, -1) if back is None else (back, ahead),
            alibi_slopes=None if slopes_H is None else slopes_H.to(q_BTHD.device, torch.float32),
        )
    return out_NHD.unflatten(0, (b, t))
