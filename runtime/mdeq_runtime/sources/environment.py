"""FFmpeg's options, which OpenCV reads from the environment whenever it opens a stream."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["ffmpeg_options"]

NAME = "OPENCV_FFMPEG_CAPTURE_OPTIONS"
PATIENCE_S = 20.0  # a stream that hangs while it opens must not keep the others out for ever

changed = threading.Condition()
users = 0  # streams that open with the present value


@contextmanager
def ffmpeg_options(**options: str | int) -> Iterator[None]:
    """Have the streams that are opened inside read with ``options``.

    Streams with the same options open side by side, others one after the other. Options of the
    user's own, in the variable from the beginning, win.
    """
    global users
    value = "|".join(f"{name};{text}" for name, text in options.items())
    with changed:
        changed.wait_for(lambda: not users or os.environ.get(NAME) == value, PATIENCE_S)
        if not users:
            os.environ.setdefault(NAME, value)
        mine = os.environ.get(NAME) == value
        users += mine
    try:
        yield
    finally:
        if mine:
            with changed:
                users -= 1
                if not users:
                    os.environ.pop(NAME, None)
                changed.notify_all()
