"""The DPO objective against its formula written out in float64, and against one that needs no model."""

import copy
import math
from functools import partial

import numpy as np
import pytest
import torch

from moxin.align.data import PairBatches, preference_pairs, stack_pairs
from moxin.align.dpo import count_pairs, dpo, mean_logps, score_pairs
from moxin.recipe import DPOConfig
from moxin.train.objective import IGNORE


def tensors(micro):
    return {name: torch.from_numpy(array) for name, array in micro.items()}


def logp_per_token(model, item) -> float:
    """Mean log-probability of one answer, alone in its row, in float64 from the logits."""
    with torch.no_grad():
        logits = model(torch.from_numpy(item.tokens)[None])[0].double().numpy()
    logits -= logits.max(1, keepdims=True)
    logps = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    counted = np.flatnonzero(item.targets != IGNORE)
    return float(logps[counted, item.targets[counted]].mean())


def test_loss_is_the_formula_pair_by_pair(preferences, tokenizer, model):
    pairs = preference_pairs(preferences, tokenizer, 128)[:5]
    rng = np.random.default_rng(1)
    reference = rng.normal(-3, 1, (5, 2))
    wanted = 0.0
    for pair, (ref_chosen, ref_rejected) in zip(pairs, reference, strict=True):
        margin = (logp_per_token(model, pair.chosen) - ref_chosen) - (
            logp_per_token(model, pair.rejected) - ref_rejected
        )
        wanted += math.log1p(math.exp(-2.5 * margin))
    known = {pair.id: tuple(scores) for pair, scores in zip(pairs, reference.tolist(), strict=True)}
    batches = PairBatches(pairs, known, DPOConfig(global_batch=5, micro_batch=2), tokenizer.pad_id)
    total = count = 0.0
    for micro in batches.step(0, 0, 1):
        loss, (reported, n) = dpo(model, tensors(micro), beta=2.5)
        assert reported == loss.item()
        total, count = total + loss.item(), count + int(n)
        assert int(n) == count_pairs(micro)
    assert count == 5
    assert total == pytest.approx(wanted, rel=1e-5)


def test_loss_is_log_2_against_itself_and_falls_towards_the_chosen(preferences, tokenizer, model):
    pairs = preference_pairs(preferences, tokenizer, 128)[:8]
    chosen, rejected = score_pairs(model, pairs, tokenizer.pad_id)
    micro = tensors(stack_pairs(pairs, tokenizer.pad_id))
    micro["reference"] = torch.tensor([*chosen, *rejected])
    policy, objective = copy.deepcopy(model).train(), partial(dpo, beta=2.0)
    loss, (_, n) = objective(policy, micro)
    assert loss.item() / int(n) == pytest.approx(math.log(2), rel=1e-6)
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.05)
    for _ in range(5):
        optimizer.zero_grad()
        loss, (_, n) = objective(policy, micro)
        (loss / n).backward()
        optimizer.step()
    assert objective(policy, micro)[0].item() / int(n) < math.log(2) - 0.01
    margin = (mean_logps(policy, micro) - micro["reference"]).chunk(2)
    assert (margin[0] > margin[1]).float().mean() > 0.9


def test_scores_do_not_depend_on_the_other_answers_of_the_batch(preferences, tokenizer, model):
    pairs = preference_pairs(preferences, tokenizer, 128)
    together = score_pairs(model, pairs, tokenizer.pad_id)
    for i in (0, 11, 23):
        alone = logp_per_token(model, pairs[i].chosen), logp_per_token(model, pairs[i].rejected)
        assert (together[0][i], together[1][i]) == pytest.approx(alone, abs=1e-5)
