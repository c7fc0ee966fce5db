"""What is fuzzed: a reader, and whole examples to damage."""

from __future__ import annotations

import os
import random
import shutil
from abc import ABC, abstractmethod
from pathlib import Path

__all__ = ["BUNDLE", "Target"]

BUNDLE = "base.mdeq"


class Target(ABC):
    """A reader of what may be damaged. Its folder holds whole examples.

    Args:
        folder: it works there, and leaves the examples as they are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.work = folder / f"work-{type(self).__name__}-{os.getpid()}"
        self.work.mkdir(exist_ok=True)

    def prepare(self) -> None:  # noqa: B027  (some need nothing)
        """Import all that is needed, before memory is limited; read a whole example."""

    @abstractmethod
    def case(self, rng: random.Random) -> None:
        """Damage an example and read it.

        Raises EdgeMdeqError where it is refused.
        """

    def finish(self) -> None:
        """After the last case."""
        shutil.rmtree(self.work, ignore_errors=True)
