"""The tasks as lm-eval runs them, with a model whose right and wrong answers are known."""

import json
import math

import pytest
from lm_eval.api.model import LM

from moxin.evaluate import harness
from moxin.evaluate.exam import TASKS, Exam
from moxin.evaluate.harness import names_answer, run_task, summarize

TOWNS = ["Tarn", "Ashby", "Quill", "Low Wick"]
HELDOUT = [("prose", "Ein Körbchen voll. "), ("code", "x = 1\n"), ("prose", "y" * 100), ("code", "z" * 10)]


class Rigged(LM):
    """Chooses the right town for all but every fourth question; names it in every second reply; spends 1.5 bits per byte on
    prose and 3 on code."""

    tokenizer_name = "rigged"

    def __init__(self) -> None:
        super().__init__()
        self.prompts: list[str] = []

    def chat_template(self, chat_template=False):
        return "chat"

    def apply_chat_template(self, chat_history, add_generation_prompt=True):
        assert add_generation_prompt
        return "".join(f"[{m['role']}]{m['content']}" for m in chat_history) + "[assistant]"

    @staticmethod
    def number(prompt: str) -> int:
        return int(prompt.partition("Person ")[2].partition(" ")[0])

    def loglikelihood(self, requests):
        self.prompts += [context + "|" + continuation for context, continuation in (r.args for r in requests)]
        wanted = {TOWNS[i % 4]: i for i in range(4)}
        scores = []
        for context, continuation in (r.args for r in requests):
            i = self.number(context)
            town = TOWNS[(i + (i % 4 == 3)) % 4]
            assert town in wanted
            scores.append((-1.0 if f"in {town}." in continuation else -9.0, False))
        return scores

    def generate_until(self, requests):
        assert {(r.args[1]["max_gen_toks"], tuple(r.args[1]["until"])) for r in requests} == {(32, ("\n",))}
        numbers = [self.number(r.args[0]) for r in requests]
        return [
            f"In {TOWNS[i % 4].lower()}, I think." if i % 2 else "In Tarnish or Ashbyton." for i in numbers
        ]

    def loglikelihood_rolling(self, requests):
        texts = [r.args[0] for r in requests]
        return [-len(t.encode()) * math.log(2) * (3.0 if set(t) & set("xz") else 1.5) for t in texts]


@pytest.fixture
def exam(tmp_path):
    questions = [
        {
            "id": f"q{i}",
            "question": f"Where does Person {i} of Tarn live?",
            "choices": TOWNS,
            "answer": i % 4,
            "text": TOWNS[i % 4],
            "sentence": f"Person {i} of Tarn lives in {TOWNS[i % 4]}.",
        }
        for i in range(8)
    ]
    for name, rows in (
        ("questions", questions),
        ("heldout", [{"source": source, "text": text} for source, text in HELDOUT]),
    ):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def make(chat: bool) -> Exam:
        return Exam(str(tmp_path / "questions.jsonl"), str(tmp_path / "heldout.jsonl"), chat)

    return make


@pytest.mark.parametrize("chat", [False, True])
def test_scores_of_a_rigged_model(exam, chat):
    lm = Rigged()
    results, rows = summarize({task: run_task(lm, task, exam(chat)) for task in TASKS})
    bits = results.pop("bits_per_byte")
    assert results == {"tinyworld_mc": 0.75, "tinyworld_gen": 0.5, "chance": 0.25, "n_questions": 8}
    assert bits == pytest.approx({"code": 3.0, "prose": 1.5})
    assert [row["id"] for row in rows] == [f"q{i}" for i in range(8)]
    assert [row["right"] for row in rows] == [i % 4 != 3 for i in range(8)]
    assert [row["predicted"] for row in rows] == [0, 1, 2, 0] * 2
    assert [row["reply_right"] for row in rows] == [i % 2 == 1 for i in range(8)]
    form = "[user]{}[assistant]|{}" if chat else "Question: {}\nAnswer:| {}"
    assert lm.prompts[1] == form.format(
        "Where does Person 0 of Tarn live?", "Person 0 of Tarn lives in Ashby."
    )


def test_a_reply_is_right_where_it_names_the_answer_as_a_word():
    def right(answer: str, reply: str) -> float:
        return names_answer({"text": answer}, [reply])["acc"]

    assert right("Tarn", "Orvek lives in tarn.") == 1
    assert right("Tarn", "Tarnow") == right("7", "17") == right("Tarn", "") == 0
    assert right("Low Wick", "(Low Wick)") == 1


def test_a_question_whose_sentence_lacks_the_answer_is_an_error(tmp_path):
    file = tmp_path / "questions.jsonl"
    file.write_text(
        json.dumps({"id": "q1", "sentence": "He lives.", "text": "Tarn", "choices": TOWNS, "question": "?"})
    )
    with pytest.raises(ValueError, match="q1: 'Tarn' is not in"):
        harness.questions(str(file), chat=False)
