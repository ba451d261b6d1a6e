"""Shapes by name: the published models, and a ladder of smaller ones for ablations and planning.

The counts are exact (`Decoder(...).n_parameters()`); a test builds each on the meta device.
"""

from dataclasses import replace

from moxin.recipe import ModelConfig

MISTRAL_7B = ModelConfig(
    n_layers=32,
    d_model=4096,
    n_heads=32,
    n_kv_heads=8,
    d_ff=14336,
    vocab_size=32000,
    max_seq_len=32768,
    sliding_window=4096,
)
"""Mistral-7B-v0.1 (arXiv 2310.06825): 7,241,732,096."""


def _mpt(
    n_layers: int, d_model: int, n_heads: int, clip_qkv: float | None = None, context: int = 2048
) -> ModelConfig:
    return ModelConfig(
        n_layers=n_layers,
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=n_heads,
        d_ff=4 * d_model,
        vocab_size=50432,  # 50,277 tokens of GPT-NeoX, padded
        max_seq_len=context,
        norm="layer",
        activation="gelu",
        position="alibi",
        clip_qkv=clip_qkv,
        tie_embeddings=True,
        init="kaiming",
    )


def _rung(n_layers: int, d_model: int, d_ff: int) -> ModelConfig:
    """Moxin's shape smaller: heads of 64 or 128, a quarter as many key/value heads, its vocabulary, context 2048."""
    n_heads = d_model // (128 if d_model >= 2048 else 64)
    return ModelConfig(
        n_layers=n_layers,
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=n_heads // 4,
        d_ff=d_ff,
        vocab_size=32000,
        max_seq_len=2048,
    )


PRESETS: dict[str, ModelConfig] = {
    "moxin_7b": replace(MISTRAL_7B, n_layers=36),  # arXiv 2412.06845, table 1: 8,114,180,096
    "mistral_7b": MISTRAL_7B,
    "mpt_7b": _mpt(32, 4096, 32),  # 6,649,286,656
    "mpt_30b": _mpt(48, 7168, 64, clip_qkv=6.0, context=8192),  # 29,957,200,896
    "60m": _rung(10, 512, 1408),  # 60,959,232
    "125m": _rung(12, 768, 2048),  # 123,489,024
    "350m": _rung(24, 1024, 3072),  # 354,993,152
    "760m": _rung(24, 1536, 4608),  # 749,544,960
    "1.3b": _rung(24, 2048, 6144),  # 1,288,800,256
    "3b": _rung(28, 3072, 8192),  # 2,971,315,200
}
