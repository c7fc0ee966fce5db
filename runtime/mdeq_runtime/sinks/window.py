"""A window on the device's own screen."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from edge_mdeq.errors import SinkError, require
from mdeq_runtime.overlay import Palette, draw
from mdeq_runtime.results import Frame, Result
from mdeq_runtime.sinks.base import Sink
from mdeq_runtime.sources.base import pixels

__all__ = ["WindowSink"]

TITLE = "edge-mdeq"
STOP_KEYS = (ord("q"), ord("Q"), 27)  # 27 is Esc
MASK_KEYS, NUMBER_KEYS = (ord("o"), ord("O")), (ord("n"), ord("N"))
REST = 1.0  # times as long as showing a frame took, until the next one is shown
PROBE_TIMEOUT_S = 20.0
ADVICE = "use --headless, or another output such as out.mp4, out.jsonl or masks/"
# Qt aborts the whole process when it cannot reach the screen, so another process tries first.
PROBE = "import cv2; cv2.namedWindow('edge-mdeq'); cv2.waitKey(1); cv2.destroyAllWindows()"


class WindowSink(Sink):
    """Shows annotated frames; q, Esc or closing the window ends the run.

    The key o hides and shows the mask, n the numbers. A window belongs to the main thread, as all
    of OpenCV do, so a slow screen would hold up the run: at most every other moment is spent on it,
    and the frames that come meanwhile are not shown.
    """

    def __init__(self, labels: Sequence[str], palette: Palette) -> None:
        """Open the window.

        Raises:
            SinkError: there is no display, or OpenCV was built without windows.
        """
        _check_display()
        self._cv2: Any = require("cv2", "camera", "showing a window")
        self._labels, self._palette = tuple(labels), tuple(palette)
        # Qt warns of fonts that OpenCV does not bring; nothing here is lettered with them.
        os.environ.setdefault("QT_LOGGING_RULES", "default.warning=false")
        # GUI_NORMAL: no toolbar, which would take a fifth of the picture's room
        flags = self._cv2.WINDOW_NORMAL | self._cv2.WINDOW_KEEPRATIO | self._cv2.WINDOW_GUI_NORMAL
        self._cv2.namedWindow(TITLE, flags)
        self._sized = False
        self._open = True
        self._mask = self._numbers = True
        self._again = 0.0  # the clock's time for the next frame

    def write(self, frame: Frame, result: Result) -> bool:
        """Show one frame; False once the user wants to stop."""
        cv2 = self._cv2
        if not self._sized:
            height, width = frame.image.shape[:2]
            cv2.resizeWindow(TITLE, width, height)
            self._sized = True
        started = time.perf_counter()
        if started >= self._again:
            shown = draw(
                frame.image, result, self._labels, self._palette,
                mask=self._mask, numbers=self._numbers,
            )  # fmt: skip
            cv2.imshow(TITLE, shown)
        key = cv2.waitKey(1) & 0xFF
        if started >= self._again:
            now = time.perf_counter()
            self._again = now + REST * (now - started)
        self._mask ^= key in MASK_KEYS
        self._numbers ^= key in NUMBER_KEYS
        return key not in STOP_KEYS and self._visible()

    def holding(self, size: tuple[int, int] | None) -> int:
        """Qt and its fonts, and the annotated frame as OpenCV, Qt and X hold it."""
        return 30_000_000 + 4 * 4 * pixels(size)

    def close(self) -> None:
        """Close the window."""
        if self._open:
            self._open = False
            self._cv2.destroyAllWindows()

    def _visible(self) -> bool:
        """Whether the user has not closed it."""
        cv2 = self._cv2
        try:
            return bool(cv2.getWindowProperty(TITLE, cv2.WND_PROP_VISIBLE) >= 1)
        except cv2.error:  # with its last window Qt's whole side of OpenCV is gone
            return False


def _check_display() -> None:
    """Raise SinkError where a window cannot be opened."""
    unix_desktop = sys.platform.startswith(("linux", "freebsd"))
    if unix_desktop and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise SinkError(f"there is no display (DISPLAY is not set): {ADVICE}")
    command = [sys.executable, "-c", PROBE]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise SinkError(
            f"a window did not open within {PROBE_TIMEOUT_S:g} s; check the display, or {ADVICE}"
        ) from error
    if done.returncode == 0:
        return
    if "not implemented" in done.stderr:
        raise SinkError(
            "this OpenCV was built without windows (opencv-python-headless?): "
            f"install opencv-python, or {ADVICE}"
        )
    said = next((line.strip() for line in done.stderr.splitlines() if line.strip()), "no message")
    display = os.environ.get("DISPLAY", "")
    raise SinkError(f"cannot open a window on display {display!r} ({said}): {ADVICE}")
