"""Percentiles of times, and ratios of times with what they are uncertain by.

Things that are compared take turns, round by round, so that whatever else the machine does meets
all of them. A ratio is one of medians. Its interval resamples whole rounds, the same ones above and
below the line: what slows a round slows both, and cancels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edge_mdeq.errors import ConfigError

__all__ = ["Ratio", "Summary", "check_ranks", "ratio", "summarise"]

RESAMPLES, SEED = 2000, 0
LEVEL = 0.95  # of an interval


@dataclass(frozen=True)
class Summary:
    """Times of one thing.

    Attributes:
        count: how many there are.
        mean: of them.
        median: of them.
        percentiles: by name, such as "p90".
        iqr: the width of the middle half.
    """

    count: int
    mean: float
    median: float
    percentiles: dict[str, float]
    iqr: float


@dataclass(frozen=True)
class Ratio:
    """A ratio of medians, and its interval of 95% from resampled rounds."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        digits = 1 if self.value >= 10 else 2
        return f"{self.value:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"


def check_ranks(ranks: Sequence[float]) -> tuple[float, ...]:
    """``ranks``, ascending and each once.

    Raises:
        ConfigError: none, or one that is no percentile.
    """
    for rank in ranks:
        if not 0 <= rank <= 100:
            raise ConfigError(f"{rank:g} is no percentile; choose from 0 to 100, such as 50 90 99")
    if not ranks:
        raise ConfigError("no percentile was given; choose some, such as 50 90 99")
    return tuple(sorted(set(ranks)))


def summarise(values: ArrayLike, ranks: Sequence[float] = (50, 90, 99)) -> Summary:
    """The figures of ``values``, (count,); between two of them percentiles are interpolated.

    Raises:
        ConfigError: there are no values, or a rank is no percentile.
    """
    ranks = check_ranks(ranks)
    found = np.asarray(values, dtype=np.float64)
    if not found.size:
        raise ConfigError("nothing was measured, so that there is nothing to summarise")
    low, middle, high = np.percentile(found, (25, 50, 75))
    named = zip(ranks, np.percentile(found, ranks), strict=True)
    return Summary(
        count=found.size,
        mean=float(found.mean()),
        median=float(middle),
        percentiles={f"p{rank:g}": float(value) for rank, value in named},
        iqr=float(high - low),
    )


def ratio(above: ArrayLike, below: ArrayLike) -> Ratio:
    """The ratio of the medians of ``above`` and ``below``, (rounds,) each, round by round.

    Raises:
        ConfigError: not the same rounds, or none.
    """
    pairs = np.stack([paired(above, below), paired(below, above)])
    rounds = pairs.shape[1]
    picks = np.random.default_rng(SEED).integers(0, rounds, (RESAMPLES, rounds))
    medians = np.median(pairs[:, picks], axis=2)  # (2, RESAMPLES)
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(medians[0] / medians[1], (tail, 100 - tail))
    value = np.median(pairs[0]) / np.median(pairs[1])
    return Ratio(float(value), float(low), float(high))


def paired(one: ArrayLike, other: ArrayLike) -> NDArray[np.float64]:
    """``one``, if it has as many rounds as ``other``."""
    found = np.asarray(one, dtype=np.float64)
    if found.ndim != 1 or not found.size or found.shape != np.shape(other):
        raise ConfigError(
            f"times of shapes {found.shape} and {np.shape(other)} are not of the same rounds; "
            "measure both in turn"
        )
    return found
