"""Where results go: files, a window, the network, or nowhere, opened by ``open_sink``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from edge_mdeq.errors import SinkError
from mdeq_runtime.overlay import Palette
from mdeq_runtime.sinks.base import Sink
from mdeq_runtime.sinks.images import IMAGE_SUFFIXES, ImageSink
from mdeq_runtime.sinks.jsonl import JsonLinesSink
from mdeq_runtime.sinks.masks import MaskSink
from mdeq_runtime.sinks.none import NullSink
from mdeq_runtime.sinks.video import CODECS, VideoSink, sound_fps
from mdeq_runtime.sinks.window import WindowSink
from mdeq_runtime.uris import did_you_mean, redact, split_scheme

__all__ = ["Sink", "open_sink"]

STREAM_SCHEMES = ("rtsp", "rtsps", "udp")
SCHEMES = ("display", "http", "masks", *STREAM_SCHEMES)
SUFFIXES = (*CODECS, ".jsonl", *IMAGE_SUFFIXES)
KNOWN = (
    "NAME.mp4, NAME.avi, NAME.jsonl, NAME.jpg, %06d.png, FOLDER/ or masks://FOLDER, display://, "
    "http://HOST:PORT, rtsp://HOST:PORT/PATH, udp://HOST:PORT, none"
)


def open_sink(
    target: str | Path,
    *,
    fps: float | None = None,
    labels: Sequence[str] = (),
    palette: Palette = (),
) -> Sink:
    """Open a sink for results.

    ==================================  ==================================================
    ``out.mp4``, ``out.avi``            an annotated video
    ``out.jsonl``                       one JSON object per frame
    ``seen/%06d.jpg``, ``.png``         an annotated picture per frame
    ``newest.jpg``, ``.png``            one annotated picture, the newest
    ``masks/`` or ``masks://FOLDER``    one PNG of class indices per frame
    ``display://``                      a window
    ``http://HOST:PORT``                a live page for browsers (``mdeq_runtime.web``)
    ``rtsp://HOST:PORT/PATH``           H.264 to an RTSP server that records or passes it on
    ``udp://HOST:PORT``                 H.264 as an MPEG stream
    ``none``                            nowhere
    ==================================  ==================================================

    Args:
        target: one of these.
        fps: rate of the source, for videos and streams; None if it has none.
        labels: a name per class.
        palette: an RGB colour per class.

    Raises:
        SinkError: an unknown kind of target, or one that cannot be written.
    """
    text = str(target).strip()
    if "\0" in text:
        raise SinkError(
            f"output {redact(text)!r} has a null character in it, as no path has; drop it"
        )
    scheme, rest = split_scheme(text)
    if text == "none" or scheme == "none":
        return NullSink()
    if text == "display" or scheme == "display":
        return WindowSink(labels, palette)
    if scheme in ("http", "https"):
        from mdeq_runtime.web import LivePage

        return LivePage(text, labels, palette)
    if scheme in STREAM_SCHEMES:
        from mdeq_runtime.sinks.stream import StreamSink

        return StreamSink(text, sound_fps(fps), labels, palette)
    if scheme == "masks" and rest:
        return MaskSink(Path(rest))
    if scheme:
        raise SinkError(_unknown_scheme(scheme, text))
    if text.endswith("/"):
        return MaskSink(Path(text))
    path = Path(text)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise SinkError(_unknown_suffix(path))
    if suffix in CODECS:
        return VideoSink(path, fps, labels, palette)
    if suffix in IMAGE_SUFFIXES:
        return ImageSink(path, labels, palette)
    return JsonLinesSink(path, labels)


def _unknown_scheme(scheme: str, text: str) -> str:
    if scheme == "masks":
        return f"output {text!r} names no folder; write masks://FOLDER"
    hint = did_you_mean(scheme, SCHEMES) or ";"
    return f"unknown scheme {scheme!r} in output {redact(text)!r}{hint} known: {KNOWN}"


def _unknown_suffix(path: Path) -> str:
    if os.path.isdir(path):
        return f"output {path} is a folder; write {path}/ for a mask per frame, or name a file"
    hint = did_you_mean(path.suffix.lower(), SUFFIXES) or ";"
    kind = f"suffix {path.suffix!r}" if path.suffix else "a name without suffix"
    return f"unknown kind of output {str(path)!r} ({kind}){hint} known: {KNOWN}"
