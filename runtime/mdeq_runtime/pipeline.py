"""Runs a session over a source into sinks.

``source -> newest frame (live) or every frame (files) -> session -> sinks``
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Protocol

from mdeq_runtime.frames import check_frame
from mdeq_runtime.memory import peak_resident_bytes
from mdeq_runtime.metrics import Metrics, Percentiles, Summary
from mdeq_runtime.results import Frame, Result
from mdeq_runtime.sinks.base import Sink, refuse_clashes
from mdeq_runtime.sinks.lane import Fan, Lane
from mdeq_runtime.slot import Capture, SlotPolicy, capture
from mdeq_runtime.sources.base import Source

__all__ = ["Percentiles", "Session", "Summary", "Terminated", "run"]

log = logging.getLogger(__name__)

DRAIN_S = 1.2  # for outputs after SIGTERM, so that all is over within two seconds


class Terminated(KeyboardInterrupt):
    """A service manager asks the run to end, and kills it if that takes long.

    Attributes:
        latest: seconds of the monotonic clock at which outputs should be finished.
    """

    def __init__(self) -> None:
        super().__init__()
        self.latest = time.monotonic() + DRAIN_S


class Session(Protocol):
    """Anything that answers frames one by one."""

    def __call__(self, frame: Frame, /) -> Result:
        """The answer to one frame."""
        ...


class _Closable(Protocol):
    def close(self) -> None: ...


def run(
    session: Session,
    source: Source,
    sinks: Sequence[Sink],
    *,
    max_frames: int | None = None,
    on_frame: Callable[[Frame], None] | None = None,
    on_result: Callable[[Result], None] | None = None,
    stop: threading.Event | None = None,
    policy: SlotPolicy = SlotPolicy.DROP_OLDEST,
    metrics: Metrics | None = None,
    govern: Callable[[Result, float], None] | None = None,
) -> Summary:
    """Answer frames until the source ends, a sink asks to stop, or Ctrl-C.

    The source and every sink are closed in the end, whatever ended the run. Ctrl-C is not an error
    here: what was written is finished and the summary says ``interrupted``.

    Args:
        session: answers each frame.
        source: where frames come from; a live one drops what the session is too slow for.
        sinks: each gets every result, with a "read" time added: ms spent waiting for the source.
            A live source's results are left out of a sink that does not keep up, and go on to the
            others when one fails; its error is raised in the end.
        max_frames: stop after so many.
        on_frame: told each frame before it is answered.
        on_result: called after the sinks.
        stop: set it, from any thread, to end the run before the next frame.
        policy: what happens to a live source's frames that the session is too slow for.
        govern: told each result and the milliseconds that writing it took, before the next frame;
            see ``mdeq_runtime.governor.governing``.
        metrics: fed with every frame, for others to look at meanwhile; the summary is made of it.

    Raises:
        SourceError, SinkError, FrameError: from the source, a sink, or the check of each frame.
        SinkError: two outputs are one file, or one is the source's; nothing was run.
    """
    metrics = metrics or Metrics()
    metrics.source = source
    interrupted = False
    fan = Fan(sinks, source.live)
    with _closing([*fan.lanes, source]):
        refuse_clashes(source, sinks)
        for sink in sinks:
            sink.begin(session, metrics)
        try:
            with capture(source, policy=policy) as frames:
                dropped = 0
                try:
                    for frame, read_ms in _frames(frames, stop, max_frames):
                        if on_frame is not None:
                            on_frame(frame)
                        check_frame(frame.image, f"frame {frame.index} of {source.description}")
                        answer = session(frame)
                        times = {"read": read_ms, **answer.times}
                        result = replace(answer, times=times, age_ms=_age_ms(frame))
                        go_on, write_ms = _deliver(frame, result, fan, on_result)
                        before, dropped = dropped, frames.dropped
                        metrics.add(result, write_ms, dropped - before)
                        if govern is not None:
                            govern(result, write_ms)
                        if not go_on:
                            break
                finally:
                    metrics.drop(frames.dropped - dropped)
        except KeyboardInterrupt as stopped:
            interrupted = True
            if isinstance(stopped, Terminated):
                fan.hurry(stopped.latest)
        finally:
            fan.finish()  # all at once: two that hang are waited for no longer than one
        if fan.failed is not None:  # the others went on without it until here
            raise fan.failed
        summary = Summary(**vars(metrics.snapshot()), interrupted=interrupted)
    return replace(summary, peak_rss_bytes=peak_resident_bytes())  # closing may take some too


def _age_ms(frame: Frame) -> float | None:
    """Since its capture, if it is of a live source."""
    if frame.captured is None:
        return None
    return 1000.0 * (time.monotonic() - frame.captured)


def _frames(
    frames: Capture, stop: threading.Event | None, limit: int | None
) -> Iterator[tuple[Frame, float]]:
    """Each frame, and the milliseconds spent waiting for it."""
    count = 0
    while limit is None or count < limit:
        started = time.perf_counter()
        frame = frames.read(stop)
        if frame is None:
            return
        yield frame, 1000.0 * (time.perf_counter() - started)
        count += 1


def _deliver(
    frame: Frame,
    result: Result,
    fan: Fan,
    on_result: Callable[[Result], None] | None,
) -> tuple[bool, float]:
    """Whether every sink wants more, and the milliseconds that this took."""
    started = time.perf_counter()
    go_on = fan.write(frame, result)
    if on_result is not None:
        on_result(result)
    return go_on, 1000.0 * (time.perf_counter() - started)


@contextmanager
def _closing(things: Sequence[_Closable]) -> Iterator[None]:
    """Close all of them, even when one fails; the first error is the one that is raised."""
    failed = True
    try:
        yield
        failed = False
    finally:
        errors = [error for thing in things if (error := _close(thing)) is not None]
        for error in errors if failed else errors[1:]:
            log.warning("while closing: %s", error)
        if errors and not failed:
            raise errors[0]


def _close(thing: _Closable) -> BaseException | None:
    try:
        try:
            thing.close()
        except KeyboardInterrupt as again:  # a second Ctrl-C must not lose what was written
            if isinstance(again, Terminated) and isinstance(thing, Lane):
                thing.hurry(again.latest)
            thing.close()
    except (Exception, KeyboardInterrupt) as error:
        return error
    return None
