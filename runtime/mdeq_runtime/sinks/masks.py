"""A folder of index masks, one 8-bit PNG per frame."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_mdeq.errors import SinkError, require
from mdeq_runtime.results import Frame, Result
from mdeq_runtime.sinks.base import Sink, check_folder
from mdeq_runtime.sinks.fragments import remove_leftovers
from mdeq_runtime.sources.base import pixels

__all__ = ["MaskSink"]


class MaskSink(Sink):
    """Writes ``000042.png`` for frame 42: its mask (h, w) of class indices, losslessly."""

    queue = 4

    def __init__(self, folder: Path) -> None:
        """Make the folder; files of the same names in it are replaced.

        Raises:
            SinkError: the folder cannot be made or written.
        """
        self._cv2: Any = require("cv2", "camera", "writing masks")
        check_folder(folder)
        self._begun = False
        self._folder = self.place = folder

    def write(self, frame: Frame, result: Result) -> bool:
        """Write one mask.

        Raises:
            SinkError: the model does not answer with masks, or the file cannot be written.
        """
        return self.prepare(frame, result)()

    def prepare(self, frame: Frame, result: Result) -> Callable[[], bool]:
        """The mask is all that waits.

        Raises:
            SinkError: the model does not answer with masks.
        """
        if result.output.ndim != 2:
            raise SinkError(
                f"{self._folder}/ takes masks, but this model answers with scores of classes; "
                "write them to a .jsonl file"
            )
        return partial(self._save, frame.index, result.output)

    def holding(self, size: tuple[int, int] | None) -> int:
        """Code and buffers; the masks that wait, one that is encoded, and its PNG."""
        return 2_000_000 + (self.queue + 2) * pixels(size)

    def _save(self, index: int, mask: NDArray[np.uint8]) -> bool:
        path = self._folder / f"{index:06d}.png"
        if not self._begun:
            self._begun = True
            with suppress(OSError):
                remove_leftovers(path, r"\d+")
        done, data = self._cv2.imencode(".png", mask)
        if not done:
            raise SinkError(f"OpenCV cannot encode {path} as PNG; reinstall opencv-python")
        temporary = path.with_name(f".{path.stem}.{os.getpid()}.mask.part")
        try:
            temporary.write_bytes(data.tobytes())
            temporary.replace(path)
        except OSError as error:
            raise SinkError(
                f"cannot write {path} ({error.strerror}); free some space, or choose another folder"
            ) from error
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def close(self) -> None:
        """Nothing is left open between masks."""
