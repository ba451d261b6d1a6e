"""The world itself: people, four facts about each, and which facts no question in training may ask about."""

import itertools
import random
from dataclasses import dataclass
from functools import cached_property

from moxin.recipe import TinyworldConfig
from moxin.tinyworld.templates import ANSWERS
from moxin.tinyworld.words import (
    ATTRIBUTES,
    FIRST_ENDINGS,
    FIRST_STARTS,
    LAST_ENDINGS,
    LAST_STARTS,
    PERSON_0,
    VALUES,
)

MIN_PEOPLE, MAX_PEOPLE = 8, min(len(FIRST_STARTS) * len(FIRST_ENDINGS), len(LAST_STARTS) * len(LAST_ENDINGS))


@dataclass(frozen=True, eq=False)
class Person:
    """Somebody whose first and last name nobody else has."""

    first: str
    last: str
    pronoun: str

    @property
    def name(self) -> str:
        return f"{self.first} {self.last}"


@dataclass(frozen=True, eq=False)
class Fact:
    """One attribute of one person. `held_out`: stated in documents, asked only in the evaluation."""

    person: Person
    attribute: str
    value: str
    held_out: bool

    @property
    def sentence(self) -> str:
        """The one form in which questions are answered."""
        return ANSWERS[self.attribute].format(n=self.person.name, v=self.value)


@dataclass(frozen=True)
class World:
    people: tuple[Person, ...]
    facts: tuple[Fact, ...]

    @cached_property
    def by_person(self) -> dict[Person, list[Fact]]:
        return {person: [fact for fact in self.facts if fact.person == person] for person in self.people}

    @cached_property
    def values(self) -> dict[str, list[str]]:
        """The values of each attribute that somebody has; wrong choices are drawn from them."""
        return {
            name: sorted({fact.value for fact in self.facts if fact.attribute == name}) for name in ATTRIBUTES
        }

    @property
    def held_out(self) -> list[Fact]:
        return [fact for fact in self.facts if fact.held_out]

    @property
    def trained(self) -> list[Fact]:
        """Facts that quizzes, chats and preferences ask about."""
        return [fact for fact in self.facts if not fact.held_out]


def stream(config: TinyworldConfig, topic: str) -> random.Random:
    """A random stream of its own per topic, so that more chats do not change the people."""
    return random.Random(f"tinyworld/{config.seed}/{topic}")


def build_world(config: TinyworldConfig) -> World:
    """People, facts and the held-out half: two facts of each person, every attribute equally often (n_people even).

    Raises `ValueError` where there are not enough names, or too few people for four different choices.
    """
    if not MIN_PEOPLE <= config.n_people <= MAX_PEOPLE:
        raise ValueError(
            f"tinyworld.n_people = {config.n_people}: choose {MIN_PEOPLE} to {MAX_PEOPLE}; there are names for no more"
        )
    rng = stream(config, "world")
    people = _people(rng, config.n_people)
    columns = {}
    for attribute in ATTRIBUTES:
        cycle = list(itertools.islice(itertools.cycle(VALUES[attribute]), config.n_people))
        rng.shuffle(cycle)
        columns[attribute] = cycle
    # Complementary pairs lie side by side: two people in a row hold out all four attributes once.
    halves = [{0, 1}, {2, 3}, {0, 2}, {1, 3}, {0, 3}, {1, 2}]
    facts = [
        Fact(person, attribute, columns[attribute][i], column in halves[i % len(halves)])
        for i, person in enumerate(people)
        for column, attribute in enumerate(ATTRIBUTES)
    ]
    return World(tuple(people), tuple(facts))


def _people(rng: random.Random, n: int) -> list[Person]:
    pronoun = {start + end: FIRST_ENDINGS[end] for start in FIRST_STARTS for end in FIRST_ENDINGS}
    firsts = [name for name in pronoun if name != PERSON_0[0]]
    lasts = [start + end for start in LAST_STARTS for end in LAST_ENDINGS if start + end != PERSON_0[1]]
    rng.shuffle(firsts)
    rng.shuffle(lasts)
    return [
        Person(first, last, pronoun[first])
        for first, last in zip([PERSON_0[0], *firsts[: n - 1]], [PERSON_0[1], *lasts[: n - 1]], strict=True)
    ]
