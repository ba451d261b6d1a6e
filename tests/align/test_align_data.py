"""What SFT learns from, how it is packed, and that a step is a pure function."""

import numpy as np
import pytest
import torch

from moxin.align.data import ChatBatches, PairBatches, chat_examples, preference_pairs
from moxin.align.packing import best_fit_decreasing, row, stack
from moxin.recipe import DPOConfig, SFTConfig
from moxin.train.objective import IGNORE, next_token

SFT = SFTConfig(epochs=2, context=96, global_batch=4 * 96, micro_batch=96, seed=3)


def test_loss_counts_exactly_what_the_assistant_says(chats, tokenizer):
    for chat, item in zip(chats, chat_examples(chats, tokenizer, 1000), strict=True):
        counted = item.targets[item.targets != IGNORE].tolist()
        said = [m["content"] + "<|end|>" for m in chat["messages"] if m["role"] == "assistant"]
        assert tokenizer.decode(counted, skip_special=False) == "".join(said)
        assert np.array_equal(
            item.targets[:-1][item.targets[:-1] != IGNORE], item.tokens[1:][item.targets[:-1] != IGNORE]
        )


def test_too_long_chats_are_left_out_and_useless_ones_are_errors(chats, tokenizer):
    lengths = [len(tokenizer.render(chat["messages"])[0]) for chat in chats]
    context = sorted(lengths)[20] - 1
    assert len(chat_examples(chats, tokenizer, context)) == sum(n - 1 <= context for n in lengths)
    with pytest.raises(ValueError, match=r"none of 40 chats fits sft.context = 4"):
        chat_examples(chats, tokenizer, 4)
    with pytest.raises(ValueError, match="'mute' has no assistant message"):
        chat_examples([{"id": "mute", "messages": chats[1]["messages"][:1]}], tokenizer, 96)


def test_best_fit_decreasing_is_a_packing_and_near_the_bound():
    lengths = np.random.default_rng(0).integers(1, 100, 2000).tolist()
    bins = best_fit_decreasing(lengths, 128)
    assert sorted(i for members in bins for i in members) == list(range(2000))
    assert max(sum(lengths[i] for i in members) for members in bins) <= 128
    assert len(bins) <= 1.02 * sum(lengths) / 128
    assert best_fit_decreasing([4, 8, 1, 4, 2, 1], 10) == [[1, 4], [0, 3, 2, 5]]  # a textbook case


def test_every_epoch_holds_every_chat_once_in_an_order_of_its_own(chats, tokenizer):
    batches = ChatBatches(chat_examples(chats, tokenizer, SFT.context), SFT, tokenizer.pad_id)

    def epoch(number: int) -> list[tuple[int, ...]]:
        rows = [batches.row(number * batches.rows_per_epoch + k) for k in range(batches.rows_per_epoch)]
        return [tuple(r["tokens"][r["segments"] == s]) for r in rows for s in range(r["segments"].max() + 1)]

    wanted = sorted(tuple(item.tokens) for item in batches.examples)
    assert sorted(epoch(0)) == sorted(epoch(1)) == wanted
    assert epoch(0) != epoch(1)
    assert batches.n_steps * batches.rows_per_step >= SFT.epochs * batches.rows_per_epoch
    assert batches.size(0) == SFT.global_batch


def test_a_step_does_not_depend_on_history_or_on_the_number_of_workers(chats, tokenizer):
    examples = chat_examples(chats, tokenizer, SFT.context)
    batches, fresh = (ChatBatches(examples, SFT, tokenizer.pad_id) for _ in range(2))
    history = [batches.step(i, 0, 1) for i in range(batches.n_steps)]
    for i in (batches.n_steps - 1, 2):
        alone = np.concatenate([micro["tokens"] for micro in history[i]])
        halves = [micro["tokens"] for rank in range(2) for micro in fresh.step(i, rank, 2)]
        assert np.array_equal(alone, np.concatenate(halves))
    assert all(micro["tokens"].shape == (1, 96) for micro in history[0])
    with pytest.raises(ValueError, match="do not divide among 3 workers"):
        batches.step(0, 0, 3)


def test_packed_rows_give_the_loss_of_the_chats_alone(chats, tokenizer, model):
    examples = chat_examples(chats, tokenizer, 96)
    members = best_fit_decreasing([len(item) for item in examples], 96)

    def loss(groups: list[list[int]]) -> tuple[float, int]:
        total, count = 0.0, 0
        for group in groups:
            micro = stack([row([examples[i] for i in group], 96, tokenizer.pad_id)])
            loss, sums = next_token(model, {name: torch.from_numpy(array) for name, array in micro.items()})
            assert loss.item() == pytest.approx(sums[0].item(), rel=1e-6)
            total, count = total + sums[0].item(), count + int(sums[1])
        return total, count

    with torch.no_grad():
        packed, alone = loss(members), loss([[i] for i in range(len(examples))])
    assert max(map(len, members)) > 1
    assert packed[1] == alone[1]
    assert packed[0] == pytest.approx(alone[0], rel=1e-5)


def test_pairs_count_the_answer_only_and_come_by_id(preferences, tokenizer):
    pairs = preference_pairs(preferences, tokenizer, 128)
    assert [pair.id for pair in pairs] == sorted(row["id"] for row in preferences)
    by_id = {row["id"]: row for row in preferences}
    for pair in pairs:
        for name in ("chosen", "rejected"):
            item = getattr(pair, name)
            counted = item.targets[item.targets != IGNORE].tolist()
            assert tokenizer.decode(counted, skip_special=False) == by_id[pair.id][name] + "<|end|>"
    with pytest.raises(ValueError, match="two preferences are called 'preference-00'"):
        preference_pairs([preferences[0], preferences[0]], tokenizer, 128)


def test_pair_batches_carry_the_reference_of_their_own_pairs(preferences, tokenizer):
    config = DPOConfig(epochs=2, global_batch=8, micro_batch=3)
    pairs = preference_pairs(preferences, tokenizer, config.context)
    reference = {pair.id: (-float(len(pair.chosen)), -float(len(pair.rejected))) for pair in pairs}
    batches = PairBatches(pairs, reference, config, tokenizer.pad_id)
    assert batches.n_steps == 2 * len(pairs) // 8
    seen = []
    for i in range(batches.n_steps // 2):
        for rank in range(2):
            for micro in batches.step(i, rank, 2):
                assert micro["tokens"].shape[1] % 16 == 0
                assert np.array_equal(-micro["reference"], (micro["segments"] == 0).sum(1))
                seen += [tuple(row[row >= 0]) for row in micro["targets"][: len(micro["tokens"]) // 2]]
    assert sorted(seen) == sorted(tuple(pair.chosen.targets[pair.chosen.targets >= 0]) for pair in pairs)
