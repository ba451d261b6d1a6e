"""Who hangs: told from when workers were heard of and what they said."""

import threading
import time

from moxin.train import beats
from moxin.train.beats import Beat, Board, Heart

WAITING = '  File "x/torch/distributed/distributed_c10d.py", line 1, in all_reduce\n'


def beat(rank, place="computes", step=7, since=100.0, stack=""):
    return Beat(rank, "here", "node", 1000 + rank, place, step, since, stack)


def test_a_group_hangs_when_none_of_it_gets_on():
    assert beats.stalled([(0.5, beat(0)), (0.5, beat(1))], 60)
    assert not beats.stalled([(0.5, beat(0)), (0.5, beat(1, since=1.0))], 60)
    assert beats.stalled([(90.0, beat(0, since=1.0)), (0.5, beat(1))], 60)
    assert not beats.stalled([(0.5, beat(0)), (0.5, beat(1, step=0))], 60)  # still loads its weights
    assert not beats.stalled([], 60)


def test_who_waits_for_others_is_not_the_one():
    waits, works = beat(0, stack=WAITING), beat(1, stack='  File "data.py", line 3, in read\n')
    assert beats.culprits([(0.5, waits), (0.5, works)]) == [(0.5, works)]
    assert beats.culprits([(0.5, waits), (99.0, beat(1))]) == [(99.0, beat(1))]  # silent
    assert beats.culprits([(0.5, waits), (0.5, beat(1, stack=WAITING))]) == [
        (0.5, waits),
        (0.5, beat(1, stack=WAITING)),
    ]
    assert "worker 1 (process 1001 on here) computes in step 7 for 100 s" in beats.describe(0.5, works)
    assert "data.py" in beats.describe(0.5, works)
    assert "has not been heard of for 99 s" in beats.describe(99.0, beat(1))


def test_a_heart_tells_place_step_and_stack_and_hears_the_word():
    board = Board()
    done = threading.Event()

    def here_it_waits():
        heart = Heart(lambda one: board.beat("group", one), 3, "node", interval_s=0.02)
        heart.at("waits for its data", 5)
        done.wait(10)
        seen.append(heart.stopping)
        heart.close()

    seen = []
    thread = threading.Thread(target=here_it_waits)
    thread.start()
    board.want_stacks(True)
    until = time.monotonic() + 10
    while time.monotonic() < until:
        told = board.seen()
        if told and "here_it_waits" in told[0][1].stack:
            break
        board.want_stacks(True)
        time.sleep(0.02)
    (age, found) = board.seen()[0]
    assert (found.rank, found.place, found.step) == (3, "waits for its data", 5)
    assert age < 5
    assert "here_it_waits" in found.stack
    board.stop()
    time.sleep(0.3)
    done.set()
    thread.join()
    assert seen == [True]


def test_a_group_that_has_ended_is_not_listened_to():
    board = Board()
    board.beat("first", beat(0))
    board.end_group()
    board.beat("first", beat(1))
    assert board.seen() == []
    board.beat("second", beat(0))
    assert [one.rank for _, one in board.seen()] == [0]
