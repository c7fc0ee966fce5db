"""Where frames come from: files, cameras, streams and a test pattern, opened by ``open_source``."""

from __future__ import annotations

from pathlib import Path

from edge_mdeq.errors import SourceError
from mdeq_runtime.sources.base import Source
from mdeq_runtime.sources.camera import camera_opening, describe_camera
from mdeq_runtime.sources.device import Opening
from mdeq_runtime.sources.files import open_files, open_finite
from mdeq_runtime.sources.gstreamer import (
    check_elements,
    check_gstreamer,
    csi_pipeline,
    is_file,
    open_pipeline,
    user_pipeline,
)
from mdeq_runtime.sources.live import Live
from mdeq_runtime.sources.network import (
    DECODER,
    check_address,
    http_opening,
    is_http_file,
    open_http_file,
    rtsp_opening,
)
from mdeq_runtime.sources.options import SourceOptions
from mdeq_runtime.sources.pattern import Pattern
from mdeq_runtime.sources.status import Picture, State, Status
from mdeq_runtime.sources.video import VideoFile
from mdeq_runtime.uris import did_you_mean, redact, split_scheme

__all__ = ["Live", "Picture", "Source", "SourceOptions", "State", "Status", "open_source"]

KNOWN_SCHEMES = ("csi", "file", "gst", "http", "https", "rtsp", "rtsps", "test", "v4l2")
KNOWN = (
    "a path, a folder or glob of images, a camera index such as 0, v4l2:///dev/video0, csi://0, "
    "rtsp://, http://, gst://PIPELINE, test://, file://"
)
FILE_OPTIONS = ("flip", "loop", "realtime", "rate")
OPTIONS = {
    "csi": ("width", "height", "rate", "flip", "sensor_mode", "wait"),
    "v4l2": ("width", "height", "rate", "codec", "flip", "exposure", "wait"),
    "rtsp": ("codec", "flip", "latency", "transport", "backend", "wait"),
    "http": ("flip", "backend", "wait"),
    "gst": ("flip", "wait"),
    "test": ("width", "height", "rate", "flip"),
    "file": FILE_OPTIONS,
}


def open_source(uri: str | Path | int, options: SourceOptions | None = None) -> Source:
    """Open a source of frames.

    ===========================  =======================================================
    ``clip.mp4``, ``file://...``  a video file
    ``photo.png``, ``frames/``    an image, or all images of a folder, in natural order
    ``images/*.jpg``              a glob of images; ``**`` crosses folders
    ``0``, ``/dev/video0``        a camera; so are ``v4l2:///dev/video0`` and ``v4l2://0``
    ``csi://0``                   a camera on a Jetson's CSI port
    ``rtsp://``, ``rtsps://``     a network camera
    ``http://``, ``https://``     MJPEG or HLS; a video file, if its name is that of one
    ``gst://PIPELINE``            what a GStreamer pipeline gives
    ``test://``                   a moving pattern with ground truth
    ===========================  =======================================================

    Cameras and streams are ``Live``: once they were opened, they reconnect by themselves.

    Args:
        uri: one of these.
        options: what is asked of it.

    Raises:
        SourceError: an unknown scheme, or what it names is missing or cannot be opened.
        ConfigError: an option that means nothing for this kind of source.
    """
    options = options or SourceOptions()
    text = str(uri).strip()
    scheme, rest = split_scheme(text)
    if not scheme and (text.isdecimal() or text.startswith("/dev/video")):
        scheme, rest = "v4l2", text
    if not scheme or scheme == "file":
        options.check("files and images", FILE_OPTIONS)
        return open_files(rest if scheme else text, options, KNOWN, unquoted=bool(scheme))
    if scheme not in KNOWN_SCHEMES:
        hint = did_you_mean(scheme, KNOWN_SCHEMES) or ";"
        raise SourceError(
            f"unknown scheme {scheme!r} in source {redact(text)!r}{hint} known: {KNOWN}"
        )
    kind = scheme.removesuffix("s")
    if kind in ("http", "rtsp"):
        check_address(text)
    if kind == "http" and is_http_file(text):
        options.check("video files over http://", FILE_OPTIONS)
        name = f"video {redact(text)}"
        return open_finite(lambda: VideoFile(None, open_http_file(text), name), options)
    options.check(f"{scheme}://", OPTIONS[kind])
    if kind == "test":
        return Pattern(options)
    if kind == "gst" and is_file(rest):
        return open_finite(lambda: pipeline_file(text), SourceOptions(flip=options.flip))
    flip = None if kind == "csi" else options.flip  # nvvidconv has turned it already
    opening, description = live_opening(kind, text, rest, options)
    decoder = DECODER if kind in ("rtsp", "http") else 0
    return Live(opening, description, flip=flip, wait=options.wait, decoder=decoder)


def live_opening(kind: str, text: str, rest: str, options: SourceOptions) -> tuple[Opening, str]:
    """What opens a camera or a stream, and what it is called."""
    if kind == "v4l2":
        return camera_opening(rest, options), describe_camera(rest)
    if kind == "rtsp":
        return rtsp_opening(text, options), f"stream {redact(text)}"
    if kind == "http":
        return http_opening(text, options), f"stream {redact(text)}"
    if kind == "csi":
        if not rest.isdecimal():
            raise SourceError(f"{redact(text)} names no camera; write csi://0 for the first one")
        name, pipeline = f"CSI camera {rest}", csi_pipeline(int(rest), options)
        failure = f"{name} stopped delivering; see: journalctl -u nvargus-daemon"
    else:
        pipeline, failure = user_pipeline(rest), ""
        name = f"pipeline {redact(text).removeprefix('gst://').strip()}"
    check_gstreamer(name)
    check_elements(pipeline, name)
    return lambda cancelled: open_pipeline(pipeline, name, failure), name


def pipeline_file(uri: str) -> VideoFile:
    """A pipeline that has an end, read to there."""
    name = f"pipeline {redact(uri).removeprefix('gst://').strip()}"
    check_gstreamer(name)
    pipeline = user_pipeline(uri.partition("://")[2])
    check_elements(pipeline, name)
    return VideoFile(None, open_pipeline(pipeline, name).capture, name)
