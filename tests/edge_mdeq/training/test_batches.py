"""The global order of images: the same however many ranks and micro-batches share it."""

from __future__ import annotations

from collections import Counter
from itertools import chain

import pytest

from edge_mdeq.training.batches import GlobalBatches

LENGTH, BATCH = 50, 24  # two images are left out of each epoch


def epoch(
    number: int = 0, accumulate: int = 1, rank: int = 0, world: int = 1, seed: int = 0
) -> list[list[int]]:
    batches = GlobalBatches(LENGTH, BATCH, accumulate, seed, rank, world)
    batches.epoch = number
    return list(batches)


def whole_batches(number: int, accumulate: int, world: int) -> list[list[int]]:
    """The images of each optimizer step, over micro-batches and ranks, in their order."""
    ranks = [epoch(number, accumulate, rank, world) for rank in range(world)]
    micro = [list(chain.from_iterable(parts)) for parts in zip(*ranks, strict=True)]
    return [
        list(chain.from_iterable(micro[k : k + accumulate]))
        for k in range(0, len(micro), accumulate)
    ]


@pytest.mark.parametrize("accumulate", [1, 2, 3])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_global_batches_do_not_depend_on_who_shares_them(accumulate: int, world: int) -> None:
    for number in range(3):
        assert whole_batches(number, accumulate, world) == epoch(number)


@pytest.mark.parametrize(("accumulate", "world"), [(1, 1), (2, 1), (1, 4), (3, 2)])
def test_an_epoch_shows_every_image_at_most_once_and_leaves_out_the_rest(
    accumulate: int, world: int
) -> None:
    seen = Counter(chain.from_iterable(whole_batches(0, accumulate, world)))
    assert set(seen.values()) == {1}
    assert len(seen) == LENGTH // BATCH * BATCH
    assert set(seen) <= set(range(LENGTH))


def test_a_batch_that_divides_the_data_shows_all_of_it() -> None:
    batches = GlobalBatches(24, 6, 1, 0, 0, 1)
    assert sorted(chain.from_iterable(batches)) == list(range(24))


def test_each_epoch_leaves_out_others() -> None:
    left_out = {
        frozenset(range(LENGTH)) - frozenset(chain.from_iterable(epoch(number)))
        for number in range(5)
    }
    assert len(left_out) == 5


def test_epoch_and_seed_decide_the_order() -> None:
    assert epoch(0) == epoch(0)
    assert epoch(0) != epoch(1)
    assert epoch(0) != epoch(0, seed=1)
    assert epoch(1) != epoch(0, seed=1)


def test_its_length_counts_micro_batches() -> None:
    assert len(GlobalBatches(LENGTH, BATCH, 3, 0, 0, 2)) == 6
    assert len(epoch(0, 3, 0, 2)) == 6
    assert {len(batch) for batch in epoch(0, 3, 1, 2)} == {4}
