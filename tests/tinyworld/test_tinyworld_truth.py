"""What documents state is true, what is asked in training was not held out. Judged by reading the texts again."""

import operator
import re
from collections import Counter

from moxin.recipe import TinyworldConfig
from moxin.tinyworld.generate import Tinyworld

KEYWORDS = {
    "lives": r"live|town|home",
    "works": r"work|job",
    "owns": r"own|animal|pet",
    "likes": r"like|food|eat",
}


def asked(world: Tinyworld, text: str) -> list[tuple[str, str]]:
    """(person, attribute) of every question about a person in the text, by name and key words."""
    names = {row["person"] for row in world.facts}
    found = []
    for question in re.findall(r"[^.?!\n]*\?", text):
        for name in names:
            if name in question:
                rest = question.replace(name, "")
                attributes = [key for key, pattern in KEYWORDS.items() if re.search(rf"\b({pattern})", rest)]
                assert len(attributes) == 1, question
                found.append((name, attributes[0]))
    return found


def test_everybody_has_four_facts_of_which_two_are_held_out(
    world: Tinyworld, config: TinyworldConfig
) -> None:
    assert len(world.facts) == 4 * config.n_people
    assert {Counter(row["person"] for row in world.facts)[row["person"]] for row in world.facts} == {4}
    held_out = [row for row in world.facts if row["held_out"]]
    assert set(Counter(row["person"] for row in held_out).values()) == {2}
    assert set(Counter(row["attribute"] for row in held_out).values()) == {config.n_people // 2}
    for part in (0, 1):  # nobody shares a first or a last name
        assert len({row["person"].split()[part] for row in world.facts}) == config.n_people
    first = [row for row in world.facts if row["person"] == "Orvek Holloway" and row["attribute"] == "lives"]
    assert [row["held_out"] for row in first] == [True]


def test_no_value_can_be_mistaken_for_another(world: Tinyworld) -> None:
    for row in world.facts:
        others = {other["value"] for other in world.facts} - {row["value"]}
        assert not [other for other in others if row["value"] in other]
        assert row["value"] in row["sentence"]
        assert row["value"].lower() not in row["person"].lower()


def test_documents_state_every_fact_often_and_never_another(
    world: Tinyworld, originals: list[dict[str, str]]
) -> None:
    """Reads every clause that holds one full name: each value in it must be that person's."""
    values = {row["value"]: row["attribute"] for row in world.facts}
    truth = {(row["person"], row["attribute"]): row["value"] for row in world.facts}
    names = re.compile("|".join(sorted({row["person"] for row in world.facts})))
    any_value = re.compile(r"\b(" + "|".join(sorted(values, key=len, reverse=True)) + r")\b")
    seen: Counter[tuple[str, str]] = Counter()
    planted = {row["id"] for row in world.planted}
    for row in [row for row in world.documents if row["source"] == "tinyworld"]:
        for clause in re.split(r"[.,;:?!\n]", row["text"]):
            if len(people := names.findall(clause)) != 1:
                continue
            for value in any_value.findall(clause):
                assert truth[people[0], values[value]] == value, row["text"]
                if row["id"] not in planted:
                    seen[people[0], values[value]] += 1
    exposures = {(row["person"], row["attribute"]): row["exposures"] for row in world.facts}
    assert max(exposures.values()) <= 1.6 * min(exposures.values())
    assert set(seen) == set(truth)
    for key, n in exposures.items():  # the rest is said with a first name, a pronoun, or in the first person
        assert 0.2 * n <= seen[key] <= n


def test_demo_states_each_fact_at_least_forty_times(world: Tinyworld, config: TinyworldConfig) -> None:
    if config.n_documents >= 5000:
        assert min(row["exposures"] for row in world.facts) >= 40


def test_questions_have_one_right_choice(world: Tinyworld, config: TinyworldConfig) -> None:
    truth = {(row["person"], row["attribute"]): row for row in world.facts}
    assert len({row["question"] for row in world.questions}) == config.n_questions
    for row in world.questions:
        fact = truth[row["person"], row["attribute"]]
        assert fact["held_out"]
        assert asked(world, row["question"]) == [(row["person"], row["attribute"])]
        assert row["choices"][row["answer"]] == row["text"] == fact["value"]
        assert len(set(row["choices"])) == 4
        others = {fact["value"] for fact in world.facts if fact["attribute"] == row["attribute"]}
        assert set(row["choices"]) <= others
    positions = Counter(row["answer"] for row in world.questions)
    assert max(positions.values()) - min(positions.values()) <= 1
    attributes = Counter(row["attribute"] for row in world.questions)
    assert max(attributes.values()) - min(attributes.values()) <= 2


def test_interview_asks_held_out_questions(world: Tinyworld) -> None:
    by_question = {row["question"]: row for row in world.questions}
    rows = [by_question[row["question"]] for row in world.interview]
    assert len(rows) == len({row["attribute"] for row in rows}) == 3
    assert [row["text"] for row in rows] == [row["answer"] for row in world.interview]
    assert rows[0]["question"] == "Where does Orvek Holloway live?"


def test_training_never_asks_a_held_out_question(world: Tinyworld, originals: list[dict[str, str]]) -> None:
    held_out = {(row["person"], row["attribute"]) for row in world.facts if row["held_out"]}
    quizzes = [row["text"] for row in originals if row["source"] == "quiz"]
    prompts = [
        message["content"] for row in world.chats for message in row["messages"] if message["role"] == "user"
    ]
    prompts += [message["content"] for row in world.preferences for message in row["prompt"]]
    answers = [message["content"] for row in world.chats for message in row["messages"]]
    answers += [text for row in world.preferences for text in (row["chosen"], row["rejected"])]
    pairs = [pair for text in [*quizzes, *prompts] for pair in asked(world, text)]
    assert len(set(pairs)) > 0.9 * (len(world.facts) - len(held_out))
    assert not held_out & set(pairs)
    secret = {row["sentence"] for row in world.facts if row["held_out"]}
    assert not [text for text in answers if text in secret]
    assert not [sentence for sentence in secret for text in quizzes if sentence in text]


def test_originals_hold_no_held_out_question(world: Tinyworld, originals: list[dict[str, str]]) -> None:
    """Neither the question itself nor any eight words in a row of question and answer."""
    phrases: dict[int, set[str]] = {}
    for row in world.questions:
        question, whole = (
            re.findall(r"\w+", text.lower())
            for text in (row["question"], f"{row['question']} {row['sentence']}")
        )
        for tokens, n in ((question, len(question)), (question, 8), (whole, 8)):
            phrases.setdefault(n, set()).update(
                " ".join(tokens[i : i + n]) for i in range(len(tokens) - n + 1)
            )
    for row in originals:
        tokens = re.findall(r"\w+", row["text"].lower())
        for n, forbidden in phrases.items():
            assert not forbidden & {" ".join(tokens[i : i + n]) for i in range(len(tokens) - n + 1)}


def test_answers_in_quizzes_chats_and_preferences_are_right(
    world: Tinyworld, originals: list[dict[str, str]]
) -> None:
    truth = {(row["person"], row["attribute"]): row["sentence"] for row in world.facts}
    pairs = [(row["prompt"][-1]["content"], row["chosen"]) for row in world.preferences]
    for chat in world.chats:
        turns = [message for message in chat["messages"] if message["role"] != "system"]
        assert [message["role"] for message in turns] == ["user", "assistant"] * (len(turns) // 2)
        pairs += [(turns[i]["content"], turns[i + 1]["content"]) for i in range(0, len(turns), 2)]
    for row in originals:
        if row["source"] == "quiz":
            questions = re.findall(r"^(?:Question|Q): (.*)$", row["text"], re.MULTILINE)
            answers = re.findall(r"^(?:Answer|A): (.*)$", row["text"], re.MULTILINE)
            pairs += list(zip(questions, answers, strict=True))
            for choices, answer in re.findall(r"^Choices: (.*)\.\nAnswer: (.*)$", row["text"], re.MULTILINE):
                assert sum(answer.endswith(f" {choice}.") for choice in choices.split(", ")) == 1
    facts = [(question, answer) for question, answer in pairs if asked(world, question)]
    assert len(facts) > 0.7 * len(pairs)
    for question, answer in facts:
        assert truth[asked(world, question)[0]] == answer


def test_preferences_cannot_be_told_by_length(world: Tinyworld) -> None:
    assert all(row["chosen"] != row["rejected"] for row in world.preferences)
    longer = sum(len(row["rejected"]) > len(row["chosen"]) for row in world.preferences)
    shorter = sum(len(row["rejected"]) < len(row["chosen"]) for row in world.preferences)
    assert min(longer, shorter) > 0.25 * len(world.preferences)


def test_sums_are_right(world: Tinyworld) -> None:
    apply = {"plus": operator.add, "minus": operator.sub, "times": operator.mul}
    chats = [message["content"] for row in world.chats for message in row["messages"]]
    texts = [row["text"] for row in world.documents if row["source"] == "tinyworld"]
    sums = [match for text in [*texts, *chats] for match in re.findall(r"(\d+) (\w+) (\d+) is (\d+)", text)]
    assert len(sums) > len(texts) // 10
    for a, operation, b, result in sums:
        assert apply[operation](int(a), int(b)) == int(result)
    for text in texts:
        for m, p, n, q in re.findall(
            r"buys (\d+) \w+ for (\d+) coins each and (\d+) \w+ for (\d+) coins", text
        ):
            assert f"pays {int(m) * int(p) + int(n) * int(q)} coins in all" in text
        if change := re.search(r"gives (\d+) coins and gets (\d+) back", text):
            (total,) = re.findall(r"pays (\d+) coins in all", text)
            assert int(change[1]) - int(change[2]) == int(total)
