"""The store and the loader against a reference in plain Python, damage, wide vocabularies, and remote stores."""

import random
from dataclasses import asdict

import numpy as np
import pytest

from moxin import storage
from moxin.recipe import PhaseConfig
from moxin.tokens import store as token_store
from moxin.tokens.loader import IGNORE, PhaseData
from moxin.tokens.store import Store, dtype_for, writing

BOS, EOS = 1, 2


def write_store(url, sources, vocab_size=1000):
    """A store of `{source: [shard: [document: ids]]}`."""
    described = {}
    for name, shards in sources.items():
        written = []
        for number, documents in enumerate(shards):
            with writing(url, f"shards/{name}-{number:05d}.bin", dtype_for(vocab_size)) as writer:
                for document in documents:
                    writer.append(document)
            written.append(writer.shard)
        described[name] = {"shards": [asdict(shard) for shard in written]}
    store = {"dtype": dtype_for(vocab_size).name, "vocab_size": vocab_size, "sources": described}
    storage.write_json(storage.join(url, "store.json"), store)
    return url


def documents(seed, n, longest=30, vocab_size=1000):
    rng = random.Random(seed)
    return [
        [BOS, *(rng.randrange(7, vocab_size) for _ in range(rng.randrange(longest))), EOS] for _ in range(n)
    ]


SOURCES = {"a": [documents(1, 40), documents(2, 1), documents(3, 25)], "b": [documents(4, 30, longest=3)]}
PHASE = PhaseConfig("p", 4000, 16, {"a": 0.6, "b": 0.4})


@pytest.fixture
def url(tmp_path):
    return write_store(str(tmp_path / "store"), SOURCES)


def reference_windows(shards, context):
    """Every window of a source as (tokens, targets, segments), by the book."""
    stream = [id for shard in shards for document in shard for id in document]
    owner = [(s, d) for s, shard in enumerate(shards) for d, document in enumerate(shard) for _ in document]
    windows = []
    for start in range(0, len(stream) - context, context):
        segments, number = [], -1
        for t in range(start, start + context):
            if t == start or owner[t] != owner[t - 1]:
                number += 1
            segments.append(number)
        targets = [
            stream[t + 1] if owner[t + 1] == owner[t] else IGNORE for t in range(start, start + context)
        ]
        windows.append((tuple(stream[start : start + context]), tuple(targets), tuple(segments)))
    return windows


@pytest.mark.parametrize("context", [1, 7, 16, 100])
def test_an_epoch_holds_every_window_of_the_reference_once(url, context):
    expected = sorted(reference_windows(SOURCES["a"], context))
    n = len(expected)
    data = PhaseData(url, PhaseConfig("p", 2 * n * context, context, {"a": 1.0}), seed=1)
    for epoch in range(2):
        batch = data.batch(epoch * n, n)
        rows = zip(batch.tokens_BT, batch.targets_BT, batch.segments_BT, strict=True)
        assert (
            sorted((tuple(a.tolist()), tuple(b.tolist()), tuple(c.tolist())) for a, b, c in rows) == expected
        )


def test_every_token_is_a_target_once_an_epoch(url):
    """All but the <s> of the documents and the rest that fills no window."""
    stream = [id for shard in SOURCES["a"] for document in shard for id in document]
    n = (len(stream) - 1) // 16
    targets = PhaseData(url, PhaseConfig("p", n * 16, 16, {"a": 1.0}), seed=1).batch(0, n).targets_BT
    expected = [id for id in stream[1 : n * 16 + 1] if id != BOS]
    assert sorted(targets[targets != IGNORE].tolist()) == sorted(expected)


def test_a_batch_is_its_samples(url):
    data, again = PhaseData(url, PHASE, seed=1), PhaseData(url, PHASE, seed=1)
    assert data.n_samples == 4000 // 16
    batch = data.batch(100, 50)
    assert (batch.tokens_BT.dtype, batch.targets_BT.dtype, batch.segments_BT.dtype) == (
        np.int64,
        np.int64,
        np.int32,
    )
    for row in reversed(range(50)):
        tokens, segments = again.sample(100 + row)
        assert tokens.shape == segments.shape == (17,)
        assert (batch.tokens_BT[row] == tokens[:-1]).all()
        assert (batch.segments_BT[row] == segments[:-1]).all()
        crossing = segments[1:] != segments[:-1]
        assert (batch.targets_BT[row] == np.where(crossing, IGNORE, tokens[1:])).all()
        assert (tokens[1:][crossing] == BOS).all()


