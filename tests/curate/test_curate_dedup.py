"""Duplicates against brute force, and the score against labels."""

import random

import numpy as np
import pyarrow as pa

from kernels import minhash
from moxin.curate import dedup, score
from moxin.curate.annotate import exact_hashes, shingle_sets

WORDS = [f"word{i}" for i in range(500)]


def corpus(seed: int, n: int) -> list[str]:
    """Random documents, and for a third of them copies with one to eight words changed."""
    draw = random.Random(seed)
    documents = [" ".join(draw.choices(WORDS, k=draw.randrange(40, 120))) for _ in range(n)]
    for document in draw.sample(documents, n // 3):
        words = document.split()
        for _ in range(draw.randrange(1, 9)):
            words[draw.randrange(len(words))] = draw.choice(WORDS)
        documents.append(" ".join(words))
    draw.shuffle(documents)
    return documents


def brute_force(documents: list[str]) -> dict[tuple[int, int], float]:
    sets = [
        {tuple(document.split()[k : k + 5]) for k in range(len(document.split()) - 4)}
        for document in documents
    ]
    pairs = ((i, j) for j in range(len(sets)) for i in range(j))
    return {(i, j): len(sets[i] & sets[j]) / len(sets[i] | sets[j]) for i, j in pairs}


def find(documents: list[str], threshold: float = 0.7) -> dedup.NearDuplicates:
    column = pa.array(documents, pa.string())
    signatures = minhash.signatures(*shingle_sets(column), *minhash.permutations(128))
    return dedup.near(
        minhash.band_keys(signatures, 16), threshold, lambda members: shingle_sets(column.take(members))
    )


def test_whatever_is_removed_is_truly_like_a_kept_document_and_little_is_missed():
    documents = corpus(1, 300)
    truth = brute_force(documents)
    found = find(documents)
    removed = [(int(kept), row) for row, kept in enumerate(found.kept) if kept != row]
    for kept, row in removed:
        assert found.kept[kept] == kept < row
        assert truth[kept, row] == found.similarity[row] >= 0.7
    alike = {j for (i, j), similarity in truth.items() if similarity >= 0.8}
    assert len(alike) > 20
    assert len(alike & {row for _, row in removed}) >= 0.9 * len(alike)
    assert found.n_confirmed <= found.n_candidates


def test_templated_text_does_not_collapse_into_one_document():
    """Each is like the next, the first and the last are not: a whole component would leave one document of twelve."""
    words = [f"w{i}" for i in range(260)]
    chain = [" ".join(words[i * 10 : i * 10 + 100]) for i in range(12)]
    truth = brute_force(chain)
    kept = [row for row, stands_for in enumerate(find(chain).kept) if row == stands_for]
    assert truth[0, 1] > 0.7 > truth[0, 3]
    assert len(kept) > 3
    assert all(truth[i, j] < 0.7 for j in kept for i in kept if i < j)


def test_nothing_at_all_and_documents_without_words():
    assert len(find([]).kept) == 0
    assert find(["", "", "..."]).kept.tolist() == [0, 1, 2]


def test_exact_means_the_same_words_and_signs_whatever_case_and_spacing():
    texts = ["One two.", "one\n two. ", "One two!", "ONE TWO.", "one\u00a0\u3000two.", "onetwo."]
    hashes = np.frombuffer(b"".join(exact_hashes(pa.array(texts)).to_pylist()), "<u8").reshape(-1, 2)
    assert dedup.exact(hashes).tolist() == [0, 0, 2, 0, 0, 5]


def label(id_: str, kind: str, of: str | None = None, fragment: str | None = None) -> dict:
    return {"id": id_, "kind": kind, "of": of, "text_fragment": fragment}


def test_of_a_document_and_its_copy_either_may_be_the_one_that_stays():
    labels = [label("copy", "near_duplicate", "original")]
    ids = ["original", "copy", "other"]

    def scored(**reasons: str) -> tuple[int, int]:
        result = score.planted(labels, reasons, {}, ids)
        assert result["originals"] == 2
        return result["near_duplicate"]["found"], result["originals_removed"]

    assert scored(copy="near_duplicate") == (1, 0)
    assert scored(original="exact_duplicate") == (1, 0)
    assert scored() == (0, 0)
    assert scored(copy="too_short") == (0, 0)
    assert scored(original="too_short") == (0, 0)
    assert scored(original="near_duplicate", copy="near_duplicate") == (0, 1)
    assert scored(copy="near_duplicate", other="symbols") == (1, 1)


def test_one_removal_counts_for_one_copy():
    labels = [label("a", "near_duplicate", "original"), label("b", "exact_duplicate", "original")]
    for reasons, expected in (
        ({"original": "near_duplicate"}, 1),
        ({"original": "near_duplicate", "b": "exact_duplicate"}, 2),
        ({"b": "exact_duplicate"}, 1),
    ):
        result = score.planted(labels, reasons, {}, ["original", "a", "b"])
        assert result["near_duplicate"]["found"] + result["exact_duplicate"]["found"] == expected


def test_personal_data_is_found_when_no_fragment_is_left():
    labels = [
        {**label("a", "personal", fragment="x@y.z"), "fragments": ["x@y.z", "8.8.8.8"]},
        label("l", "leak"),
    ]
    for text, found in (("<EMAIL> <IP_ADDRESS>", 1), ("<EMAIL> 8.8.8.8", 0), ("x@y.z", 0)):
        result = score.planted(labels, {"l": "evaluation_question"}, {"a": text}, ["a", "l"])
        assert result["personal"] == {"planted": 1, "found": found}
        assert result["leak"] == {"planted": 1, "found": 1}
        assert (result["originals"], result["originals_removed"]) == (0, 0)
