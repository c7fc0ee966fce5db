"""A folder of index masks, one 8-bit PNG per frame."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edge_mdeq.errors import SinkError, require
from mdeq_runtime.results import Frame, Result
from mdeq_runtime.sinks.base import Sink, check_folder

__all__ = ["MaskSink"]


class MaskSink(Sink):
    """Writes ``000042.png`` for frame 42: its mask (h, w) of class indices, losslessly."""

    def __init__(self, folder: Path) -> None:
        """Make the folder; files of the same names in it are replaced.

        Raises:
            SinkError: the folder cannot be made or written.
        """
        self._cv2: Any = require("cv2", "camera", "writing masks")
        check_folder(folder)
        self._folder = self.place = folder

    def write(self, frame: Frame, result: Result) -> bool:
        """Write one mask.

        Raises:
            SinkError: the model does not answer with masks, or the file cannot be written.
        """
        if result.output.ndim != 2:
            raise SinkError(
                f"{self._folder}/ takes masks, but this model answers with scores of classes; "
                "write them to a .jsonl file"
            )
        path = self._folder / f"{frame.index:06d}.png"
        done, data = self._cv2.imencode(".png", result.output)
        if not done:
            raise SinkError(f"OpenCV cannot encode {path} as PNG; reinstall opencv-python")
        temporary = path.with_suffix(".part")
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
