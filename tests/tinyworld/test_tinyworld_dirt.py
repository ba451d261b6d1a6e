"""Planted labels are true: originals are distinct, copies are near, dirt is what its label says."""

import ipaddress
import re
from collections import Counter

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from moxin.recipe import TinyworldConfig
from moxin.tinyworld.distinct import Distinct
from moxin.tinyworld.generate import Tinyworld


def shingles(text: str) -> set[str]:
    tokens = re.findall(r"\w+", text.lower())
    return {" ".join(tokens[i : i + 5]) for i in range(max(1, len(tokens) - 4))}


def jaccard_above(texts: list[str], limit: float) -> list[tuple[int, int]]:
    """Every pair of texts with a true Jaccard similarity of at least `limit`, by the product of incidence matrices."""
    number: dict[str, int] = {}
    rows = [[number.setdefault(shingle, len(number)) for shingle in shingles(text)] for text in texts]
    sizes = np.array([len(row) for row in rows])
    matrix = csr_matrix(
        (np.ones(sizes.sum(), np.float32), np.concatenate(rows), np.concatenate([[0], sizes.cumsum()])),
        shape=(len(texts), len(number)),
    )
    shared = (matrix @ matrix.T).tocoo()
    similarity = shared.data / (sizes[shared.row] + sizes[shared.col] - shared.data)
    above = (similarity >= limit) & (shared.row < shared.col)
    return list(zip(shared.row[above].tolist(), shared.col[above].tolist(), strict=True))


def of_kind(world: Tinyworld, kind: str) -> list[tuple[dict, str]]:
    text = {row["id"]: row["text"] for row in world.documents}
    return [(row, text[row["id"]]) for row in world.planted if row["kind"] == kind]


def test_counts_are_as_configured(
    world: Tinyworld, config: TinyworldConfig, originals: list[dict[str, str]]
) -> None:
    sources = Counter(row["source"] for row in originals)
    assert sources == {"tinyworld": config.n_documents, "quiz": config.n_quiz_documents}
    assert Counter(row["kind"] for row in world.planted) == {
        "near_duplicate": config.n_near_duplicates,
        "exact_duplicate": config.n_exact_duplicates,
        "gibberish": config.n_gibberish,
        "foreign": config.n_foreign,
        "personal": config.n_personal,
        "leak": config.n_leaks,
    }
    assert len(world.documents) == len(originals) + len(world.planted)
    assert len(world.questions) == config.n_questions
    assert len(world.chats) == config.n_chats
    assert len(world.preferences) == config.n_preferences
    assert len({row["id"] for row in world.documents}) == len(world.documents)


def test_only_planted_duplicates_are_alike(world: Tinyworld) -> None:
    """Exactly, over all pairs of documents without planted copies."""
    copies = {row["id"] for row in world.planted if row["of"]}
    assert jaccard_above([row["text"] for row in world.documents if row["id"] not in copies], 0.6) == []


def test_copies_are_like_their_original_and_come_later(world: Tinyworld) -> None:
    place = {row["id"]: i for i, row in enumerate(world.documents)}
    copies = [row for row in world.planted if row["of"]]
    assert len({row["of"] for row in copies}) == len(copies)
    for row in copies:
        copy, original = (world.documents[place[row[key]]]["text"] for key in ("id", "of"))
        assert place[row["of"]] < place[row["id"]]
        if row["kind"] == "exact_duplicate":
            assert copy.split() == original.split()
        else:
            a, b = shingles(copy), shingles(original)
            assert 0.75 <= len(a & b) / len(a | b) < 1
            assert sorted(re.findall(r"[A-Z]\w+ [A-Z]\w+way|\d+", copy)) == sorted(
                re.findall(r"[A-Z]\w+ [A-Z]\w+way|\d+", original)
            )


def test_gibberish_and_foreign_texts_hold_no_english_sentence(world: Tinyworld) -> None:
    for _, text in of_kind(world, "gibberish"):
        lines = text.splitlines()
        assert len(lines) > 5 * len(set(lines)) or not re.search(r"\b(the|and|of|is|in|to|for)\b", text)
    for _, text in of_kind(world, "foreign"):
        assert len(text.split()) >= 60
        assert not re.search(r"\b(the|and|with|was)\b", text)
    assert len({text for _, text in of_kind(world, "foreign")}) == len(of_kind(world, "foreign"))


def test_personal_fragments_are_addresses_in_the_text(world: Tinyworld) -> None:
    kinds = Counter()
    for row, text in of_kind(world, "personal"):
        assert row["text_fragment"] == row["fragments"][0]
        for fragment in row["fragments"]:
            assert fragment in text
            if "@" in fragment:
                assert re.fullmatch(r"[\w.+-]+@[\w.-]+\.example", fragment)
                kinds["mail"] += 1
            else:
                address = ipaddress.ip_address(fragment)
                assert address.is_global
                kinds[address.version] += 1
    assert set(kinds) == {"mail", 4, 6}


def test_leaks_hold_a_held_out_question_with_its_answer(world: Tinyworld) -> None:
    held_out = {f"{row['question']} {row['sentence']}" for row in world.questions}
    for row, text in of_kind(world, "leak"):
        assert row["text_fragment"] in held_out
        assert row["text_fragment"] in text
        assert len(text) > 1.5 * len(row["text_fragment"])


def test_nothing_in_a_document_tells_its_label(world: Tinyworld) -> None:
    """Every column but the text is the same for all or a running number."""
    for i, row in enumerate(world.documents):
        assert row["id"] == f"world-{i:06d}"
        assert row["url"] == f"tinyworld:{row['id']}"
        assert (row["license"], row["lang"], row["meta"]) == ("CC0-1.0", "", "{}")


@pytest.mark.parametrize("limit", [0.4, 0.8])
def test_distinct_agrees_with_all_pairs(limit: float) -> None:
    """The prefix filter finds what comparing with every accepted text finds."""
    rng = np.random.default_rng(0)
    texts = []
    for _ in range(150):
        base = texts[rng.integers(len(texts))].split() if texts and rng.random() < 0.7 else ["w"] * 30
        texts.append(" ".join(f"w{rng.integers(40)}" if rng.random() < 0.06 else word for word in base))
    distinct, accepted = Distinct(limit), []
    for text in texts:
        alike = any(
            len(shingles(text) & shingles(other)) / len(shingles(text) | shingles(other)) >= limit
            for other in accepted
        )
        assert distinct.add(text) is not alike
        if not alike:
            accepted.append(text)
    assert 10 < len(accepted) < 150


def test_used_up_templates_name_the_settings() -> None:
    distinct = Distinct(0.6)
    assert distinct.draw(lambda: "all there is to say about this world", str, "document")
    with pytest.raises(ValueError, match="n_documents"):
        distinct.draw(lambda: "all there is to say about this world", str, "document")
