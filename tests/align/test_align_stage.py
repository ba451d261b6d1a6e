"""The pass of the frozen model over the preferences, by Ray Data."""

import json

import pytest

from moxin import recipes
from moxin.align.data import preference_pairs
from moxin.align.dpo import score_pairs
from moxin.align.run import SCORE_BATCH, preference_accuracy, score
from moxin.model import checkpoint


@pytest.mark.slow
def test_reference_scores_are_those_of_the_model_in_this_process(
    ray_session, preferences, tokenizer, model, tmp_path
):
    checkpoint.save(model, model.config, str(tmp_path / "model"))
    tokenizer.save(str(tmp_path / "tokenizer"))
    recipe = recipes.load("smoke")
    assert len(preferences) > SCORE_BATCH
    urls = str(tmp_path / "model"), str(tmp_path / "tokenizer")
    first, again = (score(recipe, *urls, preferences, "reference").to_pydict() for _ in range(2))
    pairs = preference_pairs(preferences, tokenizer, recipe.dpo.context)
    assert json.dumps(first) == json.dumps(again)  # to the bit
    assert first["id"] == [pair.id for pair in pairs]
    here = score_pairs(model, pairs, tokenizer.pad_id)
    assert (first["chosen"], first["rejected"]) == (pytest.approx(here[0]), pytest.approx(here[1]))
    wanted = sum(c > r for c, r in zip(*here, strict=True)) / len(pairs)
    assert preference_accuracy(score(recipe, *urls, preferences, "again")) == wanted
