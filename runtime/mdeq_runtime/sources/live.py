"""A camera or a stream that may vanish and come back: failure is a state, not an exception.

``Live`` watches over one connection at a time. Whether it fails, ends or falls silent, the next one
is tried after a pause that grows, for as long as the source is open. Frames say which
connection they are of (``Frame.epoch``), so that no warm start crosses from one to the next.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from edge_mdeq.errors import SourceError
from mdeq_runtime.frame_slot import FrameSlot
from mdeq_runtime.results import Frame
from mdeq_runtime.service.logs import event
from mdeq_runtime.sources.backoff import Backoff, Pauses
from mdeq_runtime.sources.base import Source, pixels
from mdeq_runtime.sources.connection import Connection, Outcome
from mdeq_runtime.sources.device import Opening
from mdeq_runtime.sources.orient import orienting, turns
from mdeq_runtime.sources.pictures import PictureWatch
from mdeq_runtime.sources.status import Picture, State, Status

__all__ = ["Live", "Patience"]

log = logging.getLogger(__name__)

Image = NDArray[np.uint8]
CLOSE_WAIT_S = 0.3  # how long closing waits for a device to be let go of
STEADY_S = 5.0  # a connection that lasted as long starts the pauses anew
MAX_STUCK = 4  # connections that a driver holds on to, before no more are tried
BUFFERS = 6  # frames: one is captured while another waits, and a driver fills up to four


@dataclass(frozen=True)
class Patience:
    """How long a live source waits.

    Attributes:
        open_s: for a connection to open.
        silent_s: for a frame, before the connection counts as dead.
        backoff: between two attempts.
    """

    open_s: float = 15.0
    silent_s: float = 5.0
    backoff: Backoff = field(default_factory=Backoff)


class Live(Source):
    """A source that reconnects. Its threads are daemons: a driver that blocks holds nobody up.

    Args:
        opening: opens the device; called in a thread, again for each attempt.
        description: what it is, without credentials.
        flip: how frames are turned.
        wait: whether a first attempt that fails is followed by others, as all later ones are.
        patience: how long to wait.
        decoder: bytes that reading takes beside frames, for the memory limit.
        on_status: called with every new status, in one of its threads; it must be quick.

    Attributes:
        past: the last changes of ``status``, oldest first.

    Raises:
        SourceError: the first attempt failed, and ``wait`` is False.
    """

    live = True
    patient = True

    def __init__(
        self,
        opening: Opening,
        description: str,
        *,
        flip: str | None = None,
        wait: bool = False,
        patience: Patience | None = None,
        decoder: int = 0,
        on_status: Callable[[Status], None] | None = None,
    ) -> None:
        self.description = description
        self.patience = patience or Patience()
        self._opening, self._on_status, self._decoder = opening, on_status, decoder
        self._orient, self._turned = orienting(flip), turns(flip)
        self._changed = threading.Condition()
        self._slot = FrameSlot()
        self._pictures = PictureWatch()
        self._pauses = Pauses(self.patience.backoff)
        self._stuck: list[Connection] = []
        self._closed = False
        self._index = self._epoch = 0
        self._lost: float | None = None  # when frames stopped to come
        self._status = Status(State.RECONNECTING, "connecting", time.monotonic())
        self.past: deque[Status] = deque([self._status], maxlen=100)
        self.fps: float | None = None
        self.size: tuple[int, int] | None = None
        with self._changed:  # its first frame must find it here
            self._connection = self._connect()
        self._connect_first(wait)
        name = f"watch {description}"
        self._watcher = threading.Thread(target=self._watch, name=name, daemon=True)
        self._watcher.start()

    @property
    def status(self) -> Status:
        """How it is doing."""
        return self._status

    def feed(self, slot: FrameSlot) -> bool:
        """Put frames into ``slot`` from now on, and first the one that nobody has read yet."""
        with self._changed:
            with suppress(TimeoutError):
                waiting = self._slot.get(timeout=0)
                if waiting is not None:
                    slot.put(waiting)
            self._slot = slot
            closed = self._closed
        if closed:
            slot.close()
        return True

    def read(self) -> Frame | None:
        """The newest frame that was not read yet; waits for one, through failures too.

        None once closed.
        """
        return self._slot.get()

    def holding(self) -> int:
        """Frames on their way, and the decoder."""
        return self._decoder + BUFFERS * 3 * pixels(self.size)

    def close(self) -> None:
        """Let go of the device, now or as soon as a driver that blocks gives it back."""
        with self._changed:
            self._closed = True
            self._connection.cancel()
            self._changed.notify_all()
            slot = self._slot
        slot.close()
        self._connection.thread.join(CLOSE_WAIT_S)

    def _connect(self) -> Connection:
        return Connection(self._opening, self._deliver, self._changed, self.description)

    def _connect_first(self, wait: bool) -> None:
        outcome = self._outcome_of_opening()
        if outcome is not None and not wait:
            self.close()
            raise outcome.error or SourceError(outcome.detail)

    def _outcome_of_opening(self) -> Outcome | None:
        """None as soon as the connection is open, else how it failed."""
        connection, limit = self._connection, self.patience.open_s
        with self._changed:
            done = self._changed.wait_for(
                lambda: self._closed or connection.device or connection.outcome, limit
            )
            device, outcome = connection.device, connection.outcome
        if device is None:
            if outcome is not None:
                return outcome
            what = "was closed" if done else f"did not answer within {limit:g} s"
            return Outcome(
                State.TIMEOUT, f"{self.description} {what}; check its power, cable and network"
            )
        self.fps = device.fps
        if device.size is not None:
            self.size = device.size[::-1] if self._turned else device.size
        return None

    # In the watching thread

    def _watch(self) -> None:
        try:
            while not self._closed:
                outcome = self._outcome_of_opening() or self._outcome_of_reading()
                if self._closed:
                    return
                with self._changed:
                    self._give_up_connection()
                    self._note(outcome)
                if not self._pause(outcome):
                    return
                with self._changed:
                    if self._closed:
                        return
                    self._set(state=State.RECONNECTING)
                    self._epoch += 1
                    self._pictures.forget()
                    self._connection = self._connect()
        except Exception as error:  # of a listener; without frames it must not go unnoticed
            self._slot.close(SourceError(f"{self.description} failed: {error!r}"))
            raise
        finally:
            self._slot.close()

    def _outcome_of_reading(self) -> Outcome:
        connection, limit = self._connection, self.patience.silent_s
        with self._changed:
            while not (self._closed or connection.outcome):
                left = limit - connection.silence_s
                if left <= 0:
                    return Outcome(
                        State.TIMEOUT,
                        f"{self.description} delivered no frame for {limit:g} s; check its power, "
                        "cable and network, and that no other program uses it",
                    )
                self._changed.wait(left)
            return connection.outcome or Outcome(State.EOS, "closed")

    def _give_up_connection(self) -> None:
        connection = self._connection
        connection.cancel()
        self._stuck = [each for each in (*self._stuck, connection) if each.outcome is None]
        if connection.frames and connection.beat - self._status.since > STEADY_S:
            self._pauses.reset()

    def _pause(self, outcome: Outcome) -> bool:
        """Wait before the next attempt; False when the source was closed meanwhile."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed, self._pauses.next(outcome.refused))
            while not self._closed and len(self._stuck) >= MAX_STUCK:
                self._changed.wait(1.0)
                self._stuck = [each for each in self._stuck if each.outcome is None]
            return not self._closed

    def _note(self, outcome: Outcome) -> None:
        first = self._lost is None
        if first:
            self._lost = time.monotonic()
        if first or outcome.detail != self._status.detail:
            log.warning(
                "%s; trying again until it is back", outcome.detail,
                extra=event("source", state=outcome.state.value),
            )  # fmt: skip
        self._set(state=outcome.state, detail=outcome.detail)

    # In the connection's thread

    def _deliver(self, connection: Connection, image: Image) -> None:
        now = time.monotonic()
        image = self._orient(image)
        with self._changed:  # the watching thread may be giving this connection up just now
            if connection is not self._connection or connection.cancelled.is_set():
                return
            if self._status.state is not State.OK:
                self._is_back(now)
            picture = self._pictures(image, now)
            if picture is not self._status.picture:
                self._picture_changed(picture)
            self.size = (image.shape[0], image.shape[1])
            frame = Frame(image, self._index, now, now, self._epoch)
            self._index += 1
            slot = self._slot
        slot.put(frame)  # which may wait

    def _is_back(self, now: float) -> None:
        if self._lost is not None:
            away = now - self._lost
            log.warning(
                "%s is back after %.1f s", self.description, away,
                extra=event("source", state=State.OK.value, away_s=round(away, 3)),
            )  # fmt: skip
            self._lost = None
        again = self._status.reconnects + (self._epoch > 0)
        self._set(state=State.OK, detail="", reconnects=again)

    def _picture_changed(self, picture: Picture) -> None:
        said = {
            Picture.OK: "gives good pictures again",
            Picture.FROZEN: "gives the same picture again and again; restart the camera",
            Picture.BLACK: "gives black pictures; look at its lens cap, shutter and light",
        }
        log.warning(
            "%s %s", self.description, said[picture], extra=event("picture", picture=picture.value)
        )
        self._set(picture=picture)

    def _set(self, **changes: object) -> None:
        since = time.monotonic() if "state" in changes else self._status.since
        self._status = replace(self._status, since=since, **changes)  # type: ignore[arg-type]
        self.past.append(self._status)
        if self._on_status is not None:
            self._on_status(self._status)
