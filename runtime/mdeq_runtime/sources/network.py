"""Streams from the network through OpenCV: rtsp(s)://, and http(s):// with MJPEG, HLS or a file."""

from __future__ import annotations

import re
import threading
from pathlib import PurePosixPath
from typing import Any, NoReturn
from urllib.parse import urlsplit

from edge_mdeq.errors import ConfigError, SourceError, require
from mdeq_runtime.sources.device import OpenCVDevice, Opening, RefusedError
from mdeq_runtime.sources.environment import ffmpeg_options
from mdeq_runtime.sources.gstreamer import (
    check_gstreamer,
    has_board_decoder,
    open_pipeline,
    rtsp_pipeline,
)
from mdeq_runtime.sources.options import SourceOptions
from mdeq_runtime.sources.probe import CONNECT_S, Diagnosis, diagnose
from mdeq_runtime.uris import redact

__all__ = [
    "DECODER",
    "check_address",
    "http_opening",
    "is_http_file",
    "open_http_file",
    "rtsp_opening",
]

DECODER = 30_000_000  # bytes: code, and the frames that a decoder refers to
OPEN_S, SILENT_S = (
    8.0,
    4.0,
)  # a stream's, below the patience of ``Live``, so that a read ends by itself
FILE_SILENT_S = 12.0  # what a file's read ends with is its end
KNOCK_S, KNOCK_CAP_S = 1.0, 8.0  # for a server's answer, twice as long after each time without
# No longer look at a stream before it opens than it takes to know its format. (Not "nobuffer": that
# throws away the key frame which was looked at, and pictures are torn until the next one comes.)
FRESH: dict[str, str | int] = {
    "flags": "low_delay",
    "fpsprobesize": 0,
    "analyzeduration": 2_000_000,
}
VIDEO_FILES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpg", ".mpeg", ".ogv", ".webm", ".wmv")


def rtsp_opening(uri: str, options: SourceOptions) -> Opening:
    """What opens an RTSP stream, each time anew.

    Raises:
        SourceError: this OpenCV has nothing to read it with.
        ConfigError: a codec is asked for, and what reads it takes none.
    """
    name = f"stream {redact(uri)}"
    if choose_backend(options, name) == "gstreamer":
        pipeline = rtsp_pipeline(uri, options, has_board_decoder())
        return explained(uri, name, lambda: open_pipeline(pipeline, name))
    if options.codec:
        raise ConfigError(
            f"input codec means nothing for {name}, which FFmpeg reads here and finds out itself; "
            "drop it, or give --input-backend gstreamer"
        )
    latency = 1000 * (options.latency if options.latency is not None else 100)
    found = {**FRESH, "rtsp_transport": options.transport or "tcp", "max_delay": latency}
    return explained(uri, name, lambda: open_by_ffmpeg(uri, found))


def http_opening(uri: str, options: SourceOptions) -> Opening:
    """What opens a live stream over HTTP, each time anew."""
    name = f"stream {redact(uri)}"
    if choose_backend(options, name) == "gstreamer":
        raise SourceError(
            f"{name}: the live http:// streams of this release are read with FFmpeg, which this "
            "OpenCV lacks or --input-backend rules out; with GStreamer write: "
            "'gst://souphttpsrc location=URI is-live=true ! multipartdemux ! jpegdec'"
        )
    return explained(uri, name, lambda: open_by_ffmpeg(uri, FRESH))


def check_address(uri: str) -> None:
    """Refuse what no library would read as an address; ``diagnose`` tells of the rest.

    Raises:
        SourceError: such as a bracket that is not closed.
    """
    try:
        urlsplit(uri)
    except ValueError:  # whose text may hold a password
        raise SourceError(
            f"stream {redact(uri)} is no address; write SCHEME://USER:PASSWORD@HOST:PORT/PATH"
        ) from None


def is_http_file(uri: str) -> bool:
    """Whether its name is that of a video file, which has an end, and waits."""
    return PurePosixPath(urlsplit(uri).path).suffix.lower() in VIDEO_FILES


