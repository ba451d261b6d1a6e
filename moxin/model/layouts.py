"""How a model lies in a Hugging Face folder: `MistralForCausalLM` and `MptForCausalLM`, and what neither can express.

A folder's tensors are cut from our parameters by rows, which are contiguous: `q_proj` is the first rows of `qkv`. So every
tensor can be read and written on its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch

from moxin.config import to_jsonable
from moxin.model.decoder import Decoder
from moxin.recipe import ModelConfig

_MISTRAL_FIELDS = {
    "n_layers": "num_hidden_layers",
    "d_model": "hidden_size",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "d_ff": "intermediate_size",
    "vocab_size": "vocab_size",
    "max_seq_len": "max_position_embeddings",
    "sliding_window": "sliding_window",
    "norm_eps": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
    "init_std": "initializer_range",
}
_MPT_FIELDS = {
    "n_layers": "n_layers",
    "d_model": "d_model",
    "n_heads": "n_heads",
    "vocab_size": "vocab_size",
    "max_seq_len": "max_seq_len",
    "norm_eps": "layer_norm_epsilon",
    "tie_embeddings": "tie_word_embeddings",
    "init_std": "initializer_range",
}
"""Our field -> Hugging Face's, where they mean the same."""
_REQUIRED = {
    "mistral": ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads")
    + ("intermediate_size", "vocab_size"),
    "mpt": ("n_layers", "d_model", "n_heads", "vocab_size"),
    "moxin": ("n_layers", "d_model", "n_heads", "n_kv_heads", "d_ff", "vocab_size"),
}
_INIT = "moxin_init"
"""Key in config.json for an initialisation that is not the family's own; transformers keeps and ignores it."""


@dataclass(frozen=True)
class Piece:
    """A tensor of a folder: rows `first` and on of one of our parameters."""

    theirs: str
    ours: str
    first: int
    shape: tuple[int, ...]


def family(config: ModelConfig) -> str:
    """Whose layout and class this model has: `mistral`, `mpt`, or `moxin` where only our own decoder computes it."""
    plain = not config.qk_norm and not config.layer_windows
    if plain and (config.norm, config.activation, config.position) == ("rms", "swiglu", "rope"):
        return "mistral" if config.clip_qkv is None else "moxin"
    if (
        plain
        and (config.norm, config.activation, config.position) == ("layer", "gelu", "alibi")
        and config.n_kv_heads == config.n_heads
        and config.d_ff == 4 * config.d_model
        and config.sliding_window is None
    ):
        return "mpt"
    return "moxin"


def transformers_refuses(config: ModelConfig) -> str | None:
    """Why no class of transformers computes this model, or None."""
    kind = family(config)
    if kind == "moxin":
        return (
            "transformers has no class for this model: its Mistral has RMSNorm, SwiGLU, RoPE and one window, its MPT "
            "LayerNorm, GELU, ALiBi, as many key/value heads as heads, d_ff = 4 d_model and no window"
        )
    if kind == "mpt" and config.alibi_bias_max != 8:
        return (
            f"model.alibi_bias_max = {config.alibi_bias_max:g}: transformers' MPT takes 8 whatever config.json says; "
            "llm-foundry's code, and ours, read the setting"
        )
    return None


def pieces(config: ModelConfig) -> list[Piece]:
    """Every tensor of a folder of this model, in the order in which it is written."""
    with torch.device("meta"):
        shapes = {name: tuple(p.shape) for name, p in Decoder(config).named_parameters()}
    kind = family(config)
    found = []
    for ours, shape in shapes.items():
        first = 0
        for theirs, rows in _names(ours, shape[0], kind, config):
            found.append(Piece(theirs, ours, first, (rows, *shape[1:])))
            first += rows
        assert first == shape[0], ours
    return found


