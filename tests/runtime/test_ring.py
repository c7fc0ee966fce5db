"""A ring holds the newest items, whole and in order, within its room."""

from __future__ import annotations

import random

import pytest

from mdeq_runtime.web.ring import Ring


@pytest.mark.parametrize("seed", range(100))
def test_it_holds_the_newest_items_whole_and_in_order(seed: int) -> None:
    rng = random.Random(seed)
    keep, room, largest = rng.randint(1, 12), rng.randint(40, 400), rng.randint(1, 40)
    ring, given = Ring(keep, room), list[bytes]()
    for _ in range(500):
        given.append(rng.randbytes(rng.randint(1, largest)))
        ring.append(given[-1])
        held = list(ring)
        assert len(ring) == len(held) >= 1
        assert held == given[-len(held) :]
        # nothing was forgotten for which there was room, but at the block's end, where what does
        # not fit any more goes to its start
        if len(held) < min(keep, len(given)):
            assert sum(map(len, given[-len(held) - 1 :])) > room - 2 * largest
        if rng.random() < 0.01:
            ring.clear()
            given.clear()
            assert not list(ring)


def test_its_memory_is_one_block_that_stays() -> None:
    ring = Ring(100, 1000)
    block = ring.block
    for length in range(1, 1001):
        ring.append(bytes(length))
    assert ring.block is block
    assert len(block) == 1000


@pytest.mark.parametrize("length", [0, 11])
def test_what_is_empty_or_larger_than_the_room_is_refused(length: int) -> None:
    ring = Ring(3, 10)
    ring.append(b"small")
    with pytest.raises(ValueError, match=f"{length} bytes, in room for 10"):
        ring.append(bytes(length))
    assert list(ring) == [b"small"]
