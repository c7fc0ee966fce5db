"""A file or folder that edge-mdeq writes, as the kills look at it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

__all__ = ["Artefact"]


class Artefact(ABC):
    """A file or folder that edge-mdeq writes.

    Attributes:
        place: its name, in the folder that ``write`` is given.
    """

    place = ""

    def load(self) -> None:  # noqa: B027  (most need nothing)
        """Import and make what ``write`` needs, before there is a child to trace."""

    @abstractmethod
    def write(self, folder: Path, version: str) -> None:
        """Write the version "old" or "new" into ``folder``."""

    @abstractmethod
    def read(self, folder: Path) -> str | None:
        """Which version is there, wholly; None: none.

        Raises whatever a reader of the product raises for what is not whole.
        """
