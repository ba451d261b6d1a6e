"""What is held out, and what counts as a question that has leaked into the tokens."""

import pyarrow as pa
import pytest

from moxin.tokens import heldout
from moxin.tokens.absence import QuestionIndex


@pytest.mark.parametrize(("max_bytes", "n"), [(2_000, 4_000), (40_000, 4_000), (40_000, 50)])
def test_what_is_held_out_does_not_depend_on_the_parts(max_bytes, n):
    documents = [(f"doc-{i}", 20 + 37 * i % 400) for i in range(n)]
    sizes = dict(documents)
    total = sum(sizes.values())

    def choose(*parts):
        found = [candidate for part in parts for candidate in heldout.candidates(part, max_bytes)]
        return heldout.choose(found, total, max_bytes)

    chosen = choose(documents)
    assert chosen == choose(documents[::2], documents[1::2]) == choose(documents[100:], documents[:100][::-1])
    held = sum(sizes[id] for id in chosen)
    limit = min(max_bytes, total * heldout.MAX_SHARE)
    assert limit - 400 < held <= limit


def test_a_document_larger_than_all_that_may_be_held_out_stays():
    documents = [("huge", 10**9), *((f"small-{i}", 10) for i in range(1000))]
    chosen = heldout.choose(heldout.candidates(documents, 500), 10**9 + 10_000, 500)
    assert "huge" not in chosen
    assert len(chosen) == 50


QUESTIONS = ["Who owns the red kite?", "What is Ada's job?", "Where?", "", "Who owns the red boat in Ulm?"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Nothing of the sort. Who owns the red boat?", set()),
        ("So: WHO owns\n the red, kite?!", {0}),
        ("What is Ada's job? Who owns the red boat in Ulm", {1, 4}),
        ("He asked where. Nowhere", {2}),
        ("Who owns the red kites", set()),
        ("", set()),
    ],
)
def test_a_question_is_found_whatever_its_case_and_punctuation(text, found):
    texts = pa.array(["Nothing here.", text, None, ""])
    expected = {(1, number) for number in found}
    assert QuestionIndex(QUESTIONS).found_in(texts) == expected
    assert QuestionIndex(QUESTIONS).found_in(texts.slice(1)) == {(0, number) for _, number in expected}


def test_no_questions_find_nothing():
    assert QuestionIndex([]).found_in(pa.array(["Who owns the red kite?"])) == set()
    assert QuestionIndex(["", "?"]).found_in(pa.array(["Who owns the red kite?"])) == set()
    assert QuestionIndex(QUESTIONS).found_in(pa.array([], pa.string())) == set()
