"""Which images make up which batch: one global order, of which each rank takes its share."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

__all__ = ["GlobalBatches"]


class GlobalBatches(Sampler[list[int]]):
    """Yields this rank's micro-batches of every global batch, for the epoch it was told.

    The global batches do not depend on how many ranks share them, so that one process and several
    take the same steps. Images that do not fill a last batch are left out; each epoch others.

    Args:
        length: images in the dataset.
        batch: images per optimizer step over all ranks.
        accumulate: micro-batches per optimizer step.
        seed: of the order; together with ``epoch`` it decides it.
        rank, world: this process's place among how many; ``world * accumulate`` divides ``batch``.
    """

    def __init__(
        self, length: int, batch: int, accumulate: int, seed: int, rank: int, world: int
    ) -> None:
        self.length, self.batch, self.accumulate = length, batch, accumulate
        self.seed, self.rank, self.world = seed, rank, world
        self.epoch = 0

    def __len__(self) -> int:
        return self.length // self.batch * self.accumulate

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.length, generator=generator).tolist()
        micro = self.batch // self.accumulate
        share = micro // self.world
        for start in range(0, len(self) * micro, micro):
            first = start + self.rank * share
            yield order[first : first + share]
