"""One attempt at a live source: opens it, reads until it ends, lets go of it.

All in a thread of its own, since each of these may block in a driver or a network library for as
long as that likes. Nobody else touches the device, so it is never released while it is being read;
whoever loses patience turns away, and the thread lets go of it once it gets the chance.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_mdeq.errors import EdgeMdeqError, SourceError
from mdeq_runtime.sources.device import Device, Opening, RefusedError
from mdeq_runtime.sources.status import State

__all__ = ["Connection", "Outcome"]

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Outcome:
    """How a connection ended.

    Attributes:
        state: TIMEOUT, EOS or ERROR.
        detail: in words.
        refused: whether it was turned away, so that haste is useless.
        error: the exception behind it, if there was one.
    """

    state: State
    detail: str
    refused: bool = False
    error: EdgeMdeqError | None = None


class Connection:
    """A connection in its own daemon thread.

    Args:
        opening: opens the device.
        deliver: given this connection and each picture, in its thread.
        changed: notified when the device is open and when all is over.
        name: of the source.

    Attributes:
        device: what was opened, None before.
        outcome: how it ended, None before.
        beat: seconds of the monotonic clock of the last sign of life.
        delivering: whether it waits for whoever takes pictures, not for the device.
        frames: pictures that came.
    """

    def __init__(
        self,
        opening: Opening,
        deliver: Callable[[Connection, Image], None],
        changed: threading.Condition,
        name: str,
    ) -> None:
        self._opening, self._deliver, self._changed, self._name = opening, deliver, changed, name
        self.device: Device | None = None
        self.outcome: Outcome | None = None
        self.delivering = False
        self.frames = 0
        self.cancelled = threading.Event()
        self.beat = time.monotonic()
        self.thread = threading.Thread(target=self._run, name=f"read {name}", daemon=True)
        self.thread.start()

    @property
    def silence_s(self) -> float:
        """Seconds since the last sign of life of the device."""
        return 0.0 if self.delivering else time.monotonic() - self.beat

    def cancel(self) -> None:
        """Let it end as soon as the device lets it."""
        self.cancelled.set()

    def _run(self) -> None:
        device = None
        try:
            device = self._opening(self.cancelled)
            with self._changed:
                self.device, self.beat = device, time.monotonic()
                self._changed.notify_all()
            outcome = self._read(device)
        except EdgeMdeqError as error:
            # its traceback leads to this frame, which leads to the outcome and the last picture
            bare = error.with_traceback(None)
            outcome = Outcome(State.ERROR, str(error), isinstance(error, RefusedError), bare)
        except Exception as error:  # of OpenCV, or a driver's binding
            what = f"{self._name} failed: {type(error).__name__}: {error}"
            outcome = Outcome(State.ERROR, what, error=SourceError(what))
        finally:
            if device is not None:
                with suppress(Exception):  # what matters is that it is over
                    device.release()
        with self._changed:
            self.outcome = outcome
            self._changed.notify_all()

    def _read(self, device: Device) -> Outcome:
        while not self.cancelled.is_set():
            image = device.read()
            if self.cancelled.is_set():
                break
            if image is None:
                return Outcome(
                    State.EOS, f"{self._name} has ended, or its other side closed the connection"
                )
            if image.size == 0:
                raise SourceError(
                    f"{self._name} gives pictures without pixels; choose another size or format"
                )
            self.beat = time.monotonic()
            self.frames += 1
            self.delivering = True
            try:
                self._deliver(self, image)
            finally:
                self.beat = time.monotonic()
                self.delivering = False
        return Outcome(State.EOS, f"{self._name} was closed")
