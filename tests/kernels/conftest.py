"""Triton kernels are interpreted where there is no GPU; the variable is read when Triton is imported."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
