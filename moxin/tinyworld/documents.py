"""Original documents of the tinyworld source: biographies, comparisons, stories, dialogues, lists, small sums.

Each kind is a function of a random stream, the world and the balance of what was told so far; it returns a `Draft`.
"""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from moxin.tinyworld import frames
from moxin.tinyworld.sums import shopping
from moxin.tinyworld.templates import ANSWERS, ASK_YOU, FIRST_PERSON, LEADS, PREDICATES, SENTENCES
from moxin.tinyworld.words import ATTRIBUTES, FILLERS
from moxin.tinyworld.world import Fact, Person, World

PRONOUNS = {"he": {"s": "he", "o": "him", "p": "his"}, "she": {"s": "she", "o": "her", "p": "her"}}


@dataclass(frozen=True)
class Draft:
    text: str
    facts: tuple[Fact, ...]


class Balance:
    """How often each fact was told; whoever was told about least comes next."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.told: Counter[Fact] = Counter(dict.fromkeys(world.facts, 0))

    def count(self, draft: Draft) -> None:
        self.told.update(draft.facts)

    def people(self, rng: random.Random, n: int, attribute: str | None = None) -> list[Person]:
        """n people out of the half that was told about least (of one attribute or in all)."""
        totals: Counter[Person] = Counter()
        for fact, times in self.told.items():
            if attribute in (None, fact.attribute):
                totals[fact.person] += times
        order = sorted(self.world.people, key=lambda person: (totals[person], rng.random()))
        return rng.sample(order[: max(n, len(order) // 2)], n)

    def facts(self, rng: random.Random, person: Person, n: int) -> list[Fact]:
        """The n facts of a person told least, in random order."""
        order = sorted(self.world.by_person[person], key=lambda fact: (self.told[fact], rng.random()))
        return rng.sample(order[:n], n)

    def attributes(self, rng: random.Random, n: int) -> list[str]:
        totals = Counter[str]()
        for fact, times in self.told.items():
            totals[fact.attribute] += times
        return sorted(ATTRIBUTES, key=lambda name: (totals[name], rng.random()))[:n]

    def fact(self, person: Person, attribute: str) -> Fact:
        return next(fact for fact in self.world.by_person[person] if fact.attribute == attribute)


def fill(rng: random.Random, template: str, **given: str) -> str:
    """The template with its slots filled, random fillers where nothing is given, and a capital at the start."""
    slots = {name: rng.choice(choices) for name, choices in FILLERS.items()}
    slots["object2"] = rng.choice([word for word in FILLERS["object"] if word != slots["object"]])
    text = template.format_map({**slots, **given})
    return text[0].upper() + text[1:]


def voice(person: Person, how: str) -> dict[str, str]:
    """Slots that name a person: `full`, `first` or `pronoun`."""
    if how == "pronoun":
        return PRONOUNS[person.pronoun]
    name = person.name if how == "full" else person.first
    return {"s": name, "o": name, "p": f"{name}'s"}


def predicate(rng: random.Random, fact: Fact) -> str:
    return rng.choice(PREDICATES[fact.attribute]).format(v=fact.value)


def statement(rng: random.Random, facts: list[Fact], how: str) -> str:
    """One sentence that says one fact, or two of the same person."""
    lead = rng.choice(LEADS) if rng.random() < 0.3 else ""
    if len(facts) == 2:
        template = "{s} " + " and ".join(predicate(rng, fact) for fact in facts)
    elif rng.random() < 0.6:
        template = "{s} " + predicate(rng, facts[0])
    else:
        template = rng.choice(SENTENCES[facts[0].attribute])
    return fill(rng, f"{lead}{template}.", **voice(facts[0].person, how), v=facts[0].value)


def statements(rng: random.Random, facts: list[Fact], pronouns: bool) -> list[str]:
    """Sentences on one person; the first names the person in full."""
    groups, rest = [], list(facts)
    while rest:
        size = 2 if len(rest) > 1 and rng.random() < 0.3 else 1
        groups.append(rest[:size])
        rest = rest[size:]
    kinds = ("full", "first", "pronoun") if pronouns else ("full", "first", "first")
    later = [rng.choices(kinds, (2, 1, 1))[0] for _ in groups[1:]]
    return [statement(rng, group, how) for group, how in zip(groups, ["full", *later], strict=True)]


def biography(rng: random.Random, balance: Balance) -> Draft:
    (person,) = balance.people(rng, 1)
    facts = balance.facts(rng, person, rng.choice((3, 4, 4)))
    slots = {"n": person.name, **voice(person, "pronoun")}
    parts = [fill(rng, rng.choice(frames.BIOGRAPHY_OPENINGS), **slots)] if rng.random() < 0.6 else []
    parts += statements(rng, facts, pronouns=True)
    parts += [fill(rng, rng.choice(frames.BIOGRAPHY_ENDINGS), **slots)] if rng.random() < 0.6 else []
    return Draft(" ".join(parts), tuple(facts))


def comparison(rng: random.Random, balance: Balance) -> Draft:
    pair = balance.people(rng, 2)
    slots = {"a": pair[0].name, "b": pair[1].name}
    parts, told = [fill(rng, rng.choice(frames.COMPARISON_OPENINGS), **slots)], []
    for attribute in rng.sample(ATTRIBUTES, rng.choice((2, 3))):
        a, b = (balance.fact(person, attribute) for person in rng.sample(pair, 2))
        link = ", and " if a.value == b.value else rng.choice(frames.COMPARISON_LINKS)
        too = " too" if a.value == b.value else ""
        parts.append(f"{a.person.name} {predicate(rng, a)}{link}{b.person.name} {predicate(rng, b)}{too}.")
        told += [a, b]
    if rng.random() < 0.5:
        parts.append(fill(rng, rng.choice(frames.COMPARISON_ENDINGS)))
    return Draft(" ".join(parts), tuple(told))


def story(rng: random.Random, balance: Balance) -> Draft:
    a, b = balance.people(rng, 2)
    facts_a, facts_b = (balance.facts(rng, person, rng.choice((2, 3))) for person in (a, b))
    props = {name: rng.choice(FILLERS[name]) for name in ("object", "place", "daytime", "weekday")}
    slots = {**props, "a": a.name, "b": b.name, "n": a.name}
    first, second, third = rng.sample(frames.STORY_EVENTS, 3)
    parts = [
        fill(rng, rng.choice(frames.STORY_OPENINGS), **slots),
        *statements(rng, facts_a, pronouns=True),
        fill(rng, first, **slots),
        fill(rng, second),
        fill(rng, rng.choice(frames.STORY_MEETINGS), **slots),
        *statements(rng, facts_b, pronouns=False),
        fill(rng, third),
        fill(rng, rng.choice(frames.STORY_ENDINGS), **slots),
    ]
    return Draft(" ".join(parts), (*facts_a, *facts_b))


def talk(rng: random.Random, balance: Balance) -> Draft:
    """A dialogue in which one person speaks of themselves."""
    asker, person = balance.people(rng, 2)
    facts = balance.facts(rng, person, 3)
    lines = [
        f"{asker.name}: {fill(rng, rng.choice(frames.GREETINGS))}",
        f"{person.name}: {fill(rng, rng.choice(frames.GREETING_REPLIES))}",
    ]
    for fact in facts:
        lines.append(f"{asker.first}: {rng.choice(ASK_YOU[fact.attribute])}")
        reply = rng.choice(FIRST_PERSON[fact.attribute])
        lines.append(f"{person.name}: {fill(rng, reply, v=fact.value)}.")
    lines.append(f"{asker.first}: {fill(rng, rng.choice(frames.PARTINGS))}")
    return Draft("\n".join(lines), tuple(facts))


def gossip(rng: random.Random, balance: Balance) -> Draft:
    """A dialogue of two about a third."""
    person, asker, teller = balance.people(rng, 3)
    facts = balance.facts(rng, person, 3)
    slots = {"n": person.name, **voice(person, "pronoun")}
    lines = [f"{asker.first}: {fill(rng, rng.choice(frames.GOSSIP_OPENINGS), **slots)}"]
    prompts = rng.sample(frames.GOSSIP_PROMPTS, len(facts))
    for sentence, prompt in zip(statements(rng, facts, pronouns=True), prompts, strict=False):
        lines += [f"{teller.first}: {sentence}", f"{asker.first}: {prompt}"]
    lines[-1] = f"{asker.first}: {fill(rng, rng.choice(frames.PARTINGS))}"
    return Draft("\n".join(lines), tuple(facts))


def directory(rng: random.Random, balance: Balance) -> Draft:
    """A list of who lives where, works as what, owns or likes what."""
    (attribute,) = balance.attributes(rng, 1)
    people = balance.people(rng, rng.choice((4, 5, 6)), attribute)
    facts = [balance.fact(person, attribute) for person in people]
    lines = [fill(rng, rng.choice(frames.DIRECTORY_OPENINGS[attribute]))]
    lines += [ANSWERS[attribute].format(n=fact.person.name, v=fact.value) for fact in facts]
    return Draft("\n".join(lines), tuple(facts))


def purchase(rng: random.Random, balance: Balance) -> Draft:
    """Somebody goes shopping; every number is right."""
    (person,) = balance.people(rng, 1)
    facts = balance.facts(rng, person, 2)
    parts = statements(rng, facts, pronouns=False)
    return Draft(" ".join([*parts, *shopping(rng, person.first)]), tuple(facts))


KINDS: dict[Callable[[random.Random, Balance], Draft], int] = {
    biography: 42,
    comparison: 14,
    story: 12,
    talk: 8,
    gossip: 8,
    directory: 8,
    purchase: 8,
}
"""Per cent of the documents."""


def original(rng: random.Random, balance: Balance) -> Draft:
    """One document of a random kind. The caller counts it once it is accepted."""
    kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
    return kind(rng, balance)
