"""Sources through GStreamer: CSI cameras, RTSP with a board's decoder, and pipelines of the user's.

They need an OpenCV that was built with GStreamer: JetPack's, or a distribution's, not pip's.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from glob import glob
from urllib.parse import unquote, urlsplit, urlunsplit

from edge_mdeq.errors import SourceError, require
from mdeq_runtime.sources.device import OpenCVDevice
from mdeq_runtime.sources.options import SourceOptions
from mdeq_runtime.sources.orient import FLIPS
from mdeq_runtime.uris import redact

__all__ = [
    "check_elements",
    "check_gstreamer",
    "csi_pipeline",
    "has_board_decoder",
    "is_file",
    "open_pipeline",
    "rtsp_pipeline",
    "user_pipeline",
]

BGR = "videoconvert ! video/x-raw,format=BGR"
NEWEST = "appsink drop=true max-buffers=1 sync=false"
EVERY = "appsink drop=false max-buffers=4 sync=false"
CSI_SIZE, CSI_RATE = (720, 1280), 30.0  # as jetson-utils has them
BOARD_DECODER = "/usr/lib/aarch64-linux-gnu/gstreamer-1.0/libgstnvvideo4linux2.so"
DEPAY = {"h264": "rtph264depay ! h264parse", "h265": "rtph265depay ! h265parse"}


def check_gstreamer(what: str) -> None:
    """See that OpenCV has GStreamer.

    Raises:
        SourceError: it has not, with what to do.
    """
    cv2 = require("cv2", "camera", "reading cameras")
    if re.search(r"GStreamer:\s+YES", cv2.getBuildInformation()) is None:
        raise SourceError(
            f"{what} needs an OpenCV with GStreamer, and this one ({cv2.__version__}, "
            f"{cv2.__file__}) has none; on a Jetson: pip uninstall opencv-python, and let the "
            "environment see JetPack's (docs/cameras.md)"
        )


def check_elements(pipeline: str, name: str) -> None:
    """See that GStreamer knows all elements: OpenCV may wait for ever for a pipeline without some.

    Raises:
        SourceError: it lacks some.
    """
    missing = missing_elements(pipeline)
    if missing:
        raise SourceError(
            f"{name} does not start: GStreamer lacks {', '.join(missing)}; find the package with: "
            f"apt-cache search gstreamer1.0 (docs/cameras.md), and look with: "
            f"gst-inspect-1.0 {missing[0]}"
        )


def csi_pipeline(sensor: int, options: SourceOptions) -> str:
    """The pipeline for camera ``sensor`` of a Jetson's CSI port.

    The picture stays in the camera's memory until ``nvvidconv`` has turned it.
    """
    height, width = options.size or CSI_SIZE
    rate = options.rate or CSI_RATE
    mode = "" if options.sensor_mode is None else f" sensor-mode={options.sensor_mode}"
    flip = FLIPS.index(options.flip or "none")
    return (
        f"nvarguscamerasrc sensor-id={sensor}{mode} ! video/x-raw(memory:NVMM),width={width},"
        f"height={height},framerate={fraction(rate)},format=NV12 ! nvvidconv flip-method={flip} ! "
        f"video/x-raw,format=BGRx ! {BGR} ! {NEWEST}"
    )


def rtsp_pipeline(uri: str, options: SourceOptions, on_board: bool) -> str:
    """The pipeline for an RTSP stream, decoded by the board where it can.

    Args:
        uri: with the credentials, if any, which become properties of their own.
        options: codec, latency, transport.
        on_board: whether there is NVIDIA's ``nvv4l2decoder``; it needs to know the codec.
    """
    parts = urlsplit(uri)
    host = parts.netloc.rpartition("@")[2]
    location = urlunsplit((parts.scheme, host, parts.path, parts.query, ""))
    # a jitter buffer is of use where packets overtake one another, so not within TCP
    transport = options.transport or "tcp"
    latency = options.latency if options.latency is not None else 0 if transport == "tcp" else 100
    source = f"rtspsrc location={quoted(location)} protocols={transport} latency={latency}"
    source += " tcp-timeout=5000000 timeout=5000000"
    if parts.username is not None:
        source += f" user-id={quoted(unquote(parts.username))}"
        source += f" user-pw={quoted(unquote(parts.password or ''))}"
    depay = DEPAY.get(options.codec or "h264")
    if on_board and depay is not None:
        return (
            f"{source} ! {depay} ! nvv4l2decoder enable-max-performance=true ! nvvidconv ! "
            f"video/x-raw,format=BGRx ! {BGR} ! {NEWEST}"
        )
    return f"{source} ! decodebin ! {BGR} ! {NEWEST}"


def user_pipeline(text: str) -> str:
    """A pipeline of the user's, ended as OpenCV needs it unless it ends in an appsink.

    Raises:
        SourceError: it is empty.
    """
    text = text.strip().removesuffix("!").strip()
    if not text:
        raise SourceError("gst:// names no pipeline; write 'gst://videotestsrc is-live=true'")
    if re.search(r"\bappsink\b", text):
        return text
    return f"{text} ! {BGR} ! {EVERY if is_file(text) else NEWEST}"


def is_file(text: str) -> bool:
    """Whether a pipeline has an end of its own, so that nothing of it may be dropped."""
    return re.search(r"\b(multi)?filesrc\b|\bnum-buffers=[1-9]", text) is not None


def open_pipeline(pipeline: str, name: str, failure: str = "") -> OpenCVDevice:
    """Open a pipeline; this, and every read, may block for as long as its elements do.

    Args:
        pipeline: ends in an appsink.
        name: what it is, for messages.
        failure: what it means if no picture comes, "" if that is an end.

    Raises:
        SourceError: it does not start; the first reason that GStreamer gives, where it can be had.
    """
    cv2 = require("cv2", "camera", "reading cameras")
    # no time-outs: before OpenCV 4.9 such a property keeps a pipeline from opening
    capture = cv2.VideoCapture(pipeline, cv2.CAP_GSTREAMER)
    if not capture.isOpened():
        capture.release()
        raise SourceError(f"{name} does not start: {why(pipeline)}")
    return OpenCVDevice(capture, failure)


def why(pipeline: str) -> str:
    """What can be said without GStreamer's own messages, which go to its log."""
    if "nvarguscamerasrc" in pipeline:
        return (
            "no camera there, another program has it, or its daemon hangs; see the table in "
            "docs/jetson.md, first: sudo systemctl restart nvargus-daemon"
        )
    shown = redact(pipeline.partition(" ! appsink")[0])
    return f"try it alone: gst-launch-1.0 {shown} ! fakesink (OPENCV_LOG_LEVEL=WARNING says more)"


