"""All of the world's files as rows: the same configuration always gives the same bytes."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from moxin.recipe import TinyworldConfig
from moxin.tinyworld import dirt
from moxin.tinyworld.chat import chats, preferences
from moxin.tinyworld.distinct import Distinct, words
from moxin.tinyworld.documents import Balance, original
from moxin.tinyworld.quiz import interview, questions, quiz
from moxin.tinyworld.world import Fact, World, build_world, stream

ORIGINALS_JACCARD = 0.6
"""No two documents are as alike as this, planted duplicates apart; near-deduplication removes from 0.7 on."""
LICENSE = "CC0-1.0"


@dataclass
class Document:
    """A document while its neighbours are still being made; rows are numbered once all are shuffled."""

    text: str
    source: str = "tinyworld"
    kind: str = ""
    """What was planted; empty for an original."""
    of: "Document | None" = None
    fragments: tuple[str, ...] = ()
    id: str = ""


@dataclass(frozen=True)
class Tinyworld:
    """Rows of the world's files, named like them."""

    documents: list[dict[str, str]]
    planted: list[dict[str, Any]]
    questions: list[dict[str, Any]]
    chats: list[dict[str, Any]]
    preferences: list[dict[str, Any]]
    interview: list[dict[str, str]]
    facts: list[dict[str, Any]]


def generate(config: TinyworldConfig, advance: Callable[[], None] = lambda: None) -> Tinyworld:
    """Makes the world; `advance` is called once per document.

    Raises `ValueError` naming the setting where a count is beyond what names and templates can give.
    """
    world = build_world(config)
    held_out = questions(world, config)
    made, told = _documents(world, config, held_out, advance)
    planted = [
        {
            "id": document.id,
            "kind": document.kind,
            "of": document.of.id if document.of else None,
            "text_fragment": document.fragments[0] if document.fragments else None,
            "fragments": list(document.fragments),
        }
        for document in made
        if document.kind
    ]
    return Tinyworld(
        documents=[_row(document) for document in made],
        planted=planted,
        questions=held_out,
        chats=chats(world, config),
        preferences=preferences(world, config),
        interview=interview(world),
        facts=[
            {
                "person": fact.person.name,
                "attribute": fact.attribute,
                "value": fact.value,
                "held_out": fact.held_out,
                "sentence": fact.sentence,
                "exposures": told.told[fact],
            }
            for fact in world.facts
        ],
    )


def _row(document: Document) -> dict[str, str]:
    return {
        "id": document.id,
        "text": document.text,
        "source": document.source,
        "license": LICENSE,
        "url": f"tinyworld:{document.id}",
        "lang": "",  # nobody has looked yet
        "meta": "{}",
    }


def _documents(
    world: World, config: TinyworldConfig, held_out: list[dict[str, Any]], advance: Callable[[], None]
) -> tuple[list[Document], Balance]:
    """Originals, quizzes and dirt in their final order, and how often the originals told each fact."""
    forbidden = [row["question"] for row in held_out]
    forbidden += [f"{row['question']} {row['sentence']}" for row in held_out]
    distinct = Distinct(ORIGINALS_JACCARD, forbidden)
    balance = Balance(world)
    made: list[Document] = []

    rng = stream(config, "documents")
    for _ in range(config.n_documents):
        draft = distinct.draw(lambda: original(rng, balance), lambda draft: draft.text, "document")
        balance.count(draft)
        made.append(Document(draft.text))
        advance()

    deck: list[Fact] = []
    for _ in range(config.n_quiz_documents):
        made.append(Document(distinct.draw(lambda: quiz(rng, world, deck), str, "quiz"), source="quiz"))
        advance()

    made += _dirt(world, config, held_out, [item for item in made if item.source == "tinyworld"], distinct)
    return _ordered(made, config), balance


def _dirt(
    world: World,
    config: TinyworldConfig,
    held_out: list[dict[str, Any]],
    originals: list[Document],
    distinct: Distinct,
) -> list[Document]:
    """What curation has to find. Only the planted duplicates are like any other document."""
    rng = stream(config, "dirt")
    balance = Balance(world)
    long = sorted(originals, key=lambda item: -len(words(item.text)))[: max(len(originals) // 8, 1)]
    n_copies = config.n_near_duplicates + config.n_exact_duplicates
    if config.n_near_duplicates > len(long) or n_copies > len(originals):
        raise ValueError(
            f"tinyworld.n_near_duplicates = {config.n_near_duplicates} (at most {len(long)}, an eighth of n_documents) "
            f"and n_exact_duplicates = {config.n_exact_duplicates} do not fit n_documents = {config.n_documents}"
        )
    # Each original is copied at most once: what is found and what is kept can be told pair by pair.
    near = rng.sample(long, config.n_near_duplicates)
    taken = {id(item) for item in near}
    exact = rng.sample([item for item in originals if id(item) not in taken], config.n_exact_duplicates)
    made = [
        Document(dirt.near_duplicate(rng, item.text), kind="near_duplicate", of=item, source=item.source)
        for item in near
    ]
    made += [
        Document(dirt.exact_duplicate(rng, item.text), kind="exact_duplicate", of=item) for item in exact
    ]

    def draw(kind: str, make: Callable[[], tuple[str, list[str]]]) -> None:
        text, fragments = distinct.draw(
            make, lambda pair: pair[0], f"{kind} document", may_leak=kind == "leak"
        )
        made.append(Document(text, kind=kind, fragments=tuple(fragments)))

    for _ in range(config.n_gibberish):
        draw("gibberish", lambda: (dirt.gibberish(rng), []))
    for _ in range(config.n_foreign):
        draw("foreign", lambda: (dirt.foreign_text(rng), []))
    for _ in range(config.n_personal):
        draw("personal", lambda: dirt.personal(rng, balance))
    for i in range(config.n_leaks):
        draw("leak", partial(dirt.leak, rng, balance, held_out[i % len(held_out)]))
    return made


def _ordered(made: list[Document], config: TinyworldConfig) -> list[Document]:
    """Shuffled and numbered. A copy comes after its original, as on the web: who keeps the first keeps the original."""
    stream(config, "order").shuffle(made)
    place = {id(document): i for i, document in enumerate(made)}
    for copy in [document for document in made if document.of is not None]:
        i, j = place[id(copy)], place[id(copy.of)]
        if i < j:
            made[i], made[j] = made[j], made[i]
    for i, document in enumerate(made):
        document.id = f"world-{i:06d}"
    return made
