"""A thread and a short queue in front of each sink, so that none waits for another.

A camera's results are left out of a sink that does not keep up, the oldest first. A file's are not:
there the run waits, as long as the sink gets on. A sink that fails is closed at once, which
finishes what it has written; a run on a camera then goes on for the others.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from edge_mdeq.errors import SinkError
from mdeq_runtime.results import Frame, Result
from mdeq_runtime.sinks.base import Sink

__all__ = ["Fan", "Lane"]

log = logging.getLogger(__name__)

STALL_S = 60.0  # without getting on, after which a sink that is waited for counts as broken
CLOSE_S = 15.0  # ... at the end of a run, when somebody wants to leave
POLL_S = 0.05  # so that Ctrl-C is heard, and the end of the thread noticed


class Lane:
    """One sink in a thread of its own, which starts with the first result.

    Args:
        sink: what is written to; ``sink.queue`` results may wait for it.
        wait: whether ``write`` waits for room; else the oldest waiting result is left out.

    Attributes:
        dropped: how many results were left out.
    """

    def __init__(self, sink: Sink, wait: bool) -> None:
        self.sink, self.wait = sink, wait
        self.dropped = self.taken = 0
        self._changed = threading.Condition()
        self._jobs: deque[Callable[[], bool]] = deque()
        self._error: Exception | None = None
        self._ending = self._closed = self._enough = self._reported = self._hung = False
        self._moved = time.monotonic()  # the last time that the sink got on
        self._latest: float | None = None  # when whoever waits for its end loses patience
        name = f"sink {sink.name}"
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def write(self, frame: Frame, result: Result) -> bool:
        """Hand over one result; False once the sink has asked to stop the run.

        Raises:
            SinkError: an earlier one could not be written, or the sink that is waited for hangs.
            Exception: whatever else the sink raised.
        """
        job = self.sink.prepare(frame, result)
        with self._changed:
            self._report()
            if self._ending:
                raise SinkError(f"{self.sink.name} was closed; open a new sink")
            if job is None:
                return not self._enough
            if self._thread.ident is None:
                self._moved = time.monotonic()
                self._thread.start()
            while self.wait and self._full() and self._error is None:
                self._await(STALL_S, "has taken no result")
            self._report()
            if self._full():
                self._jobs.popleft()
                if not self.dropped:
                    log.warning("%s does not keep up; results are left out", self.sink.name)
                self.dropped += 1
            self._jobs.append(job)
            self._changed.notify_all()
            return not self._enough

    def finish(self) -> None:
        """Let the sink take what waits for it, and end, without waiting for it."""
        with self._changed:
            if not self._ending:
                self._ending = True
                self._moved = max(self._moved, time.monotonic() - CLOSE_S / 2)
                self._changed.notify_all()

    def hurry(self, latest: float) -> None:
        """Let ``close`` wait until ``latest`` of the monotonic clock at most."""
        self._latest = latest

    def close(self) -> None:
        """Finish, and wait for the end; may be called again.

        Raises:
            SinkError: it did not get on for ``CLOSE_S``, or could not be finished.
            Exception: whatever else it raised.
        """
        self.finish()
        with self._changed:
            first, self._closed = not self._closed, True
            if self._thread.ident is None:
                self.sink.close()
                return
            while self._thread.is_alive() and not self._hung:
                self._await(CLOSE_S, "has not finished")
            if first and self.dropped:
                log.warning(
                    "%s did not keep up: %d of %d results were left out",
                    self.sink.name, self.dropped, self.taken + self.dropped,
                )  # fmt: skip
            self._report()

    def _full(self) -> bool:
        return len(self._jobs) >= self.sink.queue

    def _report(self) -> None:
        """Raise the sink's error in the caller's thread, once."""
        if self._error is not None and not self._reported:
            self._reported = True
            raise self._error
        if self._error is not None and not self._ending:
            raise SinkError(f"{self.sink.name} has failed before; open a new sink")

    def _await(self, limit: float, what: str) -> None:
        """Wait a little for the sink, or find that it hangs."""
        now = time.monotonic()
        left = self._moved + limit - now
        if self._latest is not None and self._latest <= now:
            self._hung = True
            raise SinkError(
                f"{self.sink.name} was not finished when the run had to end: its disk or network "
                f"is slow, or hangs. {len(self._jobs)} results for it are left out; what it wrote "
                "before is left as it is"
            )
        if left <= 0:
            self._hung = True
            raise SinkError(
                f"{self.sink.name} {what} for {limit:g} s; its disk or network hangs. What it "
                "wrote before is left as it is"
            )
        self._changed.wait(min(left, POLL_S))

    def _run(self) -> None:
        """The sink's thread: errors go to whoever writes or closes."""
        try:
            try:
                while (job := self._next()) is not None:
                    go_on = job()
                    with self._changed:
                        self._enough |= not go_on
                        self.taken += 1
                        self._moved = time.monotonic()
                        self._changed.notify_all()
            finally:
                self.sink.close()
        except Exception as error:
            with self._changed:
                self._error = error
                self._jobs.clear()
                self._changed.notify_all()

    def _next(self) -> Callable[[], bool] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._ending)
            job = self._jobs.popleft() if self._jobs else None
            self._changed.notify_all()
            return job


class Fan:
    """Hands every result to every sink.

    Args:
        sinks: those with a ``queue`` get a lane, the others are written to at once.
        live: whether results come at their own pace, so that nothing waits, and no sink's failure
            stops the others.

    Attributes:
        lanes: what is to be closed at the end; first what has no lane, while the others finish.
        failed: the first error of a sink that the run went on without.
    """

    def __init__(self, sinks: Sequence[Sink], live: bool) -> None:
        self.live = live
        lanes = [Lane(sink, wait=not live) if sink.queue else sink for sink in sinks]
        self.lanes = sorted(lanes, key=lambda each: isinstance(each, Lane))
        self.failed: SinkError | None = None
        self._going = list(zip(lanes, sinks, strict=True))

    def write(self, frame: Frame, result: Result) -> bool:
        """Whether every sink wants more; each gets the result, whatever another says.

        Raises:
            SinkError: a sink failed, and the frames are a file's, or nothing is left to run for.
        """
        go_on = True
        for lane, sink in list(self._going):
            try:
                go_on &= lane.write(frame, result)
            except SinkError as error:
                self._going.remove((lane, sink))
                if not self.live or all(other.aside for _, other in self._going):
                    raise
                log.warning("%s. The other outputs go on", str(error).rstrip("."))
                self.failed = self.failed or error
        return go_on

    def hurry(self, latest: float) -> None:
        """Wait for no sink after ``latest`` of the monotonic clock."""
        for lane in self.lanes:
            if isinstance(lane, Lane):
                lane.hurry(latest)

    def finish(self) -> None:
        """Let all sinks with a lane end, without waiting for them."""
        for lane in self.lanes:
            if isinstance(lane, Lane):
                lane.finish()
