"""Annotated frames to the network: H.264 to an RTSP server, or as an MPEG stream over UDP.

GStreamer encodes and sends in a process of its own, ``gst-launch-1.0``, which OpenCV's writer would
do in this one: whichever OpenCV is installed it works, and a network that hangs or a server that
goes away ends that process, which is started again, and not the run.
"""

from __future__ import annotations

import logging
import os
import re
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

import numpy as np

from edge_mdeq.errors import SinkError
from edge_mdeq.fitting import fit_image, plan_fit
from mdeq_runtime.overlay import Image, Palette, draw
from mdeq_runtime.results import Frame, Result
from mdeq_runtime.sinks.base import Sink
from mdeq_runtime.sources.base import pixels
from mdeq_runtime.uris import redact

__all__ = ["StreamSink"]

log = logging.getLogger(__name__)

LAUNCH, INSPECT = "gst-launch-1.0", "gst-inspect-1.0"
HARDWARE = ("/dev/nvhost-msenc", "/dev/v4l2-nvenc")  # a Jetson with an encoder; not every has one
ENCODERS = {
    "nvv4l2h264enc": "nvvidconv ! nvv4l2h264enc insert-sps-pps=true idrinterval=30",
    "x264enc": "x264enc tune=zerolatency speed-preset=ultrafast key-int-max=30",
    "openh264enc": "openh264enc gop-size=30",
}
HANG_S = 5.0  # for one frame, after which the process is given up
PAUSES_S = (1.0, 2.0, 5.0, 10.0, 30.0)  # until it is started again
FINISH_S = 2.0
MAX_REPEATS = 30  # frames


class StreamSink(Sink):
    """Sends annotated frames to ``rtsp://HOST:PORT/PATH`` or ``udp://HOST:PORT``.

    The first frame sets the size, later ones of another size are letterboxed. Where a live source
    dropped frames the last one is repeated. A server that is away is a warning, and is tried again.
    """

    queue = 1  # what waits is late

    def __init__(self, target: str, fps: float, labels: Sequence[str], palette: Palette) -> None:
        """Find what encodes; nothing is sent yet.

        Args:
            target: where to.
            fps: frames per second.
            labels: a name per class.
            palette: an RGB colour per class.

        Raises:
            SinkError: no GStreamer, no encoder, or a target without host or port.
        """
        self._target, self._fps = target, fps
        self._labels, self._palette = tuple(labels), tuple(palette)
        self._tail = _tail(target)
        self._encoder = ENCODERS[_find_encoder(target)]
        self._size = (0, 0)
        self._process: subprocess.Popen[bytes] | None = None
        self._said: IO[bytes] | None = None
        self._failures, self._again, self._broken = 0, 0.0, False
        self._started = 0.0  # the clock's time at which the process was
        self._last: tuple[int, Image] | None = None

    @property
    def name(self) -> str:
        """What messages call it: without a password."""
        return redact(self._target)

    def write(self, frame: Frame, result: Result) -> bool:
        """Draw the result on its frame and send it, if there is somebody to send it to."""
        image = draw(frame.image, result, self._labels, self._palette)
        if self._size == (0, 0):
            self._size = (image.shape[0], image.shape[1])
        if image.shape[:2] != self._size:
            image = fit_image(
                image, plan_fit((image.shape[0], image.shape[1]), self._size, "letterbox")
            )
        index, previous = self._last or (frame.index - 1, image)
        self._last = (frame.index, image)
        if not self._running():
            return True
        for _ in range(min(max(frame.index - index - 1, 0), MAX_REPEATS)):
            self._send(previous)
        self._send(image)
        return True

    def prepare(self, frame: Frame, result: Result) -> Callable[[], bool]:
        """To be sent later; a confidence map is not shown, so it is not kept either."""
        return partial(self.write, frame, replace(result, confidence=None))

    def holding(self, size: tuple[int, int] | None) -> int:
        """Code, what waits and is at work, two annotated frames; GStreamer's is another process."""
        return 2_000_000 + ((self.queue + 1) * (3 + 1) + 2 * 3) * pixels(size)

    def close(self) -> None:
        """Send what is left, and end the other process."""
        self._end(FINISH_S)

    def _end(self, patience_s: float) -> None:
        """Let the process finish, or not; all that belongs to it is closed."""
        process, self._process = self._process, None
        if process is not None:
            assert process.stdin is not None
            with suppress(OSError):
                process.stdin.close()  # which tells it that the stream has ended
            try:
                process.wait(patience_s)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._said is not None:
            self._said.close()
            self._said = None

    def _running(self) -> bool:
        """Whether the process is there, started again if it is time to."""
        if self._process is not None and self._process.poll() is None:
            return True
        if self._process is not None:
            self._give_up(self._complaint())
        if time.monotonic() < self._again:
            return False
        height, width = self._size
        rate = round(self._fps * 1000)
        command = (
            f"{LAUNCH} -q fdsrc blocksize={3 * width * height} ! rawvideoparse format=bgr "
            f"width={width} height={height} framerate={rate}/1000 ! videoconvert ! "
            f"{self._encoder} ! h264parse config-interval=-1 ! {self._tail}"
        ).split()
        self._started = time.monotonic()
        try:
            self._said = tempfile.TemporaryFile()  # noqa: SIM115  # an unread pipe may block
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=self._said,
                start_new_session=True,  # Ctrl-C is for this process, which ends that one in peace
            )  # fmt: skip
        except OSError as error:  # no memory, no room for temporary files: others need the run
            self._give_up(f"{LAUNCH} does not start: {error.strerror}")
            return False
        assert self._process.stdin is not None
        os.set_blocking(self._process.stdin.fileno(), False)
        return True

    def _send(self, image: Image) -> None:
        """One frame, within ``HANG_S``."""
        if self._process is None or self._process.stdin is None:
            return
        pipe = self._process.stdin.fileno()
        left = np.ascontiguousarray(image).reshape(-1).data
        end = time.monotonic() + HANG_S
        try:
            while left:
                _, ready, _ = select.select([], [pipe], [], max(end - time.monotonic(), 0.0))
                if not ready:
                    self._give_up(f"it takes nothing for {HANG_S:g} s")
                    return
                left = left[os.write(pipe, left) :]
        except BrokenPipeError:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(FINISH_S)
            self._give_up(self._complaint())
            return
        if self._broken:
            self._broken = False
            log.warning("sending to %s again", self.name)

    def _give_up(self, why: str) -> None:
        """End the process; said once until it goes well again."""
        self._end(0.0)
        if time.monotonic() - self._started > PAUSES_S[-1]:
            self._failures = 0  # it went well for a while: the next outage is another one
        pause = PAUSES_S[min(self._failures, len(PAUSES_S) - 1)]
        self._failures += 1
        self._again = time.monotonic() + pause
        if not self._broken:
            self._broken = True
            log.warning("cannot send to %s (%s); trying again", self.name, why)

    def _complaint(self) -> str:
        """What the process said last of what went wrong."""
        if self._said is None:
            return "it ended"
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").splitlines()
        told = [line for line in lines if re.match(r"(ERROR|WARNING|erroneous)", line)] or lines
        return redact(told[-1].split(": ", 2)[-1]) if told else "it ended"


