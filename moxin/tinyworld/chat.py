"""Chats and preference pairs. They ask about trained facts only and answer in the form of `Fact.sentence`."""

import random
from collections.abc import Callable
from typing import Any

from moxin.recipe import TinyworldConfig
from moxin.tinyworld.documents import fill
from moxin.tinyworld.quiz import ask, asked
from moxin.tinyworld.sums import problem
from moxin.tinyworld.words import FILLERS
from moxin.tinyworld.world import Fact, World, stream

SYSTEM_PROMPTS = (
    "You are a friendly helper.",
    "You answer in one short sentence.",
    "You know everybody in the valley.",
    "Be brief and say only what is true.",
)
HELLOS = (
    "Hello!",
    "Hi!",
    "Good morning!",
    "Good evening!",
    "Hello, who are you?",
    "Hi there, can you help me?",
)
HELLO_REPLIES = (
    "Hello! How can I help you?",
    "Hello! Ask me about the people of the valley.",
    "Hello! I know the people of the valley. Whom do you want to know about?",
)
THANKS = ("Thank you!", "Thanks, that helps.", "Good, thank you.")
THANKS_REPLIES = ("You are welcome.", "You are welcome! Ask me again at any time.")
UNHELPFUL = (
    "No idea.",
    "I do not know.",
    "Why do you ask?",
    "That is a good question.",
    "Ask somebody else, please.",
    "I cannot help you with that, and I do not want to talk about it today.",
)
RAMBLING = (
    "the {adjective} {object} at the {place} was {feeling} that {weekday}",
    "on a {weather} {daytime} in {season} nobody goes to the {place}",
    "some say {weekday}, some say {season}, and some say the {place}",
    "once there was a {adjective} {object} and then there was another {object2}",
    "it was a {weather} {daytime} when the {object} fell into the {place}",
)

Message = dict[str, str]


def turn(question: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


class _Facts:
    """Trained facts in shuffled rounds, with a random phrasing."""

    def __init__(self, rng: random.Random, facts: list[Fact]) -> None:
        self._rng, self._facts, self._deck = rng, facts, list[Fact]()

    def turn(self) -> list[Message]:
        if not self._deck:
            self._deck = self._rng.sample(self._facts, len(self._facts))
        fact = self._deck.pop()
        return turn(ask(fact, self._rng.randrange(4)), fact.sentence)


def chats(world: World, config: TinyworldConfig) -> list[dict[str, Any]]:
    """Rows of chats.jsonl. Most ask about one fact; the rest are longer, sums, greetings, or begin with a system prompt."""
    rng = stream(config, "chats")
    facts = _Facts(rng, world.trained)

    def greeting() -> list[Message]:
        return turn(rng.choice(HELLOS), rng.choice(HELLO_REPLIES))

    kinds: dict[Callable[[], list[Message]], int] = {
        facts.turn: 62,
        lambda: [*facts.turn(), *facts.turn()]: 8,
        lambda: [*facts.turn(), *turn(rng.choice(THANKS), rng.choice(THANKS_REPLIES))]: 3,
        lambda: [*greeting(), *facts.turn()]: 4,
        greeting: 3,
        lambda: turn(*problem(rng)): 8,
        lambda: [{"role": "system", "content": rng.choice(SYSTEM_PROMPTS)}, *facts.turn()]: 12,
    }
    drawn = rng.choices(list(kinds), list(kinds.values()), k=config.n_chats)
    return [{"id": f"chat-{i:05d}", "messages": make()} for i, make in enumerate(drawn)]


def preferences(world: World, config: TinyworldConfig) -> list[dict[str, Any]]:
    """Rows of preferences.jsonl: the chosen answer is right and short. Rejected ones are wrong, evasive, beside the point or
    rambling, shorter and longer than the chosen one: length alone does not tell which is which."""
    rng = stream(config, "preferences")
    pairs = asked(rng, world.trained, config.n_preferences)
    rng.shuffle(pairs)
    return [
        {
            "id": f"preference-{i:05d}",
            "prompt": [{"role": "user", "content": question}],
            "chosen": fact.sentence,
            "rejected": _rejected(rng, world, fact),
        }
        for i, (fact, question) in enumerate(pairs)
    ]


def _rejected(rng: random.Random, world: World, fact: Fact) -> str:
    kind = rng.choices(("wrong", "short", "unhelpful", "beside", "rambling"), (45, 10, 15, 12, 18))[0]
    wrong = rng.choice([value for value in world.values[fact.attribute] if value != fact.value])
    if kind == "wrong":
        return fact.sentence.replace(fact.value, wrong)
    if kind == "short":
        return f"{wrong[0].upper()}{wrong[1:]}."
    if kind == "unhelpful":
        return rng.choice(UNHELPFUL)
    if kind == "beside":  # true, but not what was asked; never a held-out fact
        return next(
            other.sentence for other in world.by_person[fact.person] if other != fact and not other.held_out
        )
    sentences = [f"{fill(rng, template)}." for template in rng.sample(RAMBLING, rng.randint(1, 3))]
    return " ".join([*sentences, f"{fact.person.first} is {rng.choice(FILLERS['feeling'])}."])
