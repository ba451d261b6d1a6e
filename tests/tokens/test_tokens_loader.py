"""The store and the loader against a reference in plain Python: every mode of packing, all ranks, damage, and mistakes."""

import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import BOS, EOS, curriculum, documents, write_store

from moxin import storage
from moxin.recipe import PhaseConfig, Selection
from moxin.tokens import cache
from moxin.tokens.loader import PhaseData, check
from moxin.tokens.store import Store, dtype_for, tokens_by_length, writing
from moxin.train.objective import IGNORE
from moxin.train.pretrain import PhaseBatches

SOURCES = {"a": [documents(1, 40), documents(2, 1), [], documents(3, 25)], "b": [documents(4, 30, longest=3)]}
PHASE = PhaseConfig("p", 4000, 16, {"a": 0.6, "b": 0.4})


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    return write_store(str(tmp_path_factory.mktemp("store")), SOURCES)


def data_of(url, *phases, **rest):
    return PhaseData(url, curriculum(*phases, **rest))


def reference_windows(shards, context, grain=64):
    """Every window of a source as (tokens, targets, segments), by the book."""
    stream = [id for shard in shards for document in shard for id in document]
    owner = [(s, d) for s, shard in enumerate(shards) for d, document in enumerate(shard) for _ in document]
    windows = []
    for start in range(0, len(stream), grain):
        end = min(start + grain, len(stream))
        for first in range(start, end - context + 1, context):
            windows.append(reference_row(stream, owner, first, context))
    return windows


def reference_row(stream, owner, first, context):
    segments, targets, number = [], [], -1
    for t in range(first, first + context):
        number += t == first or owner[t] != owner[t - 1]
        segments.append(number)
        follows = t + 1 < len(stream) and owner[t + 1] == owner[t]
        targets.append(stream[t + 1] if follows else IGNORE)
    return tuple(stream[first : first + context]), tuple(targets), tuple(segments)


def rows_of(batch):
    arrays = (batch.tokens_BT, batch.targets_BT, batch.segments_BT)
    return list(zip(*([tuple(row) for row in array.tolist()] for array in arrays), strict=True))


@pytest.mark.parametrize("context", [1, 7, 16, 64])
def test_an_epoch_holds_every_window_of_the_reference_once(url, context):
    expected = sorted(reference_windows(SOURCES["a"], context))
    n = len(expected)
    data = data_of(url, PhaseConfig("p", 2 * n * context, context, {"a": 1.0}))
    for epoch in range(2):
        assert sorted(rows_of(data.batch(epoch * n, n))) == expected


def test_every_token_is_a_target_once_an_epoch(url):
    """All but the <s> of the documents, and the rest that fills no window."""
    stream = [id for shard in SOURCES["a"] for document in shard for id in document]
    n = len(stream) // 16
    targets = data_of(url, PhaseConfig("p", n * 16, 16, {"a": 1.0})).batch(0, n).targets_BT
    expected = [id for id in stream[1 : n * 16 + 1] if id != BOS]
    assert sorted(targets[targets != IGNORE].tolist()) == sorted(expected)


def test_a_batch_is_its_samples_and_says_where_they_are_from(url):
    data, again = data_of(url, PHASE), data_of(url, PHASE)
    assert data.n_samples == 4000 // 16
    batch = data.batch(100, 50)
    dtypes = (batch.tokens_BT.dtype, batch.targets_BT.dtype, batch.segments_BT.dtype)
    assert dtypes == (np.int64, np.int64, np.int32)
    for row in reversed(range(50)):
        one = again.batch(100 + row, 1)
        assert rows_of(one) == [rows_of(batch)[row]]
        sample = again.sample(100 + row)
        tokens, segments = one.tokens_BT[0].tolist(), one.segments_BT[0]
        assert len(sample.documents) == segments[-1] + 1
        for number, (file, document, first) in enumerate(sample.documents):
            source, shard = file.removeprefix("shards/").removesuffix(".bin").split("-")
            assert source == sample.key
            found = [token for token, of in zip(tokens, segments, strict=True) if of == number]
            assert found == list(SOURCES[source][int(shard)][document][first : first + len(found)])


