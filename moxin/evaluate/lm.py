"""Our model as a language model of lm-eval (https://github.com/EleutherAI/lm-evaluation-harness).

lm-eval hands prompts over as strings. A chat rendered as a string could not be encoded again, because text never becomes
control tokens; so every rendered prompt is kept with its token ids, and prompts are looked up before they are encoded.
"""

from collections.abc import Sequence

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch.nn import functional as F

from moxin.infer.generate import generate
from moxin.infer.sampling import SamplingParams
from moxin.model.decoder import Decoder
from moxin.tokens.tokenizer import Tokenizer


class MoxinLM(LM):
    """A decoder and its tokenizer. Every request begins with `<s>`, as every training sequence did.

    `batch_size` rows go through the model at once. Requests longer than the model's `max_seq_len` lose their beginning.
    """

    def __init__(self, model: Decoder, tokenizer: Tokenizer, batch_size: int) -> None:
        super().__init__()
        self.model, self.tokens, self.batch_size = model.eval(), tokenizer, batch_size
        self.max_length = model.config.max_seq_len
        self._device = next(model.parameters()).device
        self._rendered: dict[str, list[int]] = {}

    @property
    def tokenizer_name(self) -> str:
        return "moxin"

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return self.tokens.chat_template if chat_template else None

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        ids, _ = self.tokens.render(chat_history, add_generation_prompt=add_generation_prompt)
        text = self.tokens.decode(ids, skip_special=False)
        if self._rendered.setdefault(text, ids) != ids:
            raise ValueError(f"two chats are rendered as the same text {text!r} with different tokens")
        return text

    def prompt(self, text: str) -> list[int]:
        """Token ids of a prompt: those of the chat it was rendered from, else the text as a document begins."""
        return self._rendered.get(text) or self.tokens.begin(text)

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Log-probability of each continuation after its context, and whether it is what greedy decoding would say."""
        pairs = []
        for context, continuation in (request.args for request in requests):
            stripped = context if context in self._rendered else context.rstrip()
            # A space at the end belongs to the word after it, as the tokenizer learned words.
            ids = self.prompt(stripped)
            pairs.append((ids, self.tokens.encode(context[len(stripped) :] + continuation)))
        return self._score(pairs)

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Log-probability of whole texts: windows of `max_seq_len` tokens, each token predicted exactly once."""
        pairs, owners = [], []
        for number, (text,) in enumerate(request.args for request in requests):
            windows = get_rolling_token_windows(
                self.tokens.encode(text), self.tokens.begin("")[0], self.max_length, 1
            )
            for window in windows:
                pairs.append(make_disjoint_window(window))
                owners.append(number)
        totals = [0.0] * len(requests)
        for owner, (logp, _) in zip(owners, self._score(pairs), strict=True):
            totals[owner] += logp
        return totals

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Replies, greedy unless `do_sample`; they end at a stop string of `until`, `<|end|>` or `</s>`."""
        replies = [""] * len(requests)
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(number)
        for members in groups.values():
            options = requests[members[0]].args[1]
            until = options.get("until", [])
            params = SamplingParams(
                max_tokens=min(options.get("max_gen_toks", 256), self.max_length // 2),
                temperature=options.get("temperature", 1.0) if options.get("do_sample") else 0.0,
                seed=0,
                stop_ids=(self.tokens.eos_id, self.tokens.end_id),
                stop=tuple([until] if isinstance(until, str) else until),
            )
            room = self.max_length - params.max_tokens
            prompts = [self.prompt(requests[i].args[0])[-room:] for i in members]
            done = generate(self.model, self.tokens, prompts, params, self.batch_size)
            for number, completion in zip(members, done, strict=True):
                replies[number] = completion.text
        return replies

    @torch.inference_mode()
    def _score(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """(log-probability, is greedy) of the continuation of every (context, continuation), both in token ids."""
        scores = [(0.0, True)] * len(pairs)
        order = sorted(
            range(len(pairs)), key=lambda i: -sum(map(len, pairs[i]))
        )  # rows of like length together
        for start in range(0, len(order), self.batch_size):
            members = order[start : start + self.batch_size]
            rows = [(pairs[i][0] + pairs[i][1])[-self.max_length - 1 :] for i in members]
            # Padding stands on the right, where causal attention lets no token see it.
            tokens_BT = torch.full((len(rows), max(map(len, rows)) - 1), self.tokens.pad_id)
            for b, ids in enumerate(rows):
                tokens_BT[b, : len(ids) - 1] = torch.tensor(ids[:-1])
            logits_BTV = self.model(tokens_BT.to(self._device))
            for b, (i, ids) in enumerate(zip(members, rows, strict=True)):
                n = len(pairs[i][1])
                if n >= len(ids):
                    raise ValueError(f"a continuation of {n} tokens exceeds the model's {self.max_length}")
                said_N = torch.tensor(ids[-n:] if n else [], dtype=torch.int64, device=self._device)
                logps_NV = F.log_softmax(logits_BTV[b, len(ids) - 1 - n : len(ids) - 1].float(), dim=-1)
                logp = logps_NV.gather(1, said_N[:, None]).double().sum().item()
                scores[i] = (logp, bool((logps_NV.argmax(1) == said_N).all()))
        return scores
