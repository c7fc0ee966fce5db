"""Ctrl-C, where a library would lose it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["uninterrupted"]


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C comes after the block, not within; in other threads than the main one it never does.

    ``torch.save`` calls Python's files from C++, which takes an exception there for a failed write
    or for nothing at all; and where it comes while a lock is being taken, as those of TensorBoard's
    queue, whoever wants the lock next waits for ever. For what takes moments.
    """
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    came: list[FrameType | None] = []
    signal.signal(signal.SIGINT, lambda number, frame: came.append(frame))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if came:
            handler(signal.SIGINT, came[0])