def test_cu_seqlens_are_the_borders_of_documents_and_rows(url):
    batch = data_of(url, PHASE).batch(0, 8)
    flat = [(row, segment) for row, of in enumerate(batch.segments_BT.tolist()) for segment in of]
    expected = [t for t in range(len(flat)) if t == 0 or flat[t] != flat[t - 1]] + [len(flat)]
    assert batch.cu_seqlens.dtype == np.int32
    assert batch.cu_seqlens.tolist() == expected


@pytest.mark.parametrize("micro_batch", [16, 50, 4096])
@pytest.mark.parametrize("world", [1, 2, 3, 8, 64])
def test_any_number_of_ranks_sees_the_same_sequence(url, world, micro_batch):
    batches = PhaseBatches(url, curriculum(PHASE), global_batch=64 * 16, micro_batch=micro_batch)
    whole = data_of(url, PHASE)
    for i in range(batches.n_steps):
        micros = [batches.step(i, rank, world) for rank in range(world)]
        assert len({len(of_rank) for of_rank in micros}) == 1
        assert all(part["tokens"].size <= max(micro_batch, 16) for of_rank in micros for part in of_rank)
        expected = whole.batch(i * 64, 64)
        parts = [part for of_rank in micros for part in of_rank if (part["targets"] != IGNORE).any()]
        for name, array in (
            ("tokens", expected.tokens_BT),
            ("targets", expected.targets_BT),
            ("segments", expected.segments_BT),
        ):
            kept = (expected.targets_BT != IGNORE).any(1)
            got = np.concatenate([part[name] for part in parts])
            np.testing.assert_array_equal(
                got[(np.concatenate([p["targets"] for p in parts]) != IGNORE).any(1)], array[kept]
            )


@given(
    world=st.sampled_from([1, 2, 3, 8, 64]),
    resumed=st.sampled_from([1, 2, 3, 8, 64]),
    at=st.integers(0, 5),
)
@settings(max_examples=25, deadline=None)
def test_a_resumed_run_sees_what_an_uninterrupted_one_sees(url, world, resumed, at):
    phase = PhaseConfig("p", 6 * 64 * 16, 16, {"a": 0.6, "b": 0.4})

    def rows(i, batches, n):
        micros = [micro for rank in range(n) for micro in batches.step(i, rank, n)]
        return np.concatenate([micro["tokens"] for micro in micros]).tolist()

    whole, first, second = (PhaseBatches(url, curriculum(phase), 64 * 16, 160) for _ in range(3))
    seen = [rows(i, first, world) for i in range(at)] + [rows(i, second, resumed) for i in range(at, 6)]
    assert seen == [rows(i, whole, 1) for i in range(6)]


def test_phases_with_other_weights_and_contexts_read_on(url):
    """No position of a source comes twice before all others came, although context and mixture change."""
    phases = (
        PhaseConfig("one", 200, 4, {"a": 0.8, "b": 0.2}),
        PhaseConfig("two", 300, 16, {"a": 1.0}),
        PhaseConfig("three", 128, 64, {"a": 0.5, "b": 0.5}),
    )
    stream = [id for shard in SOURCES["a"] for document in shard for id in document]
    assert sum(n for n in (160, 300, 64)) < len(stream) - 2 * 64
    positions = []
    for index, phase in enumerate(phases):
        data = data_of(url, *phases[: index + 1])
        for i in range(data.n_samples):
            start = int(data._locate(i, 1)[0][0])
            if data.sample(i).key == "a":
                assert data.sample(i).epoch == 0
                positions += range(start, start + phase.context)
                assert data.batch(i, 1).tokens_BT[0].tolist() == stream[start : start + phase.context]
    assert len(positions) == len(set(positions)) >= 160 + 288 + 64
    again = PhaseConfig("four", 300, 16, {"a": 1.0}, repeat=True)
    assert data_of(url, *phases, again).plan()[0].first_epoch == 0
    assert data_of(url, *phases).plan()[0].first_epoch > 0.4


