"""The near-duplicate search through files, against brute force and against itself: order, ranges, restart, generations."""

import hashlib
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from moxin import storage
from moxin.curate import fuzzy, fuzzy_plan, fuzzy_shingles
from moxin.curate.fuzzy import Search, find, run, verdicts
from moxin.curate.fuzzy_keys import Unit, units_in, write_keys
from moxin.curate.fuzzy_shingles import Params
from moxin.curate.fuzzy_verify import verify

PARAMS = Params(*fuzzy_shingles.fit(0.7, 128), shingle=3, threshold=0.7, window=8)
VOCABULARY = [f"word{i}" for i in range(3000)]


def corpus(seed: int, n: int) -> list[str]:
    """Random documents; half of them have copies of copies with some words changed, and a few are equal."""
    draw = random.Random(seed)
    documents = [" ".join(draw.choices(VOCABULARY, k=draw.randrange(20, 120))) for _ in range(n)]
    for _ in range(n):
        words = draw.choice(documents[n // 2 :]).split()
        for _ in range(draw.choice([0, 0, 1, 2, 3, 5, 8])):
            words[draw.randrange(len(words))] = draw.choice(VOCABULARY)
        documents.append(" ".join(words))
    draw.shuffle(documents)
    return documents


def sets_of(documents: Sequence[str], n: int) -> list[set[tuple[str, ...]]]:
    words = [document.split() for document in documents]
    return [{tuple(row[k : k + n]) for k in range(len(row) - n + 1)} for row in words]


def jaccard(a: set, b: set) -> float:
    return len(a & b) / len(a | b) if a | b else 0.0


def split(documents: list[str], n: int) -> list[list[str]]:
    return [documents[k * len(documents) // n : (k + 1) * len(documents) // n] for k in range(n)]


def check(found: fuzzy.Found, documents: Sequence[str], params: Params) -> list[int]:
    """Everything that went is truly like something that stays; returns what went."""
    sets = sets_of(documents, params.shingle)
    gone = np.flatnonzero(found.kept != np.arange(len(documents))).tolist()
    for row in gone:
        kept = int(found.kept[row])
        assert found.kept[kept] == kept < row
        assert jaccard(sets[kept], sets[row]) == found.similarity[row] >= params.threshold
    assert found.summary.removed == len(gone)
    assert found.summary.settled
    return gone


def test_what_goes_is_truly_like_what_stays_and_hardly_anything_is_missed():
    documents = corpus(1, 200)
    found = find(split(documents, 5), PARAMS)
    gone = set(check(found, documents, PARAMS))
    sets = sets_of(documents, PARAMS.shingle)
    kept = [row for row in range(len(documents)) if row not in gone]
    left = [(i, j) for i in kept for j in kept if i < j and jaccard(sets[i], sets[j]) >= PARAMS.threshold]
    assert len(gone) > 50
    assert len(left) <= 0.02 * len(gone)


def test_components_are_those_of_all_pairs_that_are_alike():
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    documents, params = corpus(2, 100), Params(128, 1, 3, threshold=0.6)
    sets = sets_of(documents, 3)
    n = len(documents)
    pairs = [(i, j) for j in range(n) for i in range(j) if jaccard(sets[i], sets[j]) >= 0.6]
    rows, columns = zip(*pairs, strict=True)
    _, labels = connected_components(
        coo_array((np.ones(len(pairs)), (rows, columns)), (n, n)), directed=False
    )
    sizes = np.bincount(labels)
    summary = find(split(documents, 3), params).summary
    # With 128 bands of one row everything at 0.6 is a candidate; equal documents are paired with the first one only.
    assert summary.components == (sizes > 1).sum()
    assert summary.largest_documents == sizes.max()
    assert summary.alike <= len(pairs)


def overlapping(similarity: float, n: int, seed: int, size: int = 120) -> list[str]:
    """Pairs of documents whose sets of words have this Jaccard similarity, or nearly; no word is in two pairs."""
    common = round(2 * size * similarity / (1 + similarity))
    documents = []
    for pair in range(n):
        words = [f"w{seed}x{pair}x{k}" for k in range(2 * size - common)]
        documents += [" ".join(words[:size]), " ".join(words[size - common :])]
    return documents


@pytest.mark.parametrize("similarity", [0.5, 0.6, 0.7, 0.8, 0.9, 0.95])
def test_recall_follows_the_curve(similarity):
    n, params = 500, Params(14, 8, 1, threshold=0.3)
    found = find([overlapping(similarity, n, 0)], params)
    common = round(240 * similarity / (1 + similarity))
    expected = params.catch(common / (240 - common))
    assert abs(found.summary.removed / n - expected) < 4 * np.sqrt(expected * (1 - expected) / n) + 0.005


def macro_f1(true: np.ndarray, said: np.ndarray) -> float:
    scores = []
    for label in (True, False):
        both = ((true == label) & (said == label)).sum()
        scores.append(2 * both / ((true == label).sum() + (said == label).sum()))
    return float(np.mean(scores))


def test_labelled_copies_from_half_alike_to_nearly_equal_are_told_apart():
    draw, documents, labels = random.Random(4), [], []
    for number in range(1500):
        similarity = draw.uniform(0.5, 0.95)
        documents += overlapping(similarity, 1, number + 1)
        common = round(240 * similarity / (1 + similarity))
        labels += [False, common / (240 - common) >= 0.7]
    params = Params(*fuzzy_shingles.fit(0.7, 128), shingle=1, threshold=0.7)
    said = find([documents], params).kept != np.arange(len(documents))
    assert macro_f1(np.array(labels), said) >= 0.99


def everything(search: Search) -> str:
    return hashlib.sha256(b"".join(array.tobytes() for array in verdicts(search))).hexdigest()


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


class Corpus:
    """Units of text in a folder, and the search over them."""

    def __init__(self, folder: Path, documents: list[str], n_units: int = 6) -> None:
        self.folder = folder
        self.columns = [fuzzy_shingles.batches(texts, 7) for texts in split(documents, n_units)]

    def texts(self, unit: Unit) -> list:
        return self.columns[unit.number]

    def write(self, order: Sequence[int] | None = None, params: Params = PARAMS) -> list[Unit]:
        order = range(len(self.columns)) if order is None else order
        return [write_keys(str(self.folder), 0, k % 2, k, self.columns[k], params) for k in order]

    def search(self, units: list[Unit], n_ranges: int = 5, params: Params = PARAMS) -> Search:
        return Search(str(self.folder), tuple(units), params, n_ranges)


def templated(n: int, seed: int = 0) -> list[str]:
    """Records from one template, two in three words the same, every tenth one nearly repeated somewhere later."""
    draw, records = random.Random(seed), []
    frame = [f"frame{k}" for k in range(80)]
    for number in range(n):
        own = [f"own{number}x{k}" for k in range(18)]
        records.append(" ".join([*frame[:40], *own, *frame[40:]]))
    for number in range(0, n, 10):
        records.append(records[number].replace(f"own{number}x9", "other"))
    draw.shuffle(records)
    return records


def test_order_of_units_and_tasks_and_number_of_ranges_change_nothing(tmp_path):
    documents = corpus(5, 120) + templated(100)
    one = Corpus(tmp_path / "one", documents)
    search = one.search(one.write())
    summary = run(search, one.texts)
    two = Corpus(tmp_path / "two", documents)
    draw = random.Random(8)

    def shuffled(work, places):
        for place in draw.sample(list(places), len(places)):
            work(place)

    other = two.search(two.write(draw.sample(range(6), 6)))
    assert run(other, two.texts, shuffled) == summary
    assert files_of(one.folder) == files_of(two.folder)
    assert summary.rounds > 0
    for n_ranges in (1, 13):
        three = Corpus(tmp_path / f"of{n_ranges}", documents)
        again = three.search(three.write(), n_ranges)
        assert run(again, three.texts) == summary
        assert everything(again) == everything(search)


def test_half_of_the_files_gone_and_nothing_else_is_made_again(tmp_path):
    whole = Corpus(tmp_path, corpus(6, 100) + templated(60))
    search = whole.search(whole.write())
    summary = run(search, whole.texts)
    before = files_of(tmp_path)
    times = {name: (tmp_path / name).stat().st_mtime_ns for name in before}
    for seed in range(3):
        gone = random.Random(seed).sample(sorted(before), len(before) // 2)
        for name in gone:
            (tmp_path / name).unlink()
        assert run(whole.search(whole.write()), whole.texts) == summary
        assert files_of(tmp_path) == before
        for name in before:
            stays = name not in gone and not name.startswith(("asked", "verdicts", "summary"))
            assert not stays or (tmp_path / name).stat().st_mtime_ns == times[name]
        times = {name: (tmp_path / name).stat().st_mtime_ns for name in before}


def test_all_is_finished_and_no_text_is_read(tmp_path):
    whole = Corpus(tmp_path, corpus(6, 40))
    units = whole.write()
    summary = run(whole.search(units), whole.texts)

    def never(unit: Unit) -> list:
        raise AssertionError(unit)

    assert run(whole.search(units), never) == summary


@pytest.mark.parametrize("threshold", [0.55, 0.7])
def test_a_later_corpus_is_decided_as_if_both_came_together(tmp_path, threshold):
    params = Params(25, 5, 3, threshold=threshold, window=4)
    documents = corpus(7, 150) + templated(200, 1)
    random.Random(3).shuffle(documents)
    old, new = documents[:300], documents[300:]

    def texts_of(columns):
        return lambda unit: columns[unit.generation, unit.number]

    columns = {(0, k): fuzzy_shingles.batches(texts) for k, texts in enumerate(split(old, 3))}
    folder = str(tmp_path / "old")
    units = [write_keys(folder, 0, 0, k, columns[0, k], params) for k in range(3)]
    first = Search(folder, tuple(units), params, 3)
    run(first, texts_of(columns), lasting=True)
    before = files_of(tmp_path / "old")

    columns |= {(1, k): fuzzy_shingles.batches(texts) for k, texts in enumerate(split(new, 2))}
    later = str(tmp_path / "new")
    added = [write_keys(later, 1, 0, k, columns[1, k], params) for k in range(2)]
    second = Search(later, (*added, *units_in(folder)), params, 7)
    run(second, texts_of(columns))
    assert files_of(tmp_path / "old") == before

    together = find([*split(old, 3), *split(new, 2)], params)
    kept = np.concatenate([verdicts(first)[0], verdicts(second)[0]])
    assert kept.tolist() == together.kept.tolist()
    similarity = np.concatenate([verdicts(first)[1], verdicts(second)[1]])
    assert similarity.tolist() == together.similarity.tolist()
    check(together, documents, params)
    assert (verdicts(second)[0] < len(old)).any()


def test_an_earlier_corpus_must_have_all_of_its_sets(tmp_path):
    documents = corpus(9, 60)
    old = Corpus(tmp_path / "old", documents, 1)
    run(old.search(old.write()), old.texts)
    later = str(tmp_path / "new")
    column = fuzzy_shingles.batches(documents)
    added = write_keys(later, 1, 0, 0, column, PARAMS)
    with pytest.raises(ValueError, match=r"lasting=True"):
        run(Search(later, (added, *units_in(str(old.folder))), PARAMS), lambda unit: column)


@pytest.mark.parametrize(
    "kind", ["keys", "keys-2", "keys-3", "pairs", "members", "large", "sets", "alike", "answered"]
)
def test_a_file_that_was_cut_or_altered_is_named(tmp_path, kind):
    whole = Corpus(tmp_path, corpus(6, 60) + templated(60))
    search = whole.search(whole.write(), 2)
    run(search, whole.texts)
    after = {
        "keys": ("keys-2", "pairs", "large", "members"),
        "keys-2": ("pairs", "members"),
        "keys-3": ("pairs", "members"),
        "pairs": ("alike",),
        "members": ("sets",),
        "large": ("keys-2", "keys-3"),
        "sets": ("alike",),
        "alike": (),
        "answered": (),
    }
    victims = sorted((tmp_path / kind).rglob("*.bin"), key=lambda path: -path.stat().st_size)
    victim, content = victims[0], victims[0].read_bytes()
    assert len(content) > 200
    draw = random.Random(kind)
    places = [len(content) - 1, 4, 40, draw.randrange(len(content) - 200, len(content))]
    damages = [content[:-1], content[:50], b"", content + b"x"]
    damages += [content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :] for at in places]
    for damage in damages:
        victim.write_bytes(damage)
        (tmp_path / "summary.json").unlink(missing_ok=True)
        for name in after[kind]:
            for path in (tmp_path / name).glob("*.bin"):
                path.unlink()
        with pytest.raises(ValueError, match=victim.name):
            run(whole.search(whole.write(), 2), whole.texts)
    victim.write_bytes(content)
    run(search, whole.texts)


def test_sets_a_few_at_a_time_give_the_same(tmp_path):
    whole = Corpus(tmp_path, corpus(12, 80))
    search = whole.search(whole.write())
    summary = run(search, whole.texts)
    for path in (tmp_path / "alike").glob("*.bin"):
        before = path.read_bytes()
        path.unlink()
        place = [unit.url("alike", str(tmp_path)) for unit in search.units].index(str(path))
        verify(search, place, budget=1000)
        assert path.read_bytes() == before
    assert summary.alike > 20


def test_any_file_system_will_do(tmp_path):
    documents = corpus(13, 60)
    columns = [fuzzy_shingles.batches(texts) for texts in split(documents, 2)]
    folder = f"memory://fuzzy-{tmp_path.name}"
    units = [write_keys(folder, 0, 0, k, column, PARAMS) for k, column in enumerate(columns)]
    search = Search(folder, tuple(units), PARAMS, 2)
    summary = run(search, lambda unit: columns[unit.number])
    assert units_in(folder) == units
    assert summary == find(split(documents, 2), PARAMS).summary
    assert verdicts(search)[0].tolist() == find(split(documents, 2), PARAMS).kept.tolist()
    storage.remove(folder)


def test_files_of_other_settings_are_not_taken(tmp_path):
    whole = Corpus(tmp_path, corpus(6, 20))
    units = whole.write()
    run(whole.search(units), whole.texts)
    with pytest.raises(ValueError, match="other settings"):
        whole.write(params=Params(7, 2, 3))
    stricter = Params(PARAMS.bands, PARAMS.rows, 3, threshold=0.9)
    with pytest.raises(ValueError, match="other settings"):
        run(whole.search(units, params=stricter), whole.texts)
    with pytest.raises(ValueError, match="same generation"):
        whole.search([*units, units[0]])


def test_nothing_and_documents_without_words():
    assert find([], PARAMS).kept.tolist() == []
    assert find([[], ["", "..."], [], ["one two"]], PARAMS).kept.tolist() == [0, 1, 2]
    short = Params(4, 4, short=True)
    assert find([["one two", "", "One, two.", "two one", ""]], short).kept.tolist() == [0, 1, 0, 3, 4]


def test_the_plan_states_every_step_and_grows_with_the_corpus():
    rows = fuzzy_plan.rows(10**9, 5 * 10**12, fuzzy_shingles.published("fineweb"), 1024, 10_000)
    values = {name: value for name, value, _ in rows}
    assert values["disk: keys"] == "224.7 GB"
    assert values["memory: decide"] == "24.0 GB"
    assert all(formula for _, _, formula in rows)
    summary = find([["a b c d e f g"] * 2], PARAMS).summary
    assert fuzzy_plan.found(summary)[0][1] == "1 of 2"
