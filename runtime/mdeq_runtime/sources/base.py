"""What every source of frames can do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol

from mdeq_runtime.frame_slot import FrameSlot
from mdeq_runtime.results import Frame
from mdeq_runtime.sources.status import Status

__all__ = ["Source", "pixels"]


class Source(Protocol):
    """Frames, one after the other.

    Attributes:
        live: whether time goes on while nobody reads (a camera), so that frames may be dropped.
        fps: frames per second if the source has a rate, else None.
        size: (height, width) in pixels if known before the first frame, else None.
        description: what was opened, such as "USB camera /dev/video0".
        files: what it reads, so that no output takes their place; none for a camera.
        patient: whether it mends itself after a failure, so that its silence is no error.
    """

    live: bool
    fps: float | None
    size: tuple[int, int] | None
    description: str
    files: Sequence[Path] = ()
    patient: bool = False

    def read(self) -> Frame | None:
        """The next frame; None when a file has ended or the source was closed.

        Raises:
            SourceError: what comes next cannot be read, or a live source has ended.
        """
        ...

    @property
    def status(self) -> Status:
        """How it is doing; to be asked from any thread."""
        return Status()

    def feed(self, slot: FrameSlot) -> bool:
        """Put frames into ``slot`` from now on, in threads of its own; False if it has none."""
        return False

    def holding(self) -> int:
        """Bytes that it takes while it is read, predicted, beside the frame that it gives."""
        return 3 * pixels(self.size)  # the frame before

    def close(self) -> None:
        """Release what the source holds; may be called twice, and from another thread."""
        ...

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def pixels(size: tuple[int, int] | None) -> int:
    """Of a frame; 0 where its size is not known."""
    return 0 if size is None else size[0] * size[1]