def test_the_plan_says_how_often_a_source_is_read(url):
    rows = data_of(url, PHASE).plan()
    assert [row.source for row in rows] == ["a", "b"]
    assert [row.tokens for row in rows] == [2400, 1600]
    assert [row.share for row in rows] == [0.6, 0.4]
    for row in rows:
        windows = len(reference_windows(SOURCES[row.source], 16))
        assert (row.first_epoch, row.last_epoch) == (0, row.samples / windows)


def lengths_of(source):
    return [len(document) for shard in SOURCES[source] for document in shard]


@pytest.mark.parametrize("key", ["a>=16", "a<16", "a<8", "a>=2"])
def test_documents_are_chosen_by_length(url, key):
    chosen = Selection.parse(key)
    shards = [
        [document for document in shard if chosen.least <= len(document) < chosen.below]
        for shard in SOURCES["a"]
    ]
    expected = sorted(reference_windows(shards, 4))
    data = data_of(url, PhaseConfig("p", len(expected) * 4, 4, {key: 1.0}))
    assert sorted(rows_of(data.batch(0, len(expected)))) == expected
    for i in range(len(expected)):
        for file, document, first in data.sample(i).documents:
            whole = SOURCES["a"][int(file[-9:-4])][document]
            assert chosen.least <= len(whole) < chosen.below
            assert first < len(whole)


def test_half_of_a_phase_may_prefer_long_documents(url):
    data = data_of(url, PhaseConfig("p", 160, 8, {"a>=16": 0.5, "a": 0.5}))
    assert [(row.source, row.samples) for row in data.plan()] == [("a>=16", 10), ("a", 10)]


@pytest.mark.parametrize("text", ["a>=12", "a<1", "a>=", "a<x", "a>=0"])
def test_a_length_that_no_count_is_kept_for_is_refused(text):
    with pytest.raises(ValueError, match="write a power of two"):
        Selection.parse(text)


def test_tokens_by_length():
    lengths = np.array([1, 2, 3, 4, 9, 16])
    assert tokens_by_length(lengths) == (35, 34, 29, 25, 16)
    assert tokens_by_length(np.empty(0, np.int64)) == ()


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65_536, np.uint16), (65_537, np.uint32)])
def test_a_wide_vocabulary_is_stored_in_32_bits(tmp_path, vocab_size, dtype):
    wide = [BOS, 65_535, vocab_size - 1, EOS]
    url = write_store(str(tmp_path / "s"), {"a": [[wide, wide]]}, vocab_size)
    raw = np.fromfile(tmp_path / "s/shards/a-00000.bin", np.dtype(dtype).newbyteorder("<"))
    assert raw.tolist() == wide * 2
    assert np.fromfile(tmp_path / "s/shards/a-00000.idx", "<u8").tolist() == [0, 4, 8]
    batch = data_of(url, PhaseConfig("p", 8, 8, {"a": 1.0})).batch(0, 1)
    assert batch.tokens_BT[0].tolist() == wide * 2


def test_an_id_that_does_not_fit_is_never_written(tmp_path):
    with (
        pytest.raises(OverflowError),
        writing(str(tmp_path), "shards/a-00000.bin", dtype_for(100)) as (writer, _),
    ):
        writer.append(np.array([65_536]), np.array([1]))
    assert storage.files_under(str(tmp_path)) == []


