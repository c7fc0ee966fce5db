"""What a new model answers before it takes over: the newest pictures, in turn with the frames."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
from numpy.typing import NDArray

from mdeq_runtime.model import Model
from mdeq_runtime.results import Frame
from mdeq_runtime.service.turns import Aside, Turns
from mdeq_runtime.session import Session

__all__ = ["Newest", "in_turn", "rehearse"]

PICTURE_S = 1.0  # for a picture of a camera that may give none
PICTURES = 3  # one cold, and both buffers of the state are bound after two more


class Newest:
    """The newest frame that was answered; it is kept only while somebody looks at it."""

    def __init__(self) -> None:
        self.looking = False
        self.frame: Frame | NDArray[np.uint8] | None = None
        self.there = threading.Event()
        self.lock = threading.Lock()  # nothing is kept that comes just as somebody looks away

    def note(self, frame: Frame | NDArray[np.uint8]) -> None:
        """``frame``, or a BGR image (h, w, 3) uint8, was answered."""
        with self.lock:
            if self.looking:
                self.frame = frame
                self.there.set()

    @contextmanager
    def look(self) -> Iterator[None]:
        """Keep the newest frame for as long as this lasts."""
        self.there.clear()
        self.looking = True
        try:
            yield
        finally:
            with self.lock:
                self.looking = False
                self.frame = None


@contextmanager
def in_turn(model: Model, turns: Turns) -> Iterator[None]:
    """Let each graph that ``model`` runs wait for a gap between those who hold ``turns``."""
    model.backend.turn = Aside(turns)
    try:
        yield
    finally:
        model.backend.turn = nullcontext()


def rehearse(session: Session, size: tuple[int, int], newest: Newest | None = None) -> None:
    """Answer pictures, the first one cold, so that the frames to come take as long as others.

    Args:
        session: new; afterwards it is near the equilibrium of the newest picture, or, if there is
            none, cold.
        size: (height, width) of frames, for noise in the place of a picture.
        newest: is being looked at; None: there are no pictures.

    Raises:
        SessionError, MemoryLimitError: as ``Session``.
    """
    if newest is not None:
        newest.there.wait(PICTURE_S)
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    for _ in range(PICTURES):
        picture = newest.frame if newest is not None else None
        session(noise if picture is None else picture)
    # A solve that waited for its turns says nothing of how long the next ones take.
    session.use(session.settings.policy)
    if picture is None:
        session.reset("the bundle was opened again", "reload")
