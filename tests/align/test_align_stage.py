"""The pass of the frozen model over the preferences, by Ray Data."""

import pyarrow as pa
import pytest

from moxin import recipes
from moxin.align import run
from moxin.align.data import chunks, preference_pairs
from moxin.align.dpo import score_pairs
from moxin.align.run import preference_accuracy, score
from moxin.model import checkpoint


@pytest.mark.slow
def test_reference_scores_are_those_of_the_model_in_this_process(
    ray_session, preferences, tokenizer, model, tmp_path, monkeypatch
):
    monkeypatch.setattr(run, "SCORE_BATCH", 5)
    monkeypatch.setattr(run, "BATCHES_PER_ACTOR", 1)  # two actors, five batches
    checkpoint.save(model, model.config, str(tmp_path / "model"))
    tokenizer.save(str(tmp_path / "tokenizer"))
    recipe = recipes.load("smoke")
    found = score(recipe, str(tmp_path / "model"), str(tmp_path / "tokenizer"), preferences, "reference")
    pairs = preference_pairs(preferences, tokenizer, recipe.dpo.context)
    wanted = [score_pairs(model, part, tokenizer.pad_id) for part in chunks(pairs, 5)]
    assert found["id"].to_pylist() == [pair.id for pair in pairs]
    assert found["chosen"].to_pylist() == [logp for chosen, _ in wanted for logp in chosen]
    assert found["rejected"].to_pylist() == [logp for _, rejected in wanted for logp in rejected]


def test_preference_accuracy_is_the_share_of_pairs_with_a_likelier_chosen_answer():
    assert (
        preference_accuracy(
            pa.table({"chosen": [-1.0, -3.0, -2.0, -1.0], "rejected": [-2.0, -1.0, -2.0, -4.0]})
        )
        == 0.5
    )