def missing_elements(pipeline: str) -> list[str]:
    """Elements that GStreamer does not know, as far as its tool is there to be asked."""
    tool = shutil.which("gst-inspect-1.0")
    if tool is None:
        return []
    try:
        words = shlex.split(pipeline.replace("(", " ").replace(")", " "))
    except ValueError:
        return []
    heads = [word for before, word in zip(["!", *words], words, strict=False) if before == "!"]
    names = [head for head in heads if re.fullmatch(r"[a-z][a-z0-9_]*", head)]
    asked = ((name, subprocess.run([tool, "--exists", name], check=False)) for name in names)
    return [name for name, done in asked if done.returncode]


def has_board_decoder() -> bool:
    """Whether this is a board whose GStreamer decodes in hardware."""
    return bool(glob(BOARD_DECODER))


def fraction(rate: float) -> str:
    """30/1 for 30, 30000/1001 for 29.97."""
    if abs(rate - round(rate)) < 1e-6:
        return f"{round(rate)}/1"
    if abs(rate * 1.001 - round(rate * 1.001)) < 1e-3:
        return f"{1000 * round(rate * 1.001)}/1001"
    return f"{round(1000 * rate)}/1000"


def quoted(text: str) -> str:
    """A property's value as GStreamer's parser takes it, whatever it holds."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
