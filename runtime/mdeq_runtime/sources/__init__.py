"""Where frames come from: video files, images and cameras, all opened by ``open_source``."""

from __future__ import annotations

import glob
from pathlib import Path
from urllib.parse import unquote

from edge_mdeq.errors import SourceError
from mdeq_runtime.sources.base import Source
from mdeq_runtime.sources.camera import open_camera
from mdeq_runtime.sources.images import IMAGE_SUFFIXES, ImageFiles, images_among
from mdeq_runtime.sources.video import VideoFile
from mdeq_runtime.uris import did_you_mean, split_scheme

__all__ = ["Source", "open_source"]

KNOWN_SCHEMES = ("file", "v4l2")
LATER_SCHEMES = ("csi", "http", "https", "rtsp", "test")
KNOWN = "a path, a folder or glob of images, a camera index such as 0, file://, v4l2://"


def open_source(uri: str | Path | int) -> Source:
    """Open a source of frames.

    ===========================  =======================================================
    ``clip.mp4``, ``file://...``  a video file
    ``photo.png``, ``frames/``    an image, or all images of a folder, in natural order
    ``images/*.jpg``              a glob of images; ``**`` crosses folders
    ``0``, ``/dev/video0``        a camera
    ``v4l2:///dev/video0``        a camera; so does ``v4l2://0``
    ===========================  =======================================================

    Raises:
        SourceError: an unknown scheme, or what it names is missing or cannot be opened.
    """
    text = str(uri).strip()
    scheme, rest = split_scheme(text)
    if scheme == "v4l2" or (not scheme and (text.isdecimal() or text.startswith("/dev/video"))):
        return open_camera(rest)
    if scheme == "file":
        return _open_files(unquote(rest))
    if not scheme:
        return _open_files(text)
    if scheme in LATER_SCHEMES:
        raise SourceError(
            f"{scheme}:// sources are not supported yet, they come in a later release; "
            f"this one reads: {KNOWN}"
        )
    hint = did_you_mean(scheme, (*KNOWN_SCHEMES, *LATER_SCHEMES))
    raise SourceError(f"unknown scheme {scheme!r} in source {text!r}{hint or ';'} known: {KNOWN}")


def _open_files(name: str) -> Source:
    path = Path(name)
    if not name:
        raise SourceError(f"the source is empty; give {KNOWN}")
    if path.is_dir():
        return _images(name, list(path.iterdir()), "folder")
    if path.exists():  # before globbing: a real name may hold brackets
        if path.suffix.lower() in IMAGE_SUFFIXES:
            return ImageFiles([path], f"image {path}")
        return VideoFile(path)
    if glob.has_magic(name):
        return _images(name, [Path(found) for found in glob.glob(name, recursive=True)], "glob")
    raise SourceError(f"source {name} does not exist (seen from {Path.cwd()}); check the path")


def _images(name: str, found: list[Path], kind: str) -> Source:
    images = images_among([path for path in found if path.is_file()])
    if not images:
        raise SourceError(
            f"no image in {kind} {name} ({len(found)} other entries, seen from {Path.cwd()}); "
            f"images end in {', '.join(IMAGE_SUFFIXES)}"
        )
    return ImageFiles(images, f"{len(images)} images of {kind} {name}")
