"""Annotated pictures: one per frame, or one file that is always the newest."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from edge_mdeq.errors import SinkError, require
from mdeq_runtime.overlay import Palette, draw
from mdeq_runtime.results import Frame, Result
from mdeq_runtime.sinks.base import Sink, check_file, check_folder
from mdeq_runtime.sinks.fragments import remove_leftovers
from mdeq_runtime.sources.base import pixels

__all__ = ["IMAGE_SUFFIXES", "ImageSink"]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
NUMBER = re.compile(r"%(0?\d*)[di]")


class ImageSink(Sink):
    """Writes ``seen/000042.jpg`` for frame 42 as ``seen/%06d.jpg``; a name without ``%`` is one
    picture that each frame replaces as a whole.
    """

    queue = 4

    def __init__(self, path: Path, labels: Sequence[str], palette: Palette) -> None:
        """Check that pictures can be written; nothing is written yet.

        Raises:
            SinkError: they cannot, or the name has a ``%`` that is no number's place.
        """
        self._cv2: Any = require("cv2", "camera", "writing pictures")
        self._path = path
        self._labels, self._palette = tuple(labels), tuple(palette)
        self._numbered = "%" in path.name
        self._begun = False
        if self._numbered:
            if len(NUMBER.findall(path.name)) != 1 or path.name.count("%") != 1:
                raise SinkError(
                    f"output {path} has a % that is no frame number's place; write such as %06d"
                )
            check_folder(path.parent)
            self.place = path.parent
        else:
            check_file(path)
            check_folder(path.parent)
            self.place = path

    @property
    def name(self) -> str:
        """What messages call it."""
        return str(self._path)

    def write(self, frame: Frame, result: Result) -> bool:
        """Draw the result on its frame and write it.

        Raises:
            SinkError: it cannot be written.
        """
        path = self._path
        self._tidy()
        if self._numbered:
            path = path.with_name(NUMBER.sub(r"%\1d", path.name) % frame.index)
        image = draw(frame.image, result, self._labels, self._palette)
        done, data = self._cv2.imencode(path.suffix.lower(), image)
        if not done:
            raise SinkError(f"OpenCV cannot encode {path}; reinstall opencv-python")
        temporary = path.with_name(f".{path.stem}.{os.getpid()}.picture.part")
        try:
            temporary.write_bytes(data)
            temporary.replace(path)
        except OSError as error:
            raise SinkError(
                f"cannot write {path} ({error.strerror}); free some space, or choose another place"
            ) from error
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def _tidy(self) -> None:
        """Before the first picture: what runs that were killed have left."""
        if not self._begun:
            self._begun = True
            before, _, after = NUMBER.sub("\0", self._path.stem).partition("\0")
            number = r"\d+" if self._numbered else ""
            with suppress(OSError):
                remove_leftovers(self._path, re.escape(before) + number + re.escape(after))

    def prepare(self, frame: Frame, result: Result) -> Callable[[], bool]:
        """To be written later; a confidence map is not shown, so it is not kept either."""
        return partial(self.write, frame, replace(result, confidence=None))

    def holding(self, size: tuple[int, int] | None) -> int:
        """Code; what waits and is at work, an annotated frame twice, and its file."""
        return 4_000_000 + ((self.queue + 1) * (3 + 1) + 3 * 3) * pixels(size)

    def close(self) -> None:
        """Nothing is left open between pictures."""
