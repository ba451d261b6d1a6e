"""What `lint-imports` cannot say: that the light rooms really run without Ray, and that two packages called `kernels`
get along."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "package", ["kernels", "moxin.model", "moxin.infer", "moxin.recipes", "moxin.plan", "moxin.tokens.loader"]
)
def test_a_light_room_loads_neither_ray_nor_deepspeed(package):
    script = f"""
import importlib, pkgutil, sys
package = importlib.import_module({package!r})
for module in pkgutil.iter_modules(getattr(package, "__path__", [])):
    try:
        importlib.import_module({package!r} + "." + module.name)
    except ModuleNotFoundError as error:  # kernels for a GPU, on a machine that has none
        if error.name != "triton":
            raise
assert not {{"ray", "deepspeed"}} & set(sys.modules), "a heavy package was imported"
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_transformers_runs_beside_our_kernels():
    """transformers can use a package from PyPI that is called `kernels` as ours is."""
    script = """
import kernels.attention
import torch
from transformers import MistralConfig, MistralForCausalLM
config = MistralConfig(vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
                       num_attention_heads=2, num_key_value_heads=1)
assert MistralForCausalLM(config)(torch.zeros(1, 4, dtype=torch.long)).logits.shape == (1, 4, 32)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
