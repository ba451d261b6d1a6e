"""Chats and preference pairs as training batches. A batch is a pure function of its step; the rank's slice is taken last.

Steps run through the epochs without a break: when an epoch ends inside a step, the step goes on with the next epoch's order.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from moxin import storage
from moxin.align.packing import Example, best_fit_decreasing, example, row, stack
from moxin.recipe import DPOConfig, SFTConfig
from moxin.tokens.tokenizer import Tokenizer

PAD_MULTIPLE = 16
"""Preference rows are padded to a multiple of this many tokens: few distinct shapes, little padding."""


def chat_examples(rows: Sequence[Mapping[str, Any]], tokenizer: Tokenizer, context: int) -> list[Example]:
    """Chats `{id, messages}` as examples with a loss on what the assistant says.

    A chat of more than `context` + 1 tokens is left out: cut at the left it would answer an unseen question, cut at the
    right it would teach to stop in the middle. Raises `ValueError` where none is left or a chat has no assistant message.
    """
    examples = []
    for item in rows:
        ids, mask = tokenizer.render(item["messages"])
        if not any(mask):
            raise ValueError(
                f"chat {item['id']!r} has no assistant message: there is nothing to learn from it"
            )
        if len(ids) - 1 <= context:
            examples.append(example(ids, mask))
    if not examples:
        raise ValueError(f"none of {len(rows)} chats fits sft.context = {context} tokens; raise it")
    return examples


class ChatBatches:
    """Packed rows of chats (`moxin.train.job.Batches`). A step has `global_batch` tokens, padding counted."""

    def __init__(self, examples: Sequence[Example], config: SFTConfig, pad_id: int) -> None:
        self.examples, self.config, self.pad_id = examples, config, pad_id
        self.rows_per_step = config.global_batch // config.context
        self.rows_per_epoch = len(best_fit_decreasing([len(item) for item in examples], config.context))
        self.n_steps = math.ceil(config.epochs * self.rows_per_epoch / self.rows_per_step)
        self._epoch = lru_cache(maxsize=2)(self._pack)  # a step may end one epoch and begin the next

    def _pack(self, epoch: int) -> list[list[int]]:
        """The epoch's rows as indices of examples: shuffled, packed, and the rows shuffled."""
        rng = np.random.default_rng([self.config.seed, epoch])
        order = rng.permutation(len(self.examples))
        bins = best_fit_decreasing([len(self.examples[i]) for i in order], self.config.context)
        return [[int(order[i]) for i in bins[b]] for b in rng.permutation(len(bins))]

    def row(self, index: int) -> dict[str, np.ndarray]:
        """Row `index` of the endless sequence of epochs."""
        epoch, position = divmod(index, self.rows_per_epoch)
        members = [self.examples[i] for i in self._epoch(epoch)[position]]
        return row(members, self.config.context, self.pad_id)

    def step(self, i: int, rank: int, world: int) -> list[dict[str, np.ndarray]]:
        first, n = rank_slice(self.rows_per_step, rank, world)
        rows = [self.row(i * self.rows_per_step + first + k) for k in range(n)]
        return [stack(part) for part in chunks(rows, max(1, self.config.micro_batch // self.config.context))]

    def size(self, i: int) -> int:
        return self.rows_per_step * self.config.context


def chat_batches(tokenizer_url: str, chats_url: str, config: SFTConfig) -> ChatBatches:
    """The batches of a chat file, made inside a worker."""
    tokenizer = Tokenizer.load(tokenizer_url)
    examples = chat_examples(storage.read_jsonl(chats_url), tokenizer, config.context)
    return ChatBatches(examples, config, tokenizer.pad_id)


@dataclass(frozen=True)
class Pair:
    """A preferred and a rejected answer to one prompt; the loss counts the answers only."""

    id: str
    chosen: Example
    rejected: Example


def preference_pairs(rows: Sequence[Mapping[str, Any]], tokenizer: Tokenizer, context: int) -> list[Pair]:
    """Preferences `{id, prompt, chosen, rejected}` as pairs ordered by id.

    A pair with an answer that ends beyond `context` + 1 tokens is left out. Raises `ValueError` for two preferences with
    one id, and where none is left.
    """
    pairs: dict[str, Pair] = {}
    for item in rows:
        if item["id"] in pairs:
            raise ValueError(f"two preferences are called {item['id']!r}; give each its own id")
        answers = []
        for name in ("chosen", "rejected"):
            ids, mask = tokenizer.render([*item["prompt"], {"role": "assistant", "content": item[name]}])
            answers.append(example(ids, last_run(mask)))
        if max(map(len, answers)) <= context:
            pairs[item["id"]] = Pair(item["id"], *answers)
    if not pairs:
        raise ValueError(f"none of {len(rows)} preferences fits dpo.context = {context} tokens; raise it")
    return [pairs[key] for key in sorted(pairs)]


def last_run(mask: Sequence[bool]) -> list[bool]:
    """Of a mask only its last run of True: of a chat the last thing that the assistant says."""
    end = max(position for position, inside in enumerate(mask) if inside) + 1
    begin = max((position for position in range(end) if not mask[position]), default=-1) + 1
    return [begin <= position < end for position in range(len(mask))]


def stack_pairs(pairs: Sequence[Pair], pad_id: int) -> dict[str, np.ndarray]:
    """P pairs as one micro-batch of 2P rows, padded to the longest: the chosen answers first, then the rejected."""
    examples = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    width = math.ceil(max(map(len, examples)) / PAD_MULTIPLE) * PAD_MULTIPLE
    return stack([row([item], width, pad_id) for item in examples])


class PairBatches:
    """Preference pairs with the reference's log-probabilities (`moxin.train.job.Batches`).

    `reference` holds by id the frozen model's mean log-probability per token of the chosen and of the rejected answer.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        reference: Mapping[str, tuple[float, float]],
        config: DPOConfig,
        pad_id: int,
    ) -> None:
        self.pairs, self.reference, self.config, self.pad_id = pairs, reference, config, pad_id
        self.n_steps = math.ceil(config.epochs * len(pairs) / config.global_batch)
        self._epoch = lru_cache(maxsize=2)(
            lambda epoch: np.random.default_rng([config.seed, epoch]).permutation(len(pairs))
        )

    def pair(self, index: int) -> Pair:
        """Pair `index` of the endless sequence of epochs."""
        epoch, position = divmod(index, len(self.pairs))
        return self.pairs[self._epoch(epoch)[position]]

    def step(self, i: int, rank: int, world: int) -> list[dict[str, np.ndarray]]:
        first, n = rank_slice(self.config.global_batch, rank, world)
        pairs = [self.pair(i * self.config.global_batch + first + k) for k in range(n)]
        return [self._micro_batch(part) for part in chunks(pairs, self.config.micro_batch)]

    def _micro_batch(self, pairs: Sequence[Pair]) -> dict[str, np.ndarray]:
        known = np.array([self.reference[pair.id] for pair in pairs], np.float32)
        return {**stack_pairs(pairs, self.pad_id), "reference": known.T.reshape(-1)}

    def size(self, i: int) -> int:
        return self.config.global_batch


def pair_batches(
    tokenizer_url: str, preferences_url: str, reference_url: str, config: DPOConfig
) -> PairBatches:
    """The batches of a preference file and its table of reference log-probabilities, made inside a worker."""
    tokenizer = Tokenizer.load(tokenizer_url)
    pairs = preference_pairs(storage.read_jsonl(preferences_url), tokenizer, config.context)
    with storage.open_read(reference_url) as handle:
        columns = pq.read_table(handle).to_pydict()
    scores = zip(columns["chosen"], columns["rejected"], strict=True)
    return PairBatches(pairs, dict(zip(columns["id"], scores, strict=True)), config, tokenizer.pad_id)


def rank_slice(n: int, rank: int, world: int) -> tuple[int, int]:
    """Where the samples of `rank` begin among the `n` of a step, and how many they are."""
    if n % world:
        raise ValueError(f"{n} samples a step do not divide among {world} workers; change the global batch")
    return rank * (n // world), n // world


def chunks(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
