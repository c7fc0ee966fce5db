"""Names and colours of classes from a user's own file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

from edge_mdeq.errors import ConfigError
from mdeq_runtime.palette import colour_of

__all__ = ["read_classes"]

COLOUR = re.compile(
    r"(?:^|[\s,])(?:#([0-9a-f]{6})|(\d{1,3})[\s,]+(\d{1,3})[\s,]+(\d{1,3}))\s*$", re.IGNORECASE
)


def read_classes(
    path: Path, labels: Sequence[str] = (), palette: Sequence[tuple[int, int, int]] = ()
) -> tuple[tuple[str, ...], tuple[tuple[int, int, int], ...]]:
    """Names and RGB colours by a file with a line per class, in the order of their numbers.

    A line is a name, a colour or both: ``road``, ``128 64 128``, ``road #804080``. So a list of
    names alone will do, and so will one of colours alone. Empty lines, and those that begin with
    "# ", are comments.

    Args:
        path: the file, UTF-8.
        labels: the model's, for lines without a name and for classes without a line.
        palette: likewise; without it ``palette.colour_of``.

    Raises:
        ConfigError: it cannot be read, names nothing or more classes than the model has, or a
            colour is none.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigError(f"cannot read classes from {path} ({why}); name a text file") from error
    found = [
        _parse(line.strip(), f"{path}, line {number}")
        for number, line in enumerate(lines, 1)
        if line.strip() and not re.match(r"#(\s|$)", line.strip())
    ]
    if not found:
        raise ConfigError(f"{path} has no classes; write a line for each, such as: road #804080")
    if labels and len(found) > len(labels):
        raise ConfigError(
            f"{path} has {len(found)} classes, the model {len(labels)}; write a line for each, in "
            "the model's order (edge-mdeq inspect shows it)"
        )
    names: list[str] = []
    colours: list[tuple[int, int, int]] = []
    rows = zip_longest(found, labels, palette, fillvalue=None)
    for index, (mine, label, colour) in enumerate(rows):
        name, own = mine or ("", None)
        names.append(name or label or f"class {index}")
        colours.append(own or colour or colour_of(index))
    return tuple(names), tuple(colours)


def _parse(line: str, place: str) -> tuple[str, tuple[int, int, int] | None]:
    """(name, RGB colour) of a line; either may be missing."""
    match = COLOUR.search(line)
    if match is None:
        return line, None
    if match[1]:
        red, green, blue = bytes.fromhex(match[1])
    else:
        red, green, blue = (int(part) for part in match.groups()[1:])
        if max(red, green, blue) > 255:
            raise ConfigError(f"{place}: colour {match[0].strip()} is above 255; write R G B")
    return line[: match.start()].strip(" \t,"), (red, green, blue)