def test_the_plan_says_how_often_a_source_is_read(url):
    rows = PhaseData(url, PHASE, seed=1).plan()
    assert [row.source for row in rows] == ["a", "b"]
    assert [row.tokens for row in rows] == [2400, 1600]
    assert [row.weight for row in rows] == [0.6, 0.4]
    lengths = {name: sum(len(d) for shard in shards for d in shard) for name, shards in SOURCES.items()}
    assert [row.epochs for row in rows] == [
        row.tokens / 16 / ((lengths[row.source] - 1) // 16) for row in rows
    ]


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65_536, np.uint16), (65_537, np.uint32)])
def test_a_wide_vocabulary_is_stored_in_32_bits(tmp_path, vocab_size, dtype):
    wide = [BOS, 65_535, vocab_size - 1, EOS]
    url = write_store(str(tmp_path), {"a": [[wide, wide]]}, vocab_size)
    raw = np.fromfile(tmp_path / "shards/a-00000.bin", np.dtype(dtype).newbyteorder("<"))
    assert raw.tolist() == wide * 2
    assert np.fromfile(tmp_path / "shards/a-00000.idx", "<u8").tolist() == [0, 4, 8]
    tokens, _ = PhaseData(url, PhaseConfig("p", 7, 7, {"a": 1.0}), seed=1).sample(0)
    assert tokens.tolist() == wide * 2


def test_an_id_that_does_not_fit_is_never_written(tmp_path):
    with pytest.raises(OverflowError), writing(str(tmp_path), "shards/a-00000.bin", dtype_for(100)) as writer:
        writer.append([65_536])
    assert storage.files_under(str(tmp_path)) == []


def test_a_source_without_a_whole_window_is_named(url):
    with pytest.raises(
        ValueError, match=r"source 'b' has \d+ tokens, less than one window of context \+ 1 = 513"
    ):
        PhaseData(url, PhaseConfig("p", 5120, 512, {"a": 1.0, "b": 1.0}), seed=1)


def test_a_source_without_tokens_is_named(url):
    with pytest.raises(ValueError, match=r"pretrain.phases.p.mix names 'aa', .* did you mean 'a'"):
        PhaseData(url, PhaseConfig("p", 512, 16, {"aa": 1.0}), seed=1)
    PhaseData(url, PhaseConfig("p", 512, 16, {"a": 1.0, "aa": 0.0}), seed=1)


def test_samples_beyond_the_phase_are_refused(url):
    data = PhaseData(url, PHASE, seed=1)
    with pytest.raises(IndexError):
        data.sample(data.n_samples)
    with pytest.raises(ValueError, match="less than one sample"):
        PhaseData(url, PhaseConfig("p", 15, 16, {"a": 1.0}), seed=1)


def damage_truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def damage_vocabulary(path):
    path.write_bytes(b"\xff" * path.stat().st_size)


@pytest.mark.parametrize("file", ["shards/a-00002.bin", "shards/a-00002.idx"])
@pytest.mark.parametrize("damage", [damage_truncate, damage_vocabulary, lambda path: path.unlink()])
def test_a_damaged_shard_is_named_with_what_to_do(url, tmp_path, file, damage):
    damage(tmp_path / "store" / file)
    with pytest.raises(ValueError, match=rf"{file}: a damaged token shard, .* run jobs/tokenize.py again"):
        PhaseData(url, PHASE, seed=1).batch(0, 250)


def test_a_folder_without_a_store_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no token store \(store.json\)"):
        Store.open(str(tmp_path))


def test_a_remote_store_is_copied_once_and_reads_the_same(url, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    remote = write_store(f"memory://{tmp_path.name}/store", SOURCES)
    here, there = PhaseData(url, PHASE, seed=1), PhaseData(remote, PHASE, seed=1)
    assert (here.batch(0, 250).tokens_BT == there.batch(0, 250).tokens_BT).all()
    monkeypatch.setattr(token_store.storage, "download", pytest.fail)
    PhaseData(remote, PHASE, seed=1)
