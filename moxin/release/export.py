"""Proof that a released folder is the model that was trained: `transformers` must give its tokens, logits and replies."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from moxin.infer.generate import generate
from moxin.infer.sampling import SamplingParams
from moxin.model.decoder import Decoder
from moxin.tokens.tokenizer import Tokenizer

ABSOLUTE, RELATIVE = 1e-4, 1e-5
"""Largest difference of a float32 logit that counts as the same: the sums are taken in another order."""
REPLY_TOKENS = 24


@torch.inference_mode()
def verify(
    folder: Path,
    model: Decoder,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    chats: Sequence[Sequence[dict[str, str]]],
) -> dict[str, Any]:
    """Loads `folder` with `transformers` and compares tokens and float32 logits of `texts` and `chats`, and greedy replies.

    Raises `RuntimeError` at the first difference, saying where it is and what each side gives.
    """
    transformers_logging.disable_progress_bar()
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    their_tokenizer = AutoTokenizer.from_pretrained(folder)
    model = model.float().eval()

    prompts, sequences = [], []
    for text in texts:
        ids = tokenizer.encode(text)
        # As in ours, "<s>" in a text is text.
        encoded = their_tokenizer(text, add_special_tokens=False, split_special_tokens=True)
        _same("tokens of a text", text, ids, encoded["input_ids"])
        sequences.append(tokenizer.begin(text))
    for messages in chats:
        ids, _ = tokenizer.render(messages, add_generation_prompt=True)
        rendered: Any = their_tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, return_dict=True
        )
        _same("tokens of a chat", messages, ids, rendered["input_ids"])
        prompts.append(ids)

    differences, logits = [], []
    for ids in [*sequences, *prompts]:
        ids_1T = torch.tensor([ids[: model.config.max_seq_len]])
        ours_1TV, theirs_1TV = model(ids_1T), theirs(ids_1T).logits
        differences.append((ours_1TV - theirs_1TV).abs().max())
        logits.append(ours_1TV.abs().max())
    difference, largest = torch.stack(differences).max().item(), torch.stack(logits).max().item()
    allowed = max(ABSOLUTE, RELATIVE * largest)
    if not difference <= allowed:  # nor where it is not a number
        raise RuntimeError(
            f"{folder}: transformers' logits differ from ours by {difference:.3g}, allowed are {allowed:.3g} "
            f"(largest logit {largest:.3g})"
        )

    stop = (tokenizer.eos_id, tokenizer.end_id)
    params = SamplingParams(max_tokens=REPLY_TOKENS, temperature=0.0, stop_ids=stop)
    for ids, reply in zip(prompts, generate(model, tokenizer, prompts, params, max_batch=8), strict=True):
        generated = theirs.generate(torch.tensor([ids]), max_new_tokens=REPLY_TOKENS, do_sample=False)
        said = generated[0, len(ids) :].tolist()
        _same("greedy reply", ids, list(reply.tokens), [token for token in said if token not in stop])
    return {
        "max_abs_logit_difference": difference,
        "max_abs_logit": largest,
        "allowed": allowed,
        "texts": len(sequences) + len(prompts),
        "tokens": sum(map(len, [*sequences, *prompts])),
        "replies": len(prompts),
    }


def _same(what: str, of: object, ours: list[int], theirs: list[int]) -> None:
    if ours != theirs:
        raise RuntimeError(f"transformers gives another {what}: {theirs} for {ours}, of {of!r}")