def _tail(target: str) -> str:
    """The end of the pipeline, from H.264 on.

    Raises:
        SinkError: there is no host, or no port where one is needed.
    """
    try:
        parts = urlsplit(target)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        why = "" if "@" in target else f": {error}"  # which may hold a password
        raise SinkError(f"output {redact(target)} makes no sense{why}") from None
    if not host or (parts.scheme == "udp" and not port):
        example = "udp://192.168.1.5:5000" if parts.scheme == "udp" else "rtsp://server:8554/name"
        raise SinkError(f"output {redact(target)} has no host or no port; write such as {example}")
    if odd := re.search(r"[^\w.~:/?#\[\]@$&*+,=%-]", target):
        code = "".join(f"%{byte:02X}" for byte in odd[0].encode())
        raise SinkError(f"output {redact(target)} has {odd[0]!r} in it; write it as {code}")
    if parts.scheme == "udp":
        return f"mpegtsmux alignment=7 ! udpsink host={host} port={port} sync=false"
    return f"rtspclientsink location={target} protocols=tcp latency=0"


def _find_encoder(target: str) -> str:
    """The name of an H.264 encoder that is installed, in hardware if there is one.

    Raises:
        SinkError: GStreamer's tools, an element or every encoder is missing.
    """
    for tool in (LAUNCH, INSPECT):
        if shutil.which(tool) is None:
            raise SinkError(
                f"output {redact(target)} needs GStreamer's {tool}; install gstreamer1.0-tools"
            )
    needed = {
        "rawvideoparse": "gstreamer1.0-plugins-bad",
        "h264parse": "gstreamer1.0-plugins-bad",
    }
    if target.startswith("udp"):
        needed |= {"mpegtsmux": "gstreamer1.0-plugins-bad", "udpsink": "gstreamer1.0-plugins-good"}
    else:
        needed |= {"rtspclientsink": "gstreamer1.0-rtsp"}
    for element, package in needed.items():
        if not _exists(element):
            raise SinkError(
                f"output {redact(target)} needs GStreamer's {element}; install {package}"
            )
    for name in ENCODERS:
        hardware = name.startswith("nv")
        if (not hardware or any(Path(node).exists() for node in HARDWARE)) and _exists(name):
            return name
    raise SinkError(
        f"output {redact(target)} needs an H.264 encoder; install gstreamer1.0-plugins-ugly, "
        "which has x264enc"
    )


def _exists(element: str) -> bool:
    done = subprocess.run([INSPECT, "--exists", element], capture_output=True, check=False)
    return done.returncode == 0
