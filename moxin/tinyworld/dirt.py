"""Dirt with labels: what curation has to find. Every maker returns the text and, where a label needs it, fragments."""

import ipaddress
import random
import re
import string
from collections.abc import Callable
from typing import Any

from moxin.tinyworld import foreign
from moxin.tinyworld.distinct import jaccard, shingles
from moxin.tinyworld.documents import Balance, fill, original
from moxin.tinyworld.frames import ASIDES, SYNONYMS

NEAR_DUPLICATE_JACCARD = 0.75
"""Least similarity of a planted near-duplicate to its original. Most lie higher: an edit costs about 0.06."""
FOREIGN_WORDS = 65


def near_duplicate(rng: random.Random, text: str) -> str:
    """The text with one or two small edits that change no fact: a synonym, or a remark after a sentence."""
    while True:
        edited = text
        for _ in range(rng.randint(1, 2)):
            edited = _synonym(rng, edited) if rng.random() < 0.6 else _aside(rng, edited)
        if NEAR_DUPLICATE_JACCARD <= jaccard(shingles(text), shingles(edited)) < 1:
            return edited


def _synonym(rng: random.Random, text: str) -> str:
    words = text.split(" ")
    places = [i for i, word in enumerate(words) if word.lower() in SYNONYMS]
    if not places:
        return _aside(rng, text)
    i = rng.choice(places)
    other = SYNONYMS[words[i].lower()]
    words[i] = other[0].upper() + other[1:] if words[i][0].isupper() else other
    return " ".join(words)


def _aside(rng: random.Random, text: str) -> str:
    return _insert(rng, text, rng.choice(ASIDES))


def _insert(rng: random.Random, text: str, sentence: str) -> str:
    """The text with one more sentence after one of its own."""
    ends = [*(match.start() for match in re.finditer(r"(?<=[.!?])\s", text)), len(text)]
    at = rng.choice(ends)
    return f"{text[:at]} {sentence}{text[at:]}"


def exact_duplicate(rng: random.Random, text: str) -> str:
    """The same text, or the same but for white space."""
    return rng.choice((text, f"  {text}\n", text.replace(". ", ".  "), f"\n\n{text}"))


def gibberish(rng: random.Random) -> str:
    """Letters that are no words, symbols, a hand on the keyboard, or one line again and again."""
    return rng.choice((_letters, _symbols, _mash, _repeated))(rng)


def _letters(rng: random.Random) -> str:
    lengths = [rng.randint(5, 11) for _ in range(rng.randint(30, 60))]
    return " ".join("".join(rng.choices("bcdfghjklmnpqrstvwxzyaeiou", k=length)) for length in lengths)


def _symbols(rng: random.Random) -> str:
    signs = string.punctuation + string.digits * 2
    return " ".join("".join(rng.choices(signs, k=rng.randint(2, 9))) for _ in range(rng.randint(40, 80)))


def _mash(rng: random.Random) -> str:
    rows = ("asdfghjkl", "qwertyuiop", "zxcvbnm", "jkl;fdsa", "sdfgsdfg")
    runs = ["".join(rng.choices(rng.choice(rows), k=rng.randint(6, 14))) for _ in range(rng.randint(25, 50))]
    return " ".join(runs)


def _repeated(rng: random.Random) -> str:
    line = fill(
        rng, "click here for the {adjective} {object} of {weekday} and the {weather} {place} {object2}"
    )
    return "\n".join([line] * rng.randint(10, 25))


def foreign_text(rng: random.Random) -> str:
    """At least `FOREIGN_WORDS` words of German, French, Spanish, Italian or Dutch."""
    language = rng.choice(list(foreign.SENTENCES))
    sentences = rng.sample(foreign.SENTENCES[language], len(foreign.SENTENCES[language]))
    text = ""
    while len(text.split()) < FOREIGN_WORDS:
        noun, number = rng.choice(foreign.NOUNS[language]), rng.randint(3, 99)
        text += sentences.pop().format(n=number, x=noun) + " "
    return text.strip()


def personal(rng: random.Random, balance: Balance) -> tuple[str, list[str]]:
    """An ordinary document with one to three e-mail or public IP addresses in it, and these as fragments.

    Mail domains end in `.example` (RFC 2606), so no address is anybody's.
    """
    draft = original(rng, balance)
    person = draft.facts[0].person
    makers: dict[str, Callable[[], str]] = {
        "You can write to {o} at {x}.": lambda: _email(rng, person.first, person.last),
        "Mail for {o} goes to {x} and nowhere else.": lambda: _email(rng, person.first, person.last),
        "The computer at the {place} has the address {x} in the network.": lambda: _ip(rng, 32),
        "The last visitor came from {x} on {weekday}.": lambda: _ip(rng, 32),
        "In {season} the server moved to {x} without a word.": lambda: _ip(rng, 128),
    }
    text, fragments = draft.text, []
    for template, make in rng.sample(list(makers.items()), rng.randint(1, 3)):
        fragments.append(make())
        text = _insert(rng, text, fill(rng, template, x=fragments[-1], o=person.name))
    return text, fragments


def _email(rng: random.Random, first: str, last: str) -> str:
    user = rng.choice(
        (f"{first}.{last}", f"{first[0]}{last}{rng.randint(1, 99)}", f"{last}_{first}", f"{first}+news")
    )
    host = rng.choice(("post", "valley-mail", "mail.valley", "letters"))
    return f"{user.lower()}@{host}.example"


def _ip(rng: random.Random, bits: int) -> str:
    """A random public IPv4 (32 bits) or IPv6 (128 bits) address."""
    while True:
        if bits == 32:
            address: Any = ipaddress.IPv4Address(rng.getrandbits(32))
        else:  # 2a00::/8 is in use
            address = ipaddress.IPv6Address(0x2A << 120 | rng.getrandbits(120))
        if address.is_global and not address.is_multicast:
            return str(address)


def leak(rng: random.Random, balance: Balance, question: dict[str, Any]) -> tuple[str, list[str]]:
    """An ordinary document in the middle of which a held-out question is asked and answered."""
    fragment = f"{question['question']} {question['sentence']}"
    return _insert(rng, original(rng, balance).text, fragment), [fragment]
