"""How long to wait before the next attempt."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Backoff", "Pauses"]


@dataclass(frozen=True)
class Backoff:
    """Pauses that grow: ``first_s``, times ``factor`` each, at most ``cap_s``.

    An attempt costs little, and whoever watches a gate wants its picture soon after the camera is
    back, so the cap is short. A camera that refuses a password may lock the account after a few
    attempts, hence ``refused_cap_s``.

    Attributes:
        jitter: share of a pause that is left to chance, so that many boxes do not come at once.
    """

    first_s: float = 0.2
    factor: float = 1.5
    cap_s: float = 1.2
    refused_first_s: float = 5.0
    refused_cap_s: float = 120.0
    jitter: float = 0.3


class Pauses:
    """The pauses of one source; ``chance`` gives numbers in 0..1."""

    def __init__(self, backoff: Backoff, chance: Callable[[], float] = random.random) -> None:
        self.backoff, self.chance = backoff, chance
        self.failures = self.refusals = 0

    def reset(self) -> None:
        """It works again."""
        self.failures = self.refusals = 0

    def next(self, refused: bool = False) -> float:
        """Seconds until the next attempt; ``refused`` if the last one was turned away."""
        b = self.backoff
        if refused:
            pause = min(b.refused_first_s * 2.0 ** min(self.refusals, 30), b.refused_cap_s)
            self.refusals += 1
        else:
            pause = min(b.first_s * b.factor ** min(self.failures, 60), b.cap_s)
            self.failures += 1
        return pause * (1.0 - b.jitter * self.chance())
