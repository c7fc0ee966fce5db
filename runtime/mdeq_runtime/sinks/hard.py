"""Frames that were hard to solve, kept for the workshop: what to label and to tune on next."""

from __future__ import annotations

import logging
import re
import shutil
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from edge_mdeq.errors import ConfigError, SinkError, require
from edge_mdeq.files import write_atomic
from mdeq_runtime.reasons import ColdKind
from mdeq_runtime.results import Frame, Result
from mdeq_runtime.sinks.base import Sink, check_folder
from mdeq_runtime.sinks.jsonl import describe
from mdeq_runtime.sources.base import pixels

__all__ = ["HardFrames"]

log = logging.getLogger(__name__)

FORCED: tuple[ColdKind, ...] = ("scene_cut", "residual", "non_finite", "failed")
EVERY_S = 1.0  # of each kind, a frame: a camera that looks at one wall gives one picture, not all
FREE_BYTES = 64 * 2**20  # left to everybody else on the disk
OURS = re.compile(r"(\d{8}T\d{6}\.\d{3}-\d+)\.(png|json)")
HALF = re.compile(rf"\.{OURS.pattern}\.\d+\.tmp")  # of ``write_atomic``, when a run was killed


class HardFrames(Sink):
    """Keeps frames whose residual stayed above the tolerance, and those that forced a reset.

    Each is ``TIME-FRAME.png``, bit for bit, and ``TIME-FRAME.json``: its answer in short, why it
    was kept (``kept``), and its ``trace``, the residual by evaluations. At most one a second of
    either kind; when the quota is used up the oldest make room. The run never ends because of it:
    a disk that is full is a warning.
    """

    queue = 2
    aside = True

    def __init__(self, folder: Path, quota: int, labels: Sequence[str] = ()) -> None:
        """Make the folder; what an earlier run kept in it counts, other files do not.

        Args:
            folder: where to.
            quota: bytes that its frames may take.
            labels: a name per class.

        Raises:
            SinkError: the folder cannot be made or written.
            ConfigError: a quota that makes no sense.
        """
        if quota <= 0:
            raise ConfigError(f"a quota of {quota} bytes keeps nothing; give one such as 1GiB")
        self._cv2: Any = require("cv2", "camera", "keeping hard frames")
        check_folder(folder)
        self._folder = self.place = folder
        self._quota, self._labels = quota, tuple(labels)
        self._sizes = self._found()
        self._last: dict[str, float] = {}  # seconds, by kind
        self._said: set[str] = set()

    def write(self, frame: Frame, result: Result) -> bool:
        """Keep the frame if it was hard; always asks to go on."""
        job = self.prepare(frame, result)
        return True if job is None else job()

    def prepare(self, frame: Frame, result: Result) -> Callable[[], bool] | None:
        """Nothing to do for a frame that was easy, or like the last one."""
        kind = _why_hard(result)
        if kind is None:
            return None
        last = self._last.get(kind)
        if last is not None and last < frame.timestamp < last + EVERY_S:
            return None
        self._last[kind] = frame.timestamp
        about = {
            "kept": kind,
            **describe(result, self._labels),
            "trace": [[count, residual] for count, residual in result.trace],
        }
        return partial(self._keep, frame.image, frame.index, about)

    def holding(self, size: tuple[int, int] | None) -> int:
        """Code; the frames that wait and the one at work, and its PNG twice."""
        return 4_000_000 + (self.queue + 1 + 2) * 3 * pixels(size)

    def close(self) -> None:
        """Nothing is left open between frames."""

    def _keep(self, image: Any, index: int, about: dict[str, Any]) -> bool:
        fast = [self._cv2.IMWRITE_PNG_COMPRESSION, 1]
        done, data = self._cv2.imencode(".png", image, fast)
        if not done:
            raise SinkError("OpenCV cannot encode PNG; reinstall opencv-python")
        text = msgspec.json.format(msgspec.json.encode(about))
        size = data.size + len(text)
        if size > self._quota:
            self._warn(f"a frame takes more than the quota of {self._quota} bytes")
            return True
        name = self._name(index)
        try:
            while self._sizes and sum(self._sizes.values()) + size > self._quota:
                self._drop(next(iter(self._sizes)))
            if shutil.disk_usage(self._folder).free < size + FREE_BYTES:
                self._warn("the disk is nearly full")
                return True
            self._sizes[name] = size
            write_atomic(self._folder / f"{name}.png", data.tobytes())
            write_atomic(self._folder / f"{name}.json", text)
        except OSError as error:
            self._warn(str(error.strerror))
            self._drop(name)
        return True

    def _name(self, index: int) -> str:
        """The time of day, which many a device does not know after it started, and the frame."""
        now = int(time.time() * 1000)
        while True:
            stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(now // 1000))
            name = f"{stamp}.{now % 1000:03d}-{index:06d}"
            if name not in self._sizes:
                return name
            now += 1

    def _found(self) -> dict[str, int]:
        """Bytes of each kept frame, oldest first; what a killed run left half-written goes.

        The order is that of their names. What this run adds comes behind them, whatever the clock
        says by then.
        """
        sizes: dict[str, int] = {}
        for path in sorted(self._folder.iterdir()):
            if HALF.fullmatch(path.name):
                path.unlink(missing_ok=True)
            elif found := OURS.fullmatch(path.name):
                sizes[found[1]] = sizes.get(found[1], 0) + path.stat().st_size
        return sizes

    def _drop(self, name: str) -> None:
        for suffix in (".png", ".json"):
            self._folder.joinpath(name + suffix).unlink(missing_ok=True)
        self._sizes.pop(name, None)

    def _warn(self, what: str) -> None:
        """Once for each reason."""
        if what not in self._said:
            self._said.add(what)
            log.warning("cannot keep hard frames in %s (%s); going on", self._folder, what)


def _why_hard(result: Result) -> str | None:
    """Why a frame is worth keeping: what forced a reset, or "tolerance"; None if it is not."""
    if result.cold in FORCED:
        return result.cold
    return None if result.converged else "tolerance"
