"""The order of samples: exact shares at every prefix, every window once an epoch, a function of its inputs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.tokens import permute
from moxin.tokens.order import Cut, Order, cut, parts, pattern, slots

MIX = {"prose": 0.2, "code": 0.1, "world": 0.7, "off": 0.0}
CUTS = {"prose": Cut(13, 1), "code": Cut(1, 1), "world": Cut(7, 4, rest=1, has_rest=True, mixed=3)}


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
    "counts",
    [[1], [7, 2, 1], [50] + [1] * 50, [3333, 3333, 3334], [997, 2, 1], [5, 5, 5], [9900] + [1] * 100],
)
def test_every_prefix_holds_every_source_in_proportion(counts):
    counts = np.array(counts)
    sources, ranks = pattern(counts)
    seen = np.cumsum(sources[:, None] == np.arange(len(counts)), axis=0)
    exact = np.arange(1, len(sources) + 1)[:, None] * counts / counts.sum()
    assert np.abs(seen - exact).max() < 1
    assert (seen[-1] == counts).all()
    assert (ranks == seen[np.arange(len(sources)), sources] - 1).all()


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=6),
    st.integers(0, 3000),
    st.integers(1, 3000),
)
@settings(max_examples=60, deadline=None)
def test_any_window_holds_every_source_within_two_samples(counts, first, n):
    mix = {str(number): float(count) for number, count in enumerate(counts)}
    order = Order(1, "p", mix, {name: Cut(10, 2) for name in mix}, first + n, {})
    sources = order.locate(np.arange(first, first + n))[0]
    exact = n * np.array(counts) / sum(counts)
    deviation = np.abs(np.bincount(sources, minlength=len(counts)) - exact).max()
    assert deviation < (1 if len(counts) <= 2 or first == 0 or n % sum(counts) == 0 else 2)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17, 1000, 65537])
def test_a_keyed_permutation_hits_everything_once(size):
    everything = np.arange(size)
    moved = permute(everything, size, np.uint64(7))
    assert (np.sort(moved) == everything).all()
    assert (permute(everything[::-1].copy(), size, np.uint64(7))[::-1] == moved).all()
    if size >= 1000:
        assert not (permute(everything, size, np.uint64(8)) == moved).mean() > 0.01
        assert abs(np.corrcoef(everything, moved)[0, 1]) < 0.1
        assert abs(np.corrcoef(moved[1:], moved[:-1])[0, 1]) < 0.1


def test_a_permutation_of_more_windows_than_memory_could_list():
    size = 3 * 10**12
    moved = permute(np.arange(10**12, 10**12 + 1000), size, np.uint64(1))
    assert len(set(moved.tolist())) == 1000
    assert moved.min() >= 0
    assert moved.max() < size


def everything_of(cut):
    grains = [(grain, window) for grain in range(cut.full) for window in range(cut.per_grain)]
    return grains + [(cut.full, window) for window in range(cut.rest)]


some_cuts = st.builds(
    cut,
    tokens=st.integers(1, 700),
    grain=st.sampled_from([8, 16, 48]),
    context=st.sampled_from([1, 2, 3, 8]),
    mixed_tokens=st.sampled_from([1, 16, 100, 10**9]),
).filter(lambda found: found.windows)


@given(some_cuts, st.floats(0, 3), st.floats(0.01, 3))
@settings(max_examples=200, deadline=None)
def test_an_epoch_has_every_window_once_wherever_a_phase_begins(cut, begin, length):
    start, n = int(begin * cut.places), max(1, int(length * cut.windows))
    order = Order(3, "p", {"a": 1.0}, {"a": cut}, n, {"a": start})
    _, part, grain, window = order.locate(np.arange(n))
    for number, of in enumerate(order.parts):
        found = list(zip(grain[part == number].tolist(), window[part == number].tolist(), strict=True))
        assert len(found) == len(set(found)) <= of.windows
        assert set(found) <= set(everything_of(cut))
        if number + 1 < len(order.parts):  # a part that the phase reads to its end
            assert len(found) == of.windows == cut.windows_from(of.place)
    assert sum(of.windows for of in order.parts) - n < max(cut.per_grain, 1)


@given(
    st.integers(1, 900),
    st.lists(
        st.tuples(st.sampled_from([1, 2, 4, 16]), st.floats(0.05, 0.8)),
        min_size=2,
        max_size=4,
    ),
    st.sampled_from([1, 40, 10**9]),
)
@settings(max_examples=200, deadline=None)
def test_phases_of_any_context_read_no_token_twice_before_all_were_read(tokens, phases, mixed):
    grain, start = 16, 0
    epochs: dict[int, list[int]] = {}
    for number, (context, share) in enumerate(phases):
        cut_ = cut(tokens, grain, context, mixed)
        n = int(share * cut_.windows)
        if not n:
            continue
        order = Order(5, f"phase{number}", {"a": 1.0}, {"a": cut_}, n, {"a": start})
        _, part, grains, windows = order.locate(np.arange(n))
        for of, place, window in zip(part.tolist(), grains.tolist(), windows.tolist(), strict=True):
            first = place * grain + window * context
            epochs.setdefault(order.parts[of].epoch, []).extend(range(first, first + context))
        assert order.ends["a"] > start
        start = order.ends["a"]
    for read in epochs.values():
        assert len(read) == len(set(read))
        assert all(0 <= position < tokens for position in read)


def test_what_is_mixed_at_a_time_is_bounded():
    """Samples that follow each other lie in few blocks of grains, so a machine needs little of a large source at hand."""
    whole = cut(10**9, 8192, 2048, 10**9)
    local = cut(10**9, 8192, 2048, 10**7)
    for cut_, lowest, highest in ((whole, 0.9, 1.0), (local, 0.01, 0.04)):
        order = Order(1, "p", {"a": 1.0}, {"a": cut_}, 10**5, {})
        _, _, grain, window = order.locate(np.arange(1000))
        blocks = np.unique(grain * 8192 // 10**7)
        assert lowest <= len(blocks) / 100 <= highest
        assert abs(np.corrcoef(grain[1:], grain[:-1])[0, 1]) < 0.1
        assert set(window.tolist()) == {0, 1, 2, 3}


def test_epochs_phases_and_seeds_differ():
    def order(seed=1, phase="p"):
        return np.stack(Order(seed, phase, MIX, CUTS, 1000, {}).locate(np.arange(500)))

    reference = order()
    assert (reference == order()).all()
    assert not (order(seed=2) == reference).all()
    assert not (order(phase="q") == reference).all()
    source, _, grain, window = reference
    world = (source == 2).nonzero()[0]
    first, second = (np.stack([grain, window])[:, world[29 * epoch : 29 * (epoch + 1)]] for epoch in (0, 1))
    assert not (first == second).all()
    backwards = Order(1, "p", MIX, CUTS, 1000, {})
    one_by_one = [np.stack(backwards.locate(np.array([i]))) for i in reversed(range(500))]
    assert (np.concatenate(one_by_one, axis=1)[:, ::-1] == reference).all()


def test_the_order_never_changes():
    """Runs that were begun with an older version go on with the same samples."""
    source, part, grain, window = Order(1, "phase1", MIX, CUTS, 1000, {"world": 9}).locate(np.arange(40, 52))
    assert source.tolist() == [2, 2, 0, 2, 2, 1, 2, 2, 0, 2, 2, 2]
    assert part.tolist() == [117, 117, 0, 117, 117, 20, 117, 117, 0, 117, 117, 117]
    assert grain.tolist() == [4, 4, 10, 3, 4, 0, 5, 3, 3, 4, 3, 5]
    assert window.tolist() == [0, 2, 0, 2, 1, 0, 2, 0, 0, 3, 3, 0]


def test_samples_are_counted_per_source():
    order = Order(1, "phase1", MIX, CUTS, 1000, {})
    for n in (0, 1, 7, 10, 123):
        counted = np.bincount(order.locate(np.arange(n))[0], minlength=3)
        assert list(order.samples_of(n).values()) == counted.tolist()


def test_a_phase_goes_on_where_the_one_before_stopped():
    found = cut(100, grain=16, context=4, mixed_tokens=1000)  # 6 grains of 4 windows, and a rest of 1
    assert (found.full, found.per_grain, found.rest, found.places, found.windows) == (6, 4, 1, 7, 25)
    read, end = parts(found, 0, 9)
    assert ([tuple(part) for part in read], end) == ([(0, 0, 12)], 3)
    read, end = parts(found, 3, 12 + 1 + 25 + 2)
    assert ([tuple(part) for part in read], end) == ([(0, 3, 13), (1, 0, 25), (2, 0, 4)], 15)
    assert found.windows_before(15) == 2 * 25 + 4
    assert found.windows_before(13) == 25 + 24
