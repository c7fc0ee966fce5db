"""A video file that plays whatever ends its writer: Ctrl-C, kill -9, a full disk, a power cut.

OpenCV cannot be told to write fragments: what it passes on to FFmpeg reaches the encoder and not
the file format, and its buffer keeps up to 256 KB to itself. So it writes short videos, and each
finished one is appended as a fragment, synchronised to the disk.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

from edge_mdeq.files import sync_folder
from mdeq_runtime.overlay import Image
from mdeq_runtime.sinks.mp4 import DURATION_AT, TIMESCALE, fragment, header, read_segment

__all__ = ["FRAGMENT_S", "FragmentedVideo", "part_of", "remove_leftovers"]

FRAGMENT_S = 2.0  # what a power cut may cost


class FragmentedVideo:
    """One MP4, written fragment by fragment; each frame is shown until the next one's time.

    Until its first fragment is whole the file lies beside ``path``, under a name that begins with a
    dot; so a run that ends before leaves what was there.

    Args:
        cv2: OpenCV.
        path: of the video.
        fps: frames per second, as far as they are regular.
        size: (height, width).
        codec: four letters.

    Attributes:
        named: whether ``path`` is this video already.

    Raises:
        ValueError: OpenCV has no writer for the codec.
        OSError: no file can be made there.
    """

    def __init__(self, cv2: Any, path: Path, fps: float, size: tuple[int, int], codec: str) -> None:
        self._cv2, self._path, self._fps, self._size = cv2, path, fps, size
        self._code = cv2.VideoWriter.fourcc(*codec)
        self._part = part_of(path, "fragment")
        self._temporary = part_of(path, "video")
        self._writer = self._open()
        self._file = os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        self._length = self._number = 0  # bytes and fragments that are whole
        self._times: list[float] = []  # of the frames in the part
        self.named = False

    def append(self, image: Image, time: float) -> None:
        """Add one frame.

        Args:
            image: (h, w, 3) uint8 BGR of the video's size.
            time: seconds since the beginning; more than the last frame's.

        Raises:
            OSError: the disk is full, or fails; what is in whole fragments plays.
        """
        if self._times and time >= self._times[0] + FRAGMENT_S:
            self._flush(time)
        if self._writer is None:
            try:
                self._writer = self._open()
            except ValueError as error:  # it did open before: OpenCV 4 has no room for a header
                raise OSError(None, "the disk may be full, no fragment can be begun") from error
        self._writer.write(image)
        self._times.append(time)

    def close(self) -> None:
        """Write the last fragment. May be called again.

        Raises:
            OSError: as ``append``.
        """
        try:
            if self._times:
                self._flush(self._times[-1] + 1.0 / self._fps)
        finally:
            if self._writer is not None:
                self._writer.release()
            self._writer, self._times = None, []
            if self._file >= 0:
                os.close(self._file)
                self._file = -1
            for left in (self._part, self._temporary):
                left.unlink(missing_ok=True)

    def _open(self) -> Any:
        height, width = self._size
        writer = self._cv2.VideoWriter(str(self._part), self._code, self._fps, (width, height))
        if not writer.isOpened():
            self._part.unlink(missing_ok=True)
            raise ValueError("no writer")
        return writer

    def _flush(self, end: float) -> None:
        """Append the part as a fragment that ends at ``end``, wholly or not at all."""
        times, self._times = [*self._times, end], []
        writer, self._writer = self._writer, None
        writer.release()
        try:
            segment = read_segment(self._part.read_bytes())
            if len(segment.sizes) != len(times) - 1:
                raise ValueError(f"{len(segment.sizes)} of {len(times) - 1} frames")
        except ValueError as error:  # OpenCV says nothing of a disk that is full
            raise OSError(None, "the disk may be full, a fragment did not arrive whole") from error
        finally:
            self._part.unlink(missing_ok=True)
        ticks = [round(time * TIMESCALE) for time in times]
        durations = [after - before for before, after in pairwise(ticks)]
        data = b"" if self._number else header(segment)
        data += fragment(segment, self._number + 1, ticks[0], durations)
        try:
            self._put((data, segment.data), self._length)
            self._put((struct.pack(">Q", ticks[-1]),), DURATION_AT)
            os.fsync(self._file)
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._file, self._length)
            raise
        self._length += len(data) + len(segment.data)
        self._number += 1
        if not self.named:
            os.replace(self._temporary, self._path)
            sync_folder(self._path.parent)
            self.named = True

    def _put(self, pieces: Sequence[bytes | memoryview], place: int) -> None:
        if os.pwritev(self._file, pieces, place) != sum(map(len, pieces)):
            raise OSError(None, "the disk is full")


def part_of(path: Path, what: str) -> Path:
    """A sibling of ``path`` for what is not whole yet."""
    return path.with_name(f".{path.stem}.{os.getpid()}.{what}.part{path.suffix}")


def remove_leftovers(path: Path, stem: str | None = None) -> None:
    """Remove what killed writers of ``path`` have left beside it.

    Args:
        path: what is written.
        stem: a regular expression of names without a suffix; None: that of ``path``.
    """
    stem = re.escape(path.stem) if stem is None else stem
    shape = re.compile(rf"\.{stem}\.(\d+)\.\w+\.part(\.\w+)?")
    for file in path.parent.iterdir():
        found = shape.fullmatch(file.name)
        if found and not Path(f"/proc/{found[1]}").exists() and Path("/proc/self").exists():
            with suppress(OSError):
                file.unlink()
