"""Several cameras, one model: streams take turns, and each keeps its own equilibrium.

Sessions of one model share its graphs and weights. One thread asks the streams in turn, and a turn
is one frame: the newest of a camera, the next of a file. Between two frames of one stream every
other one that has a frame gets its turn, so that a fast camera cannot starve a slow one; what a
camera delivers beyond its turns is dropped, oldest first.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edge_mdeq.errors import ConfigError, EdgeMdeqError, SessionError, SourceError
from mdeq_runtime.results import Frame, Result
from mdeq_runtime.slot import POLL_S, STALL_S, Capture, capture
from mdeq_runtime.sources.base import Source

if TYPE_CHECKING:
    from mdeq_runtime.model import Model
    from mdeq_runtime.session import SessionSettings

__all__ = ["Turn", "answer_streams", "round_robin"]

Answering = Callable[[Frame], Result]


@dataclass(frozen=True, eq=False)
class Turn:
    """What one stream's turn brought: an answer, a frame without one, or its end.

    Attributes:
        stream: the stream's number, from 0, in the order in which they were given.
        frame: what was looked at; None when the stream is over.
        result: its answer; None when ``error`` says why there is none, and when the stream is over.
        error: why this frame has no answer (the stream goes on), or why the stream is over; None
            when a file simply ended.
        dropped: frames of this stream so far that nobody had time for.
    """

    stream: int
    frame: Frame | None
    result: Result | None
    error: EdgeMdeqError | None
    dropped: int

    @property
    def over(self) -> bool:
        """Whether this was the stream's last turn."""
        return self.frame is None


def answer_streams(
    model: Model,
    sources: Iterable[str | Path | int],
    settings: SessionSettings | None = None,
    *,
    stop: threading.Event | None = None,
) -> Iterator[Turn]:
    """Open sources, and answer them by turns, each in a new session of ``model``.

    Closing the iterator closes sources and sessions.

    Args:
        model: whose graphs all of them share.
        sources: as ``open_source`` takes them: files, folders, cameras.
        settings: how the sessions solve; None: as the model's do.
        stop: set it, from any thread, to end before the next frame.

    Yields:
        A turn for each frame, and one for each stream's end.

    Raises:
        SourceError: one of them cannot be opened; then none is read.
        SessionError: the settings do not suit the bundle.
        MemoryLimitError: the model has a limit, and so many streams do not fit into it.
    """
    from mdeq_runtime.sources import open_source

    with ExitStack() as stack:
        opened = [stack.enter_context(open_source(source)) for source in sources]
        sessions = []
        for source in opened:
            model.expect(source)
            sessions.append(stack.enter_context(model.session(settings)))
        for turn in round_robin(zip(sessions, opened, strict=True), stop=stop):
            if turn.over:  # let go of its camera and its states now, not when the last one ends
                opened[turn.stream].close()
                sessions[turn.stream].close()
            yield turn


def round_robin(
    streams: Iterable[tuple[Answering, Source]],
    *,
    stop: threading.Event | None = None,
    stall_s: float = STALL_S,
) -> Iterator[Turn]:
    """Answer streams by turns, in the caller's thread, until all are over or ``stop`` is set.

    A stream that fails is over, and its last turn has the error; a frame that cannot be answered is
    a turn without a result. Neither touches the others. To end one stream early, close its source.

    Args:
        streams: a session, or whatever answers frames, and an opened source for each stream. They
            are left open.
        stop: set it, from any thread, to end before the next frame.
        stall_s: seconds without a frame after which a camera's stream is over, with an error,
            unless it reconnects (``Source.patient``).

    Returns:
        Turns, one for each frame, and one for each stream's end.

    Raises:
        ConfigError: a session or a source stands for two streams.
    """
    pairs = list(streams)
    for kind, things in (("session", [p[0] for p in pairs]), ("source", [p[1] for p in pairs])):
        if len({id(thing) for thing in things}) < len(things):
            raise ConfigError(f"two streams have one {kind}; each needs a {kind} of its own")
    return take_turns(pairs, stop, stall_s)


def take_turns(
    pairs: list[tuple[Answering, Source]], stop: threading.Event | None, stall_s: float
) -> Iterator[Turn]:
    changed = threading.Condition()  # any camera has a frame
    with ExitStack() as stack:
        lanes = [
            Lane(number, session, source, stack.enter_context(opened))
            for number, (session, source) in enumerate(pairs)
            for opened in [capture(source, stall_s=stall_s, changed=changed)]
        ]
        while lanes:
            idle = True
            for lane in list(lanes):
                if stop is not None and stop.is_set():
                    return
                if not lane.frames.ready():
                    continue
                idle = False
                turn = lane.turn()
                if turn.over:
                    lanes.remove(lane)
                yield turn
            if idle:
                with changed:
                    changed.wait_for(lambda: any(lane.frames.ready() for lane in lanes), POLL_S)


@dataclass(eq=False)
class Lane:
    """One stream on its way."""

    number: int
    session: Answering
    source: Source
    frames: Capture

    def turn(self) -> Turn:
        """Take a frame, which is there, and answer it."""
        frame: Frame | None = None
        result: Result | None = None
        failure: EdgeMdeqError | None = None
        try:
            frame = self.frames.read()
            if frame is not None:
                result = self.session(frame)
        except EdgeMdeqError as error:
            failure = error
        except Exception as error:  # a source, or what answers, of somebody else
            what = f"{self.source.description} failed: {type(error).__name__}: {error}"
            failure = SourceError(what) if frame is None else SessionError(what)
            failure.__cause__ = error
        return Turn(self.number, frame, result, failure, self.frames.dropped)