def test_mistakes_in_a_mix_are_named(url):
    with pytest.raises(ValueError, match=r"source 'b' has \d+ tokens, less than one window of context = 512"):
        data_of(url, PhaseConfig("p", 5120, 512, {"a": 1.0, "b": 1.0}), grain=512)
    with pytest.raises(ValueError, match=r"nothing of 'aa'; did you mean 'a'"):
        data_of(url, PhaseConfig("p", 512, 16, {"aa": 1.0}))
    data_of(url, PhaseConfig("p", 512, 16, {"a": 1.0, "aa": 0.0}))
    with pytest.raises(ValueError, match="less than one sample"):
        data_of(url, PhaseConfig("p", 15, 16, {"a": 1.0}))
    with pytest.raises(ValueError, match=r"exceeds model\.max_seq_len = 64"):
        data_of(url, PhaseConfig("p", 128, 128, {"a": 1.0}))
    data = data_of(url, PHASE)
    with pytest.raises(IndexError):
        data.batch(data.n_samples, 1)


def test_a_source_too_small_for_its_share_says_how_much_is_lacking(url):
    windows = len(reference_windows(SOURCES["b"], 16))
    fits = PhaseConfig("p", 2 * windows * 16, 16, {"b": 1.0})
    check(url, curriculum(fits), {"b": 2})
    first = PhaseConfig("first", windows * 16, 16, {"b": 1.0})
    with pytest.raises(
        ValueError, match=rf"phases.p: source 'b' is {windows * 16:,} tokens short .*max_epochs = 2 leaves"
    ):
        check(url, curriculum(first, fits), {"b": 2})
    data_of(url, first, fits)


def damage_truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def damage_vocabulary(path):
    path.write_bytes(b"\xff" * path.stat().st_size)


def damage_one_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("file", ["shards/a-00003.bin", "shards/a-00003.idx"])
@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (damage_truncate, r"it has [\d,]+ bytes, expected [\d,]+"),
        (damage_vocabulary, r"its SHA-256 is f?[0-9a-f]+, expected [0-9a-f]{64}"),
        (damage_one_bit, r"its SHA-256 is [0-9a-f]{64}, expected [0-9a-f]{64}"),
        (lambda path: path.unlink(), r"it is missing \(expected [\d,]+ bytes, SHA-256 [0-9a-f]{64}\)"),
    ],
)
def test_a_damaged_shard_is_named_with_what_to_do(url, tmp_path, file, damage, problem):
    copy = tmp_path / "copy"
    shutil.copytree(url, copy)
    data_of(str(copy), PHASE).batch(0, 250)  # whole, and known to be so
    damage(copy / file)
    with pytest.raises(
        ValueError, match=rf"{file}: a damaged file, {problem}; .* run jobs/tokenize.py again"
    ):
        data_of(str(copy), PHASE).batch(0, 250)


@pytest.mark.parametrize("file", ["shards/a-00003.bin", "shards/a-00003.idx"])
def test_unverified_damage_is_still_no_crash(url, tmp_path, file):
    copy = tmp_path / "copy"
    shutil.copytree(url, copy)
    damage_vocabulary(copy / file)
    with pytest.raises(
        ValueError, match=rf"{file}: a damaged file, (it holds the id 65,535|the offsets do not)"
    ):
        PhaseData(str(copy), curriculum(PHASE), verify=False).batch(0, 250)


def test_another_tokenizer_than_the_stores_is_refused(url):
    store = Store.open(url)
    store.check("fingerprint", "tokenizer.json")
    with pytest.raises(
        ValueError, match=r"tokenizer.json: this tokenizer \(other\) is not the one that made"
    ):
        store.check("other", "tokenizer.json")


def test_a_folder_without_a_store_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no token store \(store.json\)"):
        Store.open(str(tmp_path))


def test_a_remote_store_reads_the_same_and_is_copied_once(url, tmp_path, monkeypatch):
    remote = write_store(f"memory://{tmp_path.name}/store", SOURCES)
    here, there = data_of(url, PHASE), data_of(remote, PHASE)
    there.look_ahead(0, 250)
    assert rows_of(here.batch(0, 250)) == rows_of(there.batch(0, 250))
    monkeypatch.setattr(
        cache.ShardCache, "_download", lambda *_: pytest.fail("it is there already"), raising=False
    )
    assert rows_of(data_of(remote, PHASE).batch(0, 250)) == rows_of(here.batch(0, 250))