def _names(ours: str, rows: int, kind: str, config: ModelConfig) -> list[tuple[str, int]]:
    """The folder's names for one of our parameters, with the rows that each takes."""
    if kind == "moxin":
        return [(ours, rows)]
    outside = {
        "mistral": {
            "embedding.weight": "model.embed_tokens.weight",
            "norm.weight": "model.norm.weight",
            "head.weight": "lm_head.weight",
        },
        "mpt": {
            "embedding.weight": "transformer.wte.weight",
            "norm.weight": "transformer.norm_f.weight",
            "head.weight": "lm_head.weight",
        },
    }[kind]
    if ours in outside:
        return [(outside[ours], rows)]
    _, layer, part = ours.split(".", 2)
    if kind == "mpt":
        name = {
            "attention_norm.weight": "norm_1.weight",
            "attention.qkv.weight": "attn.Wqkv.weight",
            "attention.out.weight": "attn.out_proj.weight",
            "mlp_norm.weight": "norm_2.weight",
            "mlp.up.weight": "ffn.up_proj.weight",
            "mlp.down.weight": "ffn.down_proj.weight",
        }[part]
        return [(f"transformer.blocks.{layer}.{name}", rows)]
    n_q, n_kv = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    cut = {
        "attention_norm.weight": [("input_layernorm.weight", rows)],
        "attention.qkv.weight": [
            ("self_attn.q_proj.weight", n_q),
            ("self_attn.k_proj.weight", n_kv),
            ("self_attn.v_proj.weight", n_kv),
        ],
        "attention.out.weight": [("self_attn.o_proj.weight", rows)],
        "mlp_norm.weight": [("post_attention_layernorm.weight", rows)],
        "mlp.up.weight": [("mlp.gate_proj.weight", rows // 2), ("mlp.up_proj.weight", rows // 2)],
        "mlp.down.weight": [("mlp.down_proj.weight", rows)],
    }[part]
    return [(f"model.layers.{layer}.{name}", n) for name, n in cut]


def to_hf_config(config: ModelConfig, dtype: str = "float32") -> dict[str, Any]:
    """`config.json` of the model. `rope_theta` is given as transformers 4 and as transformers 5 read it."""
    kind = family(config)
    common = {"model_type": kind, "dtype": dtype, "torch_dtype": dtype, "use_cache": True}
    usual_init = "kaiming" if kind == "mpt" else "normal"
    if config.init != usual_init and kind != "moxin":
        common[_INIT] = config.init
    if kind == "mistral":
        return common | {
            "architectures": ["MistralForCausalLM"],
            **{theirs: getattr(config, ours) for ours, theirs in _MISTRAL_FIELDS.items()},
            "head_dim": config.head_dim,
            "hidden_act": "silu",
            "attention_dropout": 0.0,
            "rope_theta": config.rope_theta,
            "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        }
    if kind == "mpt":
        return common | {
            "architectures": ["MptForCausalLM"],
            **{theirs: getattr(config, ours) for ours, theirs in _MPT_FIELDS.items()},
            "expansion_ratio": 4,
            "no_bias": True,
            "norm_type": "low_precision_layernorm",
            "emb_pdrop": 0,
            "resid_pdrop": 0,
            "learned_pos_emb": False,
            "attn_config": {
                "alibi": True,
                "alibi_bias_max": int(bias) if (bias := config.alibi_bias_max).is_integer() else bias,
                "attn_pdrop": 0,  # transformers takes no float
                "attn_type": "multihead_attention",
                "attn_uses_sequence_id": False,
                "clip_qkv": config.clip_qkv,
                "prefix_lm": False,
                "qk_ln": False,
                "softmax_scale": None,
            },
        }
    return common | {"architectures": ["Decoder"], **to_jsonable(config)}


def from_hf_config(values: Mapping[str, Any]) -> ModelConfig:
    """The architecture a `config.json` describes; `ValueError` naming the setting where it is not one of `Decoder`'s."""
    kind = values.get("model_type")
    if kind not in _REQUIRED:
        raise ValueError(f"config.json: model_type = {kind!r}, expected one of {', '.join(_REQUIRED)}")
    if missing := [name for name in _REQUIRED[kind] if name not in values]:
        raise ValueError(f"config.json: {', '.join(missing)} missing")
    config = {"mistral": _from_mistral, "mpt": _from_mpt, "moxin": _from_moxin}[kind](values)
    config.validate()
    return config


def _unsupported(name: str, value: Any, expected: Any) -> ValueError:
    return ValueError(f"config.json: {name} = {value!r} is not supported, only {expected!r}")


def _from_mistral(values: Mapping[str, Any]) -> ModelConfig:
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise _unsupported("rope_type", kind, "default")
    if values.get("hidden_act", "silu") != "silu":
        raise _unsupported("hidden_act", values["hidden_act"], "silu")
    settings = {ours: values[theirs] for ours, theirs in _MISTRAL_FIELDS.items() if theirs in values}
    config = ModelConfig(
        # what transformers takes where the file says nothing
        **{"sliding_window": 4096, "norm_eps": 1e-6, "max_seq_len": 131_072, **settings},
        rope_theta=float(rope.get("rope_theta", values.get("rope_theta", 10_000.0))),
        init=values.get(_INIT, "normal"),
    )
    if (values.get("head_dim") or config.head_dim) != config.head_dim:
        raise ValueError(
            f"config.json: head_dim = {values['head_dim']} is not hidden_size / num_attention_heads = {config.head_dim}"
        )
    return config


def _from_mpt(values: Mapping[str, Any]) -> ModelConfig:
    attention = values.get("attn_config") or {}
    for where, name, default, expected in (
        (values, "no_bias", True, True),
        (values, "expansion_ratio", 4, 4),
        (values, "logit_scale", None, None),
        (attention, "alibi", True, True),
        (attention, "attn_type", "multihead_attention", "multihead_attention"),
        (attention, "attn_uses_sequence_id", False, False),
        (attention, "prefix_lm", False, False),
        (attention, "qk_ln", False, False),
        (attention, "qk_gn", False, False),
        (attention, "sliding_window_size", -1, -1),
        (attention, "softmax_scale", None, None),
    ):
        if where.get(name, default) != expected:
            raise _unsupported(name, where[name], expected)
    norm = values.get("norm_type", "low_precision_layernorm")
    if norm not in ("low_precision_layernorm", "layernorm"):
        raise _unsupported("norm_type", norm, "low_precision_layernorm")
    init = values.get(_INIT, "kaiming")
    settings = {ours: values[theirs] for ours, theirs in _MPT_FIELDS.items() if theirs in values}
    if init == "kaiming":
        settings.pop("init_std", None)
    return ModelConfig(
        **{"tie_embeddings": True, "max_seq_len": 2048, **settings},
        n_kv_heads=values["n_heads"],
        d_ff=4 * values["d_model"],
        norm="layer",
        activation="gelu",
        position="alibi",
        alibi_bias_max=float(attention.get("alibi_bias_max", 8)),
        clip_qkv=None if attention.get("clip_qkv") is None else float(attention["clip_qkv"]),
        init=init,
    )


def _from_moxin(values: Mapping[str, Any]) -> ModelConfig:
    names = [field.name for field in fields(ModelConfig)]
    settings = {name: values[name] for name in names if name in values}
    return ModelConfig(**settings | {"layer_windows": tuple(settings.get("layer_windows", ()))})
