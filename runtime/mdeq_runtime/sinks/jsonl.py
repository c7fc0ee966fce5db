"""One JSON object per frame and line."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO, Any

import msgspec

from edge_mdeq.errors import SinkError
from mdeq_runtime.answers import UNSEEN, class_shares, label_of, top_scores
from mdeq_runtime.results import Frame, Result
from mdeq_runtime.sinks.base import Sink, check_file

__all__ = ["JsonLinesSink", "describe"]

TOP = 5


class JsonLinesSink(Sink):
    """Writes ``describe(result)`` line by line; every line is whole once it is in the file."""

    queue = 256  # lines

    def __init__(self, path: Path, labels: Sequence[str]) -> None:
        """Check that ``path`` can be written; the first result starts the file anew.

        Raises:
            SinkError: it cannot be written.
        """
        check_file(path)
        self._path = self.place = path
        self._labels = tuple(labels)
        self._file: IO[bytes] | None = None
        self._closed = False
        self._size = 0  # bytes of whole lines

    def write(self, frame: Frame, result: Result) -> bool:
        """Append one line.

        Raises:
            SinkError: it cannot be written, or the sink is closed.
        """
        return self.prepare(frame, result)()

    def prepare(self, frame: Frame, result: Result) -> Callable[[], bool]:
        """The line is all that waits."""
        line = msgspec.json.encode(describe(result, self._labels)) + b"\n"
        return partial(self._append, line)

    def _append(self, line: bytes) -> bool:
        if self._closed:
            raise SinkError(f"{self._path} was closed; open a new sink")
        try:
            if self._file is None:
                # unbuffered: a reader that follows the file sees whole lines, at once
                self._file = self._path.open("wb", buffering=0)
            if self._file.write(line) != len(line):
                raise OSError(None, "the disk is full")
        except OSError as error:
            self._drop_torn_line()
            raise SinkError(
                f"cannot write {self._path} ({error.strerror}); free some space, or choose a place "
                "where this user may write"
            ) from error
        self._size += len(line)
        return True

    def close(self) -> None:
        """Close the file."""
        self._closed = True
        if self._file is not None:
            self._file.close()
            self._file = None

    def _drop_torn_line(self) -> None:
        """What a full disk cut off helps nobody who reads line by line."""
        if self._file is not None:
            with suppress(OSError):  # a device or a pipe has no size
                self._file.truncate(self._size)
                self._file.seek(self._size)


def describe(result: Result, labels: Sequence[str]) -> dict[str, Any]:
    """A result as plain JSON values; a number that is not finite becomes null.

    A camera's results have ``age_ms``, the time from capture to answer.
    Segmentation adds ``areas``, the share of the frame's pixels by label (``unseen`` are those
    that the model did not see); classification adds ``top``, the best five as label and score.
    """
    entry: dict[str, Any] = {
        "index": result.index,
        "timestamp": round(result.timestamp, 6),
        "iterations": result.iterations,
        "residual": result.residual if math.isfinite(result.residual) else None,
        "converged": result.converged,
        "warm": result.warm,
        "reason": result.reason,
        "times": {stage: round(ms, 3) for stage, ms in result.times.items()},
    }
    if result.age_ms is not None:
        entry["age_ms"] = round(result.age_ms, 3)
    if result.output.ndim == 2:
        areas: dict[str, float] = {}
        for index, share in class_shares(result.output):
            name = "unseen" if index == UNSEEN else label_of(index, labels)
            areas[name] = round(areas.get(name, 0.0) + share, 6)
        entry["areas"] = areas
    else:
        best = top_scores(result.output, TOP)
        entry["top"] = [{"label": label_of(i, labels), "score": round(s, 6)} for i, s in best]
    return entry
