"""A line of metrics every few seconds, appended to a file."""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from edge_mdeq.errors import ConfigError
from mdeq_runtime.metrics import Metrics
from mdeq_runtime.results import Frame, Result
from mdeq_runtime.sinks.base import Sink, check_file

__all__ = ["MetricsSink"]

log = logging.getLogger(__name__)


class MetricsSink(Sink):
    """Appends ``Snapshot.to_json_line`` every so often, and once at the end of a run.

    Every line arrives whole, and what was in the file before stays. A line that cannot be written
    is a warning: a run does not end because nobody can watch it.
    """

    aside = True

    def __init__(
        self,
        path: Path,
        metrics: Metrics,
        every_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Check that ``path`` can be written; nothing is written yet.

        Args:
            path: the file, one JSON object per line.
            metrics: what is written; whoever runs the session feeds it.
            every_s: seconds between two lines.
            clock: seconds that only grow.

        Raises:
            SinkError: it cannot be written.
            ConfigError: ``every_s`` is no number of seconds.
        """
        if not 0 < every_s < float("inf"):
            raise ConfigError(f"{every_s} s between two lines of metrics; must be positive")
        check_file(path)
        self.path = self.place = path
        self.metrics, self.every_s, self.clock = metrics, every_s, clock
        self.due = clock() + every_s
        self.running = self.failing = False
        self.ending, self.writing = threading.Event(), threading.Lock()

    def begin(self, session: object, metrics: Metrics) -> None:
        """Append lines from now on, whether frames come or not."""
        threading.Thread(target=self.keep_on, name="metrics", daemon=True).start()

    def keep_on(self) -> None:
        """For as long as the run lasts: an outage is when somebody wants to know."""
        while not self.ending.wait(min(self.every_s, max(0.01, self.due - self.clock()))):
            self.append_if_due()

    def write(self, frame: Frame, result: Result) -> bool:
        """Append a line if it is time to; always asks to go on."""
        self.running = True  # so the file is neither the source nor another output
        self.append_if_due()
        return True

    def append_if_due(self) -> None:
        with self.writing:
            now = self.clock()
            if now >= self.due and not self.ending.is_set():
                self.due, self.running = now + self.every_s, True
                self.append()

    def close(self) -> None:
        """Append a last line, if there was any frame or line."""
        self.ending.set()
        with self.writing:
            if self.running:
                self.append()
                self.running = False

    def append(self) -> None:
        line = self.metrics.snapshot().to_json_line().encode() + b"\n"
        try:
            append_whole(self.path, line)
            self.failing = False
        except OSError as error:
            if not self.failing:
                log.warning("cannot append metrics to %s (%s); going on", self.path, error.strerror)
            self.failing = True


def append_whole(path: Path, line: bytes) -> None:
    """Append a line by one system call, or leave the file as it was.

    Raises:
        OSError: it could not be written as a whole.
    """
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)  # another's half-written line would look torn
        size = os.fstat(handle).st_size
        if size and os.pread(handle, 1, size - 1) != b"\n":
            line = b"\n" + line  # after what a power cut tore
        if os.write(handle, line) != len(line):
            os.ftruncate(handle, size)
            raise OSError(None, "the disk is full")
    finally:
        os.close(handle)
