"""A target that does harm, to see that it is noticed."""

from __future__ import annotations

import os
import random

from target import Target

__all__ = ["SEED", "Harm"]

SEED = 7


class Harm(Target):
    """Harmless but for one seed; ``EDGE_MDEQ_FUZZ_HARM`` says what happens then."""

    def case(self, rng: random.Random) -> None:
        if rng.random() == random.Random(f"harm {SEED}").random():
            HARMS[os.environ["EDGE_MDEQ_FUZZ_HARM"]]()


def hang() -> None:
    while True:
        pass


def take_memory() -> None:
    bytearray(2**31)


def raise_another() -> None:
    raise ValueError("oh")


HARMS = {
    "crash": os.abort,
    "hang": hang,
    "memory": take_memory,
    "exception": raise_another,
    "none": lambda: None,
}
