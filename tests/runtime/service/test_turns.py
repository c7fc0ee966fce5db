"""The lock by which frames and a new model share the machine."""

from __future__ import annotations

import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest

from mdeq_runtime.service.turns import PATIENCE, Aside, Turns

pytestmark = pytest.mark.clock


def hold(turns: Turns | Aside, times: int, seconds: float, pause: float = 0.0) -> list[float]:
    """How long each of so many acquisitions took."""
    waited = []
    for _ in range(times):
        began = time.monotonic()
        with turns:
            waited.append(time.monotonic() - began)
            time.sleep(seconds)
        time.sleep(pause)
    return waited


def test_who_stands_aside_comes_between_the_others() -> None:
    """Frames of 30 ms every 90 ms: none waits for more than one turn of 45 ms."""
    turns = Turns()
    with ThreadPoolExecutor(2) as pool:
        frames = pool.submit(hold, turns, 15, 0.030, 0.060)
        others = pool.submit(hold, Aside(turns), 5, 0.045)
    assert max(others.result()) < 0.15, "each found a gap"
    assert max(frames.result()) < 0.08


def test_a_frame_that_waits_goes_before_who_stands_aside() -> None:
    """One turn makes the next frame late; the frame after it need not be later still."""
    turns, order = Turns(), []

    def note(name: str, turns: Turns | Aside) -> None:
        with turns:
            order.append(name)
            time.sleep(0.3)

    with ThreadPoolExecutor(3) as pool:
        pool.submit(note, "frame", turns)
        time.sleep(0.1)
        pool.submit(note, "aside", Aside(turns))
        time.sleep(0.1)
        pool.submit(note, "frame", turns)
    assert order == ["frame", "frame", "aside"]


def test_without_a_gap_it_is_taken_nevertheless() -> None:
    turns, over = Turns(), threading.Event()

    def busy() -> None:
        while not over.is_set():
            with turns:
                time.sleep(0.002)

    thread = threading.Thread(target=busy)
    thread.start()
    taken = []
    for _ in range(10):
        with Aside(turns):
            taken.append(turns.passed)
    over.set()
    thread.join()
    assert max(b - a for a, b in pairwise(taken)) <= PATIENCE + 2, "one within, one in the queue"


def test_nobody_is_within_at_the_same_time() -> None:
    turns, within = Turns(), 0

    def work(lock: Turns | Aside) -> int:
        nonlocal within
        most = 0
        for _ in range(30):
            with lock:
                within += 1
                most = max(most, within)
                time.sleep(0.001)
                within -= 1
        return most

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(work, (turns, Aside(turns), turns))) == [1, 1, 1]


def test_ctrl_c_while_waiting_leaves_it_to_the_others() -> None:
    turns, held, over = Turns(), threading.Event(), threading.Event()

    def hold() -> None:
        with turns:
            held.set()
            over.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    me = threading.get_ident()
    threading.Timer(0.1, signal.pthread_kill, (me, signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt), turns:
        pass
    over.set()
    thread.join()
    assert free(turns)


def free(turns: Turns) -> bool:
    """Whether another thread gets it."""
    got = threading.Event()

    def take() -> None:
        with turns:
            got.set()

    threading.Thread(target=take, daemon=True).start()
    return got.wait(5.0)
