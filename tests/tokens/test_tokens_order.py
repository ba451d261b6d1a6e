"""The order of samples: exact shares at every prefix, every window once an epoch, a function of (seed, phase, i) alone."""

import numpy as np
import pytest

from moxin.tokens.order import Order, pattern, permute, slots

MIX = {"prose": 0.2, "code": 0.1, "world": 0.7, "off": 0.0}
WINDOWS = {"prose": 13, "code": 1, "world": 29, "off": 5}


@pytest.mark.parametrize(
    ("mix", "expected"),
    [
        ({"a": 0.7, "b": 0.2, "c": 0.1}, {"a": 7, "b": 2, "c": 1}),
        ({"a": 3, "b": 1.0, "off": 0}, {"a": 3, "b": 1}),
        ({"a": 0.3}, {"a": 1}),
        ({"a": 1.0, "b": 1.4142135, "c": 2.718281828}, {"a": 1948, "b": 2756, "c": 5296}),
    ],
)
def test_weights_become_whole_samples_of_a_period(mix, expected):
    assert slots(mix) == expected


def test_a_weight_too_small_for_any_sample_is_named():
    with pytest.raises(ValueError, match="'tiny' has weight 1e-06"):
        slots({"big": 1.0, "tiny": 1e-6})


@pytest.mark.parametrize(
    "counts", [[1], [7, 2, 1], [50] + [1] * 50, [3333, 3333, 3334], [997, 2, 1], [5, 5, 5]]
)
def test_every_prefix_holds_every_source_in_proportion(counts):
    counts = np.array(counts)
    sources, ranks = pattern(counts)
    seen = np.cumsum(sources[:, None] == np.arange(len(counts)), axis=0)
    exact = np.arange(1, len(sources) + 1)[:, None] * counts / counts.sum()
    assert np.abs(seen - exact).max() < 1
    assert (ranks == seen[np.arange(len(sources)), sources] - 1).all()


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17, 1000, 65537])
def test_a_keyed_permutation_hits_everything_once(size):
    everything = np.arange(size)
    moved = permute(everything, size, key=7)
    assert (np.sort(moved) == everything).all()
    assert (permute(everything[::-1], size, key=7)[::-1] == moved).all()
    if size >= 1000:
        assert not (permute(everything, size, key=8) == moved).mean() > 0.01
        assert abs(np.corrcoef(everything, moved)[0, 1]) < 0.1
        assert abs(np.corrcoef(moved[1:], moved[:-1])[0, 1]) < 0.1


def test_a_permutation_of_more_windows_than_memory_could_list():
    size = 3 * 10**12
    moved = permute(np.arange(10**12, 10**12 + 1000), size, key=1)
    assert len(set(moved.tolist())) == 1000
    assert moved.min() >= 0
    assert moved.max() < size


def test_every_window_comes_once_an_epoch_and_the_epochs_differ():
    order = Order(1, "phase1", MIX, WINDOWS)
    source, epoch, window = order.locate(np.arange(1000))
    assert order.names == ["prose", "code", "world"]
    for number, name in enumerate(order.names):
        here = source == number
        size = WINDOWS[name]
        expected = np.arange(here.sum()) // size
        assert (epoch[here] == expected).all()
        whole = here.sum() // size
        passes = window[here][: whole * size].reshape(whole, size)
        assert (np.sort(passes, axis=1) == np.arange(size)).all()
        if size > 1:
            assert not (passes[0] == passes[1]).all()


def test_a_sample_depends_on_seed_phase_and_number_alone():
    reference = np.stack(Order(1, "phase1", MIX, WINDOWS).locate(np.arange(500)))
    order = Order(1, "phase1", MIX, WINDOWS)
    backwards = np.concatenate([np.stack(order.locate(np.array([i]))) for i in reversed(range(500))], axis=1)
    assert (backwards[:, ::-1] == reference).all()
    for other in (Order(2, "phase1", MIX, WINDOWS), Order(1, "phase2", MIX, WINDOWS)):
        assert not (np.stack(other.locate(np.arange(500))) == reference).all()


def test_the_order_never_changes():
    """Runs that were begun with an older version go on with the same samples."""
    source, epoch, window = Order(1, "phase1", MIX, WINDOWS).locate(np.arange(40, 52))
    assert source.tolist() == [2, 2, 0, 2, 2, 1, 2, 2, 0, 2, 2, 2]
    assert epoch.tolist() == [0, 1, 0, 1, 1, 4, 1, 1, 0, 1, 1, 1]
    assert window.tolist() == [7, 19, 5, 16, 3, 0, 28, 13, 2, 1, 9, 8]


def test_samples_are_counted_per_source():
    order = Order(1, "phase1", MIX, WINDOWS)
    for n in (0, 1, 7, 10, 123):
        counted = np.bincount(order.locate(np.arange(n))[0], minlength=3)
        assert list(order.samples_of(n).values()) == counted.tolist()