def open_http_file(uri: str) -> Any:
    """A ``cv2.VideoCapture`` on a video file of a web server.

    Raises:
        SourceError: with what its server says.
    """
    cv2 = require("cv2", "camera", "reading videos")
    # by name: the last way that OpenCV 4 tries of itself logs the URI, and with it a password
    if has(cv2, "FFMPEG"):
        capture = cv2.VideoCapture(uri, cv2.CAP_FFMPEG, timeouts(cv2, FILE_SILENT_S))
    else:
        capture = cv2.VideoCapture(uri, cv2.CAP_GSTREAMER)
    if not capture.isOpened():
        found = diagnose(uri)
        kind = RefusedError if found.refused else SourceError
        raise kind(f"video {redact(uri)} {found.text}")
    return capture


def open_by_ffmpeg(uri: str, options: dict[str, str | int]) -> OpenCVDevice | None:
    cv2 = require("cv2", "camera", "reading streams")
    params = timeouts(cv2, SILENT_S)
    if hasattr(cv2, "CAP_PROP_N_THREADS"):  # each further thread holds a frame back
        params += [cv2.CAP_PROP_N_THREADS, 1]
    with ffmpeg_options(**options):
        capture = cv2.VideoCapture(uri, cv2.CAP_FFMPEG, params)
    if not capture.isOpened():
        capture.release()
        return None
    return OpenCVDevice(capture)


def timeouts(cv2: Any, silent_s: float) -> list[int]:
    """OpenCV would wait for a server that hangs for half a minute, and Ctrl-C with it."""
    opening, reading = cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, cv2.CAP_PROP_READ_TIMEOUT_MSEC
    return [opening, int(1000 * OPEN_S), reading, int(1000 * silent_s)]


def explained(uri: str, name: str, attempt: Any) -> Opening:
    """An attempt whose failure is looked into, by asking the server.

    After the first time an RTSP server is asked beforehand. One that is just starting takes
    connections before it answers, and FFmpeg would wait for it for as long as it is given, which
    has to be long enough for a camera that wakes up.
    """
    attempts, patience = 0, KNOCK_S

    def fail(found: Diagnosis) -> NoReturn:
        raise (RefusedError if found.refused else SourceError)(f"{name} {found.text}")

    def opening(cancelled: threading.Event) -> OpenCVDevice:
        nonlocal attempts, patience
        attempts += 1
        if attempts > 1 and uri.startswith("rtsp"):
            found = diagnose(uri, patience, CONNECT_S)
            patience = min(2 * patience, KNOCK_CAP_S) if found.silent else KNOCK_S
            if not found.given:
                fail(found)
        try:
            device: OpenCVDevice | None = attempt()
        except SourceError:
            device = None
        if device is None:
            fail(diagnose(uri))
        return device

    return opening


def choose_backend(options: SourceOptions, name: str) -> str:
    """FFmpeg, unless a board decodes in hardware or OpenCV lacks it.

    Raises:
        SourceError: OpenCV has not what is asked for, or neither.
    """
    cv2 = require("cv2", "camera", "reading streams")
    ffmpeg, gstreamer = has(cv2, "FFMPEG"), has(cv2, "GStreamer")
    asked = options.backend
    if asked == "gstreamer":
        check_gstreamer(name)
    if asked == "ffmpeg" and not ffmpeg:
        raise SourceError(f"{name}: this OpenCV has no FFmpeg; drop --input-backend ffmpeg")
    if asked is not None:
        return asked
    if gstreamer and (has_board_decoder() or not ffmpeg):
        return "gstreamer"
    if ffmpeg:
        return "ffmpeg"
    raise SourceError(
        f"{name} needs an OpenCV with FFmpeg or GStreamer, and this one has neither; "
        "see: edge-mdeq doctor"
    )


def has(cv2: Any, part: str) -> bool:
    """Whether this OpenCV was built with it."""
    return re.search(rf"{part}:\s+YES", cv2.getBuildInformation()) is not None
