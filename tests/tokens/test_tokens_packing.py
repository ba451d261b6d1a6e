"""Best-fit packed rows: every position once, documents cut only where they must be, and the stage that makes them."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import curriculum, documents, write_store

from kernels.tokens import best_fit
from moxin import artifact, recipes, storage
from moxin.artifact import Artifact
from moxin.recipe import PhaseConfig
from moxin.tokens import packing, run
from moxin.tokens.loader import PhaseData
from moxin.train.objective import IGNORE

SOURCES = {
    "a": [documents(1, 40), documents(2, 1, longest=200), [], documents(3, 25)],
    "b": [documents(4, 60, longest=40)],
}
PHASE = PhaseConfig("p", 160, 16, {"a": 0.5, "b<32": 0.5}, packing="best_fit")


@given(st.integers(1, 70), st.lists(st.integers(1, 70), max_size=80))
@settings(max_examples=200, deadline=None)
def test_best_fit_fills_the_fullest_bin_that_holds_an_item(capacity, lengths):
    lengths = [min(length, capacity) for length in lengths]
    bins, n_bins = best_fit(np.array(lengths, np.int64), capacity)
    # By the book: longest first, into the fullest bin with room. Which of equally full ones does not change the filling.
    free: list[int] = []
    for length in sorted(lengths, reverse=True):
        room = min((space for space in free if space >= length), default=None)
        if room is not None:
            free.remove(room)
        free.append((capacity if room is None else room) - length)
    filled = np.bincount(bins, weights=lengths, minlength=n_bins)
    assert sorted(capacity - filled) == sorted(free)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=40), st.integers(1, 20))
@settings(max_examples=200, deadline=None)
def test_every_position_is_in_one_piece_and_only_long_documents_are_cut(lengths, context):
    cum = np.concatenate([[0], np.cumsum(lengths)]).astype(np.uint64)
    rows = packing.pack(cum, context)
    per_row = np.add.reduceat(rows.length, rows.first[:-1]) if len(rows.first) > 1 else np.empty(0)
    assert (per_row <= context).all()
    pieces = sorted(zip(rows.start.tolist(), rows.length.tolist(), strict=True))
    expected = []
    for begin, length in zip(cum[:-1].tolist(), lengths, strict=True):
        for first in range(0, length - 1, context):
            expected.append((begin + first, min(context, length - 1 - first)))
    assert pieces == sorted(expected)


@pytest.fixture
def made(ray_session, tmp_path):
    url = write_store(str(tmp_path / "store"), SOURCES)
    recipe = replace(recipes.load("smoke"), pretrain=replace(recipes.load("smoke").pretrain, phases=(PHASE,)))
    stage = run.pack_stage(recipe, 0, Artifact("tokenize", "0" * 12, url, {"counts": {}}))
    return url, artifact.make(stage, str(tmp_path / "run"))


@pytest.mark.slow
def test_an_epoch_of_packed_rows_has_every_prediction_once(made):
    url, packs = made
    assert packs.verify() == []
    rows = {
        key: sum(shard["rows"] for shard in shards)
        for key, shards in packing.Packs(packs.url).described["streams"].items()
    }
    phase = replace(PHASE, tokens=2 * 16 * max(rows.values()))
    data = PhaseData(url, curriculum(phase), packs.url)
    expected = {
        "a": [pair for shard in SOURCES["a"] for document in shard for pair in pairwise(document)],
        "b<32": [pair for document in SOURCES["b"][0] if len(document) < 32 for pair in pairwise(document)],
    }
    found = {key: [] for key in expected}
    seen = dict.fromkeys(rows, 0)
    padding = 0
    for i in range(data.n_samples):
        sample, batch = data.sample(i), data.batch(i, 1)
        if seen[sample.key] == rows[sample.key]:
            continue  # a next epoch
        seen[sample.key] += 1
        tokens, targets, segments = batch.tokens_BT[0], batch.targets_BT[0], batch.segments_BT[0]
        assert ((segments == -1) == (targets == IGNORE)).all()
        assert segments.max() + 1 == len(sample.documents)
        padding += (segments == -1).sum()
        kept = segments >= 0
        found[sample.key] += zip(tokens[kept].tolist(), targets[kept].tolist(), strict=True)
    assert seen == rows
    assert {key: sorted(pairs) for key, pairs in found.items()} == {
        key: sorted(pairs) for key, pairs in expected.items()
    }
    assert padding == sum(packs.counts[key]["padding"] for key in rows)
    assert [packs.counts[key]["cut"] for key in rows] == [
        sum(len(document) > 17 for shard in SOURCES["a"] for document in shard),
        sum(17 < len(document) < 32 for document in SOURCES["b"][0]),
    ]


@pytest.mark.slow
def test_two_packed_phases_read_on(made):
    url, packs = made
    first, second = replace(PHASE, name="first"), replace(PHASE, name="second")
    starts = []
    for index in range(2):
        data = PhaseData(url, curriculum(*(first, second)[: index + 1]), packs.url)
        located = [data._locate(i, 1) for i in range(data.n_samples)]
        starts += [(int(source[0]), int(start[0])) for start, source, _ in located]
    assert len(starts) == len(set(starts)) == 20


@pytest.mark.slow
def test_packed_rows_have_their_limit_too(made):
    url, packs = made
    rows = sum(shard["rows"] for shard in packing.Packs(packs.url).described["streams"]["a"])
    phase = replace(PHASE, tokens=2 * 16 * (rows + 1), mix={"a": 0.5, "b<32": 0.5})
    data = PhaseData(url, curriculum(phase), packs.url)
    data.check_limits({"a": 1.5, "b": 0})
    with pytest.raises(ValueError, match=r"phases.p: source 'a' is 16 tokens short of its share"):
        data.check_limits({"a": 1.0})


@pytest.mark.slow
def test_a_row_longer_than_every_document_is_refused(ray_session, tmp_path):
    url = write_store(str(tmp_path / "store"), {"b": SOURCES["b"]})
    phase = PhaseConfig("long", 640, 64, {"b": 1.0}, packing="best_fit")
    recipe = replace(recipes.load("smoke"), pretrain=replace(recipes.load("smoke").pretrain, phases=(phase,)))
    stage = run.pack_stage(recipe, 0, Artifact("tokenize", "0" * 12, url, {"counts": {}}))
    with pytest.raises(
        ValueError, match=r"best_fit at context = 64, but the longest document of its mix has 4\d tokens"
    ):
        artifact.make(stage, str(tmp_path / "run"))


@pytest.mark.slow
def test_damaged_packs_are_named(made):
    url, packs = made
    file = next(name for name in storage.files_under(packs.url) if name.endswith("a-00000.pack"))
    data = bytearray(storage.read_bytes(packs.file(file)))
    data[9] ^= 1
    storage.write_bytes(packs.file(file), bytes(data))
    with pytest.raises(
        ValueError, match=r"a-00000.pack: a damaged file, its SHA-256 is .* run jobs/pretrain.py again"
    ):
        PhaseData(url, curriculum(PHASE), packs.url).batch(0, 10)
