"""Paths as sources: a video, an image, a folder or a glob of images."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

from edge_mdeq.errors import ConfigError, SourceError
from mdeq_runtime.sources.base import Source
from mdeq_runtime.sources.images import IMAGE_SUFFIXES, ImageFiles, images_among
from mdeq_runtime.sources.options import SourceOptions
from mdeq_runtime.sources.replay import Looped, Realtime, Turned
from mdeq_runtime.sources.video import VideoFile

__all__ = ["open_files", "open_finite"]


def open_files(name: str, options: SourceOptions, known: str, *, unquoted: bool) -> Source:
    """Open what a path, a folder or a glob names.

    Args:
        name: it.
        options: loop, realtime, rate, flip.
        known: what else a source may be, for the message.
        unquoted: whether it is of a URI, and may be percent-encoded.

    Raises:
        SourceError: there is nothing, or it cannot be read.
        ConfigError: a rate without ``realtime``.
    """
    path = unquote(name) if unquoted else name
    return open_finite(lambda: open_once(path, known), options)


def open_finite(open_file: Callable[[], Source], options: SourceOptions) -> Source:
    """A source that ends, as often and as fast as the options say.

    Raises:
        ConfigError: a rate without ``realtime``, or no rate with it.
    """
    if options.rate is not None and not options.realtime:
        raise ConfigError("input rate of a file means something with --realtime only; add it")
    source = Looped(open_file, options.loop) if options.loop else open_file()
    if options.flip not in (None, "none"):
        source = Turned(source, str(options.flip))
    return Realtime(source, options.rate) if options.realtime else source


def open_once(name: str, known: str) -> Source:
    path = Path(name)
    if not name:
        raise SourceError(f"the source is empty; give {known}")
    if "\0" in name:
        raise SourceError(f"source {name!r} has a null character in it, as no path has; drop it")
    if os.path.isdir(path):
        return images(name, list(path.iterdir()), "folder")
    if os.path.exists(path):  # before globbing: a real name may hold brackets
        if path.suffix.lower() in IMAGE_SUFFIXES:
            return ImageFiles([path], f"image {path}")
        return VideoFile(path)
    if glob.has_magic(name):
        return images(name, [Path(found) for found in glob.glob(name, recursive=True)], "glob")
    raise SourceError(f"source {name} does not exist (seen from {Path.cwd()}); check the path")


def images(name: str, found: list[Path], kind: str) -> Source:
    pictures = images_among([path for path in found if os.path.isfile(path)])
    if not pictures:
        raise SourceError(
            f"no image in {kind} {name} ({len(found)} other entries, seen from {Path.cwd()}); "
            f"images end in {', '.join(IMAGE_SUFFIXES)}"
        )
    return ImageFiles(pictures, f"{len(pictures)} images of {kind} {name}")
