"""Nowhere: for measuring, and for programs that only want the callback."""

from __future__ import annotations

from mdeq_runtime.results import Frame, Result
from mdeq_runtime.sinks.base import Sink

__all__ = ["NullSink"]


class NullSink(Sink):
    """Takes everything and keeps nothing."""

    aside = True

    def write(self, frame: Frame, result: Result) -> bool:
        """Go on."""
        return True

    def close(self) -> None:
        """Nothing to do."""
