"""What a batch has to do: the videos, images and folders of images of a folder or of a table."""

from __future__ import annotations

import csv
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from edge_mdeq.errors import DataError, require
from mdeq_runtime.sources.images import IMAGE_SUFFIXES, images_among

__all__ = ["Item", "list_items", "size_of"]

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv")


@dataclass(frozen=True)
class Item:
    """What one worker answers in one go.

    Attributes:
        name: of its results, ``NAME.jsonl``.
        source: a video, an image or a folder of images.
        first, end: the frames of the source that are answered; ``end`` is not.
    """

    name: str
    source: str
    first: int = 0
    end: int = sys.maxsize


def list_items(source: Path, column: str, seconds: float | None) -> list[Item]:
    """The items of a folder or a table.

    Raises:
        DataError: it is neither, it holds none, or two would write the same results.
    """
    if source.is_dir():
        items = items_in_folder(source)
    elif source.suffix.lower() == ".csv":
        items = items_in_table(source, column)
    elif source.exists():
        raise DataError(
            f"{source} is neither a folder nor a .csv table; a single video is for edge-mdeq run"
        )
    else:
        raise DataError(f"{source} does not exist; name a folder or a .csv table")
    known: dict[str, Item] = {}
    for item in items:
        other = known.setdefault(item.name, item)
        if other != item:
            raise DataError(
                f"{other.source} and {item.source} would both write {item.name}.jsonl; "
                "take one of them out, for a batch of its own"
            )
    if seconds is None:
        return list(known.values())
    return [segment for item in known.values() for segment in segments(item, seconds)]


def items_in_folder(folder: Path) -> list[Item]:
    """Its videos, its images, and its folders of images, which are the frames of a stream each."""
    items = []
    for path in sorted(folder.resolve().iterdir()):
        if path.is_dir():
            wanted = bool(images_among(list(path.iterdir())))
        else:
            wanted = path.suffix.lower() in VIDEO_SUFFIXES + IMAGE_SUFFIXES
        if wanted and not path.name.startswith("."):
            items.append(Item(path.name, str(path)))
    if not items:
        raise DataError(
            f"{folder} holds no video ({', '.join(VIDEO_SUFFIXES)}), no image and no folder of "
            "images; videos in deeper folders are for a table"
        )
    return items


def items_in_table(table: Path, column: str) -> list[Item]:
    """One per row; paths are relative to the table's folder, as results are to ``out``."""
    base = table.parent.resolve()
    items = []
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            if column not in (rows.fieldnames or ()):
                raise DataError(
                    f"{table} has no column {column!r}, only {', '.join(rows.fieldnames or ())}; "
                    "name one with --column"
                )
            for row in rows:
                if not row[column]:
                    raise DataError(f"{table}, line {rows.line_num}: {column!r} is empty")
                path = Path(os.path.normpath(base / row[column]))
                inside = path.is_relative_to(base)
                name = path.relative_to(base if inside else path.anchor).as_posix()
                items.append(Item(name, str(path)))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table} cannot be read as a table in UTF-8: {error}") from error
    if not items:
        raise DataError(f"{table} has no rows")
    return items


def segments(item: Item, seconds: float) -> list[Item]:
    """A video in parts that start cold; what has no rate or length that is known stays whole."""
    if Path(item.source).is_dir() or Path(item.source).suffix.lower() in IMAGE_SUFFIXES:
        return [item]
    cv2 = require("cv2", "camera", "reading videos")
    video = cv2.VideoCapture(item.source)
    frames, rate = (int(video.get(cv2.CAP_PROP_FRAME_COUNT)), video.get(cv2.CAP_PROP_FPS))
    video.release()
    if frames <= 0 or not 0 < rate < float("inf"):
        return [item]
    step = max(1, round(seconds * rate))
    starts = range(0, frames, step)
    parts = [Item(f"{item.name}/{first:08d}", item.source, first, first + step) for first in starts]
    return [*parts[:-1], replace(parts[-1], end=sys.maxsize)]  # containers announce too few, too


def size_of(path: Path) -> int:
    """Bytes of a file, or of a folder's files; 0 where there is none."""
    files = path.iterdir() if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.exists())
