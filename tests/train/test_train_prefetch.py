"""The reader a step ahead: the same data, made beforehand, and an error where it belongs."""

import threading
import time

import numpy as np
import pytest

from moxin.train.prefetch import Prefetched


class Batches:
    n_steps = 6

    def __init__(self, broken=-1):
        self.broken, self.made, self.threads = broken, [], set()

    def step(self, i, rank, world):
        self.made.append(i)
        self.threads.add(threading.current_thread())
        if i == self.broken:
            raise ValueError(f"step {i} is broken")
        return [{"tokens": np.array([[100 * rank + i, world]])}]

    def size(self, i):
        return 1


def test_every_step_comes_in_order_and_nothing_beyond_the_end_is_made():
    batches = Batches()
    with Prefetched(batches, 1, 2, pin=False) as data:
        found = [data.step(i)[0]["tokens"].tolist() for i in range(2, 6)]
    assert found == [[[100 + i, 2]] for i in range(2, 6)]
    assert batches.made == [2, 3, 4, 5]
    assert threading.main_thread() not in batches.threads


def test_the_next_step_is_made_while_this_one_is_trained():
    batches = Batches()
    with Prefetched(batches, 0, 1, pin=False) as data:
        data.step(0)
        deadline = time.monotonic() + 30
        while batches.made != [0, 1]:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        data.step(1)


def test_any_step_may_be_asked_for():
    with Prefetched(Batches(), 0, 1, pin=False) as data:
        assert [data.step(i)[0]["tokens"][0, 0] for i in (0, 4, 1, 1)] == [0, 4, 1, 1]


def test_an_error_is_raised_by_the_step_that_it_is_about():
    with Prefetched(Batches(broken=2), 0, 1, pin=False) as data:
        data.step(0)
        data.step(1)
        with pytest.raises(ValueError, match="step 2 is broken"):
            data.step(2)
