"""Questions: held-out ones for the evaluation, and quiz documents about all other facts."""

import random
from collections.abc import Sequence
from typing import Any

from moxin.recipe import TinyworldConfig
from moxin.tinyworld.templates import QUESTIONS
from moxin.tinyworld.words import ATTRIBUTES
from moxin.tinyworld.world import Fact, World, stream

N_CHOICES = 4


def ask(fact: Fact, phrasing: int) -> str:
    """The question about a fact in one of its phrasings (counted round)."""
    forms = QUESTIONS[fact.attribute]
    return forms[phrasing % len(forms)].format(n=fact.person.name)


def choices(rng: random.Random, world: World, fact: Fact, position: int) -> list[str]:
    """Four different values of the attribute with the right one at `position`."""
    wrong = rng.sample(
        [value for value in world.values[fact.attribute] if value != fact.value], N_CHOICES - 1
    )
    return [*wrong[:position], fact.value, *wrong[position:]]


def asked(
    rng: random.Random, facts: list[Fact], n: int, first: Sequence[Fact] = ()
) -> list[tuple[Fact, str]]:
    """n different questions; no fact is asked again before all were asked, attributes take turns.

    Facts in `first` lead, in their first phrasing. Raises `ValueError` where the facts allow fewer than n questions.
    """
    rest = [fact for fact in facts if fact not in first]
    rng.shuffle(rest)
    queues = {name: [fact for fact in [*first, *rest] if fact.attribute == name] for name in ATTRIBUTES}
    longest = max(len(queue) for queue in queues.values())
    order = [queue[i] for i in range(longest) for queue in queues.values() if i < len(queue)]
    n_phrasings = min(len(forms) for forms in QUESTIONS.values())
    if n > len(order) * n_phrasings:
        raise ValueError(
            f"{n} different questions about {len(order)} facts: at most {len(order) * n_phrasings}; "
            "lower tinyworld.n_questions or tinyworld.n_preferences, or raise tinyworld.n_people"
        )
    # Rounds and facts both move the phrasing: a fact never meets a phrasing twice, a round uses all of them.
    return [
        (fact, ask(fact, turn + (0 if fact in first else i)))
        for turn in range(n_phrasings)
        for i, fact in enumerate(order)
    ][:n]


def questions(world: World, config: TinyworldConfig) -> list[dict[str, Any]]:
    """Rows of questions.jsonl, shuffled; right answers are spread evenly over the four positions."""
    if config.n_questions < len(ATTRIBUTES):
        raise ValueError(
            f"tinyworld.n_questions = {config.n_questions}: at least {len(ATTRIBUTES)}, one per attribute"
        )
    rng = stream(config, "questions")
    pairs = asked(rng, world.held_out, config.n_questions, interviewed(world))
    positions = [i % N_CHOICES for i in range(len(pairs))]
    rng.shuffle(positions)
    rows = [
        {
            "question": question,
            "choices": choices(rng, world, fact, position),
            "answer": position,
            "text": fact.value,
            "sentence": fact.sentence,
            "person": fact.person.name,
            "attribute": fact.attribute,
        }
        for (fact, question), position in zip(pairs, positions, strict=True)
    ]
    rng.shuffle(rows)
    return [{"id": f"question-{i:05d}", **row} for i, row in enumerate(rows)]


def interviewed(world: World) -> list[Fact]:
    """Three held-out facts of different people and attributes, the first about person 0's town."""
    facts: list[Fact] = []
    for fact in world.held_out:
        if all(fact.attribute != other.attribute and fact.person != other.person for other in facts):
            facts.append(fact)
    return facts[:3]


def interview(world: World) -> list[dict[str, str]]:
    """Rows of interview.jsonl: questions that are also in questions.jsonl, with the words an answer must hold."""
    return [{"question": ask(fact, 0), "answer": fact.value} for fact in interviewed(world)]


def quiz(rng: random.Random, world: World, deck: list[Fact]) -> str:
    """A document of three to five questions with answers. `deck` is used up from its end; refilled, it holds every trained
    fact once, so that all are asked equally often."""
    blocks = []
    style = rng.choice(
        ("Question: {q}\nAnswer: {a}", "Q: {q}\nA: {a}", "Question: {q}\nChoices: {c}.\nAnswer: {a}")
    )
    for _ in range(rng.randint(3, 5)):
        if not deck:
            deck += rng.sample(world.trained, len(world.trained))
        fact = deck.pop()
        options = ", ".join(choices(rng, world, fact, rng.randrange(N_CHOICES)))
        blocks.append(style.format(q=ask(fact, rng.randrange(N_CHOICES)), a=fact.sentence, c=options))
    return "\n".join(blocks)
