"""transformers and llama.cpp with the same weights, measured as `benchmarks/infer.py` measures the engine."""

import importlib.util
import itertools
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import MistralConfig, MistralForCausalLM

from moxin.model.decoder import Decoder
from moxin.model.layouts import pieces, to_hf_config


class Transformers:
    """`generate`, greedy, of `MistralForCausalLM`; attention is what it takes by itself."""

    def __init__(self, model: Decoder, dtype: torch.dtype) -> None:
        self.model = MistralForCausalLM(MistralConfig(**to_hf_config(model.config))).to(dtype).eval()
        self.model.load_state_dict(_their_tensors(model))
        self.model.generation_config.eos_token_id = None

    def _generate(self, ids: torch.Tensor, mask: torch.Tensor, n: int, streamer: Any = None) -> None:
        options = {"max_new_tokens": n, "min_new_tokens": n, "do_sample": False, "pad_token_id": 0}
        self.model.generate(ids, attention_mask=mask, streamer=streamer, **options)

    def token_seconds(self, prompt: list[int], n: int) -> list[float]:
        clock = _Clock()
        ids = torch.tensor([prompt])
        self._generate(ids, torch.ones_like(ids), n, clock)
        times = clock.times[1:]  # the prompt comes first
        return [later - earlier for earlier, later in itertools.pairwise(times)]

    def batch_seconds(self, requests: list[tuple[list[int], int]]) -> float:
        """One batch, padded on the left, until the longest answer ends."""
        start = time.perf_counter()
        longest = max(len(prompt) for prompt, _ in requests)
        ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt, _ in requests])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt, _ in requests])
        self._generate(ids, mask, max(n for _, n in requests))
        return time.perf_counter() - start

    def each_seconds(self, requests: list[tuple[list[int], int]]) -> float:
        """One request after the other."""
        start = time.perf_counter()
        for prompt, n in requests:
            ids = torch.tensor([prompt])
            self._generate(ids, torch.ones_like(ids), n)
        return time.perf_counter() - start


class _Clock:
    """A streamer that notes when each token comes."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: object) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


class LlamaCpp:
    """llama.cpp through llama-cpp-python, from a GGUF file without a vocabulary."""

    @staticmethod
    def installed() -> bool:
        return all(importlib.util.find_spec(name) for name in ("llama_cpp", "gguf"))

    def __init__(self, model: Decoder, kind: str, folder: Path) -> None:
        import llama_cpp

        path = folder / f"{kind}.gguf"
        _write_gguf(model, kind, path)
        threads = torch.get_num_threads()
        parameters = llama_cpp.llama_model_default_params()
        parameters.use_extra_bufts = False  # AMX, which a virtual machine may name and not allow
        self.api = llama_cpp
        llama_cpp.llama_log_set(_quiet(llama_cpp), None)
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx, settings.n_batch = 512, 512
        settings.n_threads = settings.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, settings)
        self.vocab_size = model.config.vocab_size

    def token_seconds(self, prompt: list[int], n: int) -> list[float]:
        """Greedy, as the others; the prompt in one batch."""
        api, times, tokens = self.api, [], list(prompt)
        api.llama_memory_clear(api.llama_get_memory(self.context), True)
        for _ in range(n):
            array = (api.llama_token * len(tokens))(*tokens)
            assert api.llama_decode(self.context, api.llama_batch_get_one(array, len(tokens))) == 0
            logits = np.ctypeslib.as_array(
                api.llama_get_logits_ith(self.context, -1), shape=(self.vocab_size,)
            )
            tokens = [int(logits.argmax())]
            times.append(time.perf_counter())
        return [later - earlier for earlier, later in itertools.pairwise(times)]


_kept: list[Any] = []


def _quiet(api: Any) -> Any:
    _kept.append(api.llama_log_callback(lambda level, text, data: None))
    return _kept[-1]


def _their_tensors(model: Decoder) -> dict[str, torch.Tensor]:
    found = {}
    for piece in pieces(model.config):
        found[piece.theirs] = model.get_parameter(piece.ours).detach()[piece.first :][: piece.shape[0]]
    return found


def _write_gguf(model: Decoder, kind: str, path: Path) -> None:
    import gguf

    config = model.config
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(config.max_seq_len)
    writer.add_embedding_length(config.d_model)
    writer.add_block_count(config.n_layers)
    writer.add_feed_forward_length(config.d_ff)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.n_kv_heads)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v"}
    names |= {"self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up"}
    names |= {
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    outside = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    quantised = {
        "float32": gguf.GGMLQuantizationType.F32,
        "bfloat16": gguf.GGMLQuantizationType.BF16,
        "int8": gguf.GGMLQuantizationType.Q8_0,
    }[kind]
    for theirs, tensor in _their_tensors(model).items():
        base = theirs.removesuffix(".weight")
        if base in outside:
            name = f"{outside[base]}.weight"
        else:
            _, _, layer, part = base.split(".", 3)
            name = f"blk.{layer}.{names[part]}.weight"
            if part.endswith(("q_proj", "k_proj")):  # llama.cpp rotates neighbours, the folders halves
                half = tensor.view(-1, 2, config.head_dim // 2, config.d_model)
                tensor = half.transpose(1, 2).reshape(tensor.shape)
        numbers = tensor.float().numpy()
        if tensor.ndim == 1:
            writer.add_tensor(name, numbers)
        else:
            writer.add_tensor(name, gguf.quants.quantize(numbers, quantised), raw_dtype=quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
