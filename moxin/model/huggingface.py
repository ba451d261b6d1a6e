"""A release folder for Hugging Face: sharded weights, configuration, tokenizer and generation defaults."""

import json
from typing import Any

from moxin import storage
from moxin.model import checkpoint
from moxin.model.decoder import Decoder
from moxin.model.layouts import to_hf_config, transformers_refuses

END_OF_TURN = "<|end|>"
"""Ends a chat turn; generation stops there as well as at the end of a text."""


def export(
    model: Decoder,
    tokenizer_url: str,
    out_url: str,
    max_shard_bytes: int = 5 * 10**9,
    dtype: str = "bfloat16",
) -> None:
    """Writes what `AutoModelForCausalLM` and `AutoTokenizer` load: `config.json`, `*.safetensors`, `generation_config.json`
    and every file of the tokenizer's folder (`tokenizer.json`, `tokenizer_config.json` with the chat template).

    Raises `ValueError` for a model that no class of transformers computes.
    """
    if why := transformers_refuses(model.config):
        raise ValueError(f"{out_url}: {why}")
    for name in storage.files_under(tokenizer_url):
        storage.write_bytes(
            storage.join(out_url, name), storage.read_bytes(storage.join(tokenizer_url, name))
        )
    checkpoint.save(model, model.config, out_url, dtype, max_shard_bytes)
    ids = special_token_ids(tokenizer_url)
    config = to_hf_config(model.config, dtype) | ids | {"eos_token_id": ids["eos_token_id"][0]}
    storage.write_json(storage.join(out_url, "config.json"), config)
    storage.write_json(storage.join(out_url, "generation_config.json"), ids)


def special_token_ids(tokenizer_url: str) -> dict[str, Any]:
    """`bos_token_id`, `pad_token_id`, and `eos_token_id` as a list: end of text, then end of turn if there is such a token.

    A token that the tokenizer does without is None.

    Raises `ValueError` where the tokenizer names a token that it does not have.
    """
    settings = json.loads(storage.read_text(storage.join(tokenizer_url, "tokenizer_config.json")))
    tokenizer = json.loads(storage.read_text(storage.join(tokenizer_url, "tokenizer.json")))
    by_text = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    ids: dict[str, Any] = {}
    for role in ("bos_token", "eos_token", "pad_token"):
        named = settings.get(role)
        text = named["content"] if isinstance(named, dict) else named
        if text is None and role != "eos_token":
            ids[f"{role}_id"] = None
            continue
        if text not in by_text:
            raise ValueError(f"{tokenizer_url}: {role} {text!r} is not among the tokenizer's added tokens")
        ids[f"{role}_id"] = by_text[text]
    ends = [ids["eos_token_id"], by_text.get(END_OF_TURN, ids["eos_token_id"])]
    return {**ids, "eos_token_id": list(dict.fromkeys(ends))}
