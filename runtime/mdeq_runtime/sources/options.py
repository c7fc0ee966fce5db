"""What may be asked of a source, under the names that users of jetson-utils know."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, fields

from edge_mdeq.errors import ConfigError
from mdeq_runtime.sources.orient import FLIPS
from mdeq_runtime.uris import did_you_mean

__all__ = ["SourceOptions"]

CODECS = ("h264", "h265", "mjpeg", "yuyv")
SPELLINGS = {"mjpg": "mjpeg", "jpeg": "mjpeg", "yuy2": "yuyv", "yuv": "yuyv", "hevc": "h265"}
CHOICES = {
    "codec": CODECS,
    "flip": FLIPS,
    "transport": ("tcp", "udp"),
    "backend": ("ffmpeg", "gstreamer"),
}
LEAST = {"width": 1, "height": 1, "exposure": 0, "sensor_mode": 0, "loop": -1, "latency": 0}

LARGEST = 2**14  # pixels, of a width or a height; beyond those of any camera


@dataclass(frozen=True)
class SourceOptions:
    """What is asked of a source; what is None is left to it. ``--input-NAME`` on the command line.

    Attributes:
        width, height: pixels, before any turn.
        rate: frames per second.
        codec: h264 or h265 (rtsp://), mjpeg or yuyv (v4l2://).
        flip: as ``nvvidconv`` calls them, see ``orient.FLIPS``.
        exposure: of a V4L2 camera, in its driver's units, mostly 100 us; None: automatic.
        sensor_mode: of a CSI camera, as its driver counts them.
        latency: milliseconds that packets of a network stream may wait for those before them.
        transport: of rtsp://, "tcp" or "udp".
        backend: which part of OpenCV reads network streams, "ffmpeg" or "gstreamer".
        loop: how often a file starts again; -1: for ever.
        realtime: a file's frames come when their time has come, and those nobody takes are dropped.
        wait: a camera that is not there yet is waited for, too.

    Raises:
        ConfigError: a value that makes no sense, with those that do.
    """

    width: int | None = None
    height: int | None = None
    rate: float | None = None
    codec: str | None = None
    flip: str | None = None
    exposure: int | None = None
    sensor_mode: int | None = None
    latency: int | None = None
    transport: str | None = None
    backend: str | None = None
    loop: int | None = None
    realtime: bool = False
    wait: bool = False

    def __post_init__(self) -> None:
        codec = self.codec.lower() if self.codec else self.codec
        object.__setattr__(self, "codec", SPELLINGS.get(codec or "", codec))
        for name, known in CHOICES.items():
            value = getattr(self, name)
            if value is not None and value not in known:
                hint = did_you_mean(value, known) or ";"
                raise ConfigError(f"input {name} is {value!r}{hint} known: {', '.join(known)}")
        for name, least in LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"input {shown(name)} is {value}, must be at least {least}")
        if max(self.width or 0, self.height or 0) > LARGEST:
            size = f"{self.width} x {self.height}"
            raise ConfigError(f"input size is {size}, must be at most {LARGEST} either way")
        if self.rate is not None and not 0 < self.rate < math.inf:
            raise ConfigError(f"input rate is {self.rate}, must be frames per second above 0")
        if (self.width is None) != (self.height is None):
            raise ConfigError("give input width and height together, or neither")

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) if they are asked for."""
        if self.width is None or self.height is None:
            return None
        return self.height, self.width

    def check(self, kind: str, known: Collection[str]) -> None:
        """Refuse what would be without effect.

        Raises:
            ConfigError: something is asked for that ``kind`` of source does not know.
        """
        given = [f.name for f in fields(self) if getattr(self, f.name) not in (None, False)]
        for name in given:
            if name not in known:
                said = ", ".join(shown(each) for each in known) or "none"
                raise ConfigError(
                    f"input {shown(name)} means nothing for {kind}; drop it (it knows: {said})"
                )


def shown(name: str) -> str:
    return name.replace("_", "-")
