"""Draws an answer over its frame: mask and legend or best classes, and how the solve went.

No loop here runs over pixels: a 1080p frame costs a few milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from edge_mdeq.errors import require
from mdeq_runtime.answers import UNSEEN, class_shares, label_of, top_scores
from mdeq_runtime.glyphs import letter
from mdeq_runtime.palette import colour_of
from mdeq_runtime.results import Result

__all__ = ["Image", "Palette", "class_colour", "draw"]

Image = NDArray[np.uint8]
Palette = Sequence[tuple[int, int, int]]

GREY, BLUE, ORANGE = (150, 150, 150), (233, 180, 86), (0, 94, 213)  # BGR, told apart by all eyes
TOP = 5
SHADE = 0.35  # what is left of a frame's brightness under text
LEGEND_HEIGHT = 0.6  # largest share of the frame that the legend may cover
BEST_RESIDUAL_LOG10 = -3.0  # the gauge is full here, and empty at a residual of 1

Row = tuple[str, tuple[int, int, int]]  # text and BGR colour


def draw(
    image: Image,
    result: Result,
    labels: Sequence[str],
    palette: Palette = (),
    *,
    opacity: float = 0.5,
    mask: bool = True,
    numbers: bool = True,
) -> Image:
    """A new image (h, w, 3) BGR with ``result`` drawn over ``image``, which stays as it is.

    Args:
        image: the frame (h, w, 3) uint8 BGR.
        result: its answer, a mask (h, w) or scores (classes,).
        labels: a name per class; numbers stand in for missing ones.
        palette: an RGB colour per class; ``palette.colour_of`` where it is missing.
        opacity: of the mask's colours, 0...1.
        mask: whether the mask is blended in.
        numbers: whether legend or best classes, and how the solve went, are written.
    """
    cv2 = require("cv2", "camera", "drawing results")
    colours = _colours(tuple((int(r), int(g), int(b)) for r, g, b in palette))
    segmented = result.output.ndim == 2
    if segmented and mask:
        canvas = _blend(cv2, image, result.output, colours, opacity)
    else:
        canvas = image.copy()
    if numbers:
        pen = _Pen(cv2, canvas)
        _draw_rows(pen, _rows(result, labels, colours, pen.room))
        _draw_gauge(pen, result)
    return canvas


def _rows(result: Result, labels: Sequence[str], colours: Image, room: int) -> list[Row]:
    """The legend: the classes with the largest share or score, as many as there is room for."""
    if result.output.ndim == 2:
        shares = [(i, share) for i, share in class_shares(result.output) if i != UNSEEN]
    else:
        shares = top_scores(result.output, TOP)
    kept = shares if len(shares) <= room else shares[: room - 1]
    hidden = len(shares) - len(kept)
    if result.output.ndim == 2:
        kept = sorted(kept)  # by class: rows that swap places from frame to frame are unreadable
    rows = [(_share_text(i, share, labels), _bgr(colours, i)) for i, share in kept]
    if hidden:
        rows.append((f"+{hidden} more", GREY))
    return rows


def _blend(
    cv2: ModuleType, image: Image, mask: NDArray[np.uint8], colours: Image, opacity: float
) -> Image:
    coloured = cv2.applyColorMap(np.ascontiguousarray(mask), colours)
    blended: Image = cv2.addWeighted(image, 1.0 - opacity, coloured, opacity, 0.0)
    unseen = cv2.compare(mask, UNSEEN, cv2.CMP_EQ)
    if cv2.countNonZero(unseen):  # JetPack 5 has OpenCV 4.5, without hasNonZero
        cv2.copyTo(image, unseen, blended)
    return blended


@lru_cache(maxsize=8)
def _colours(palette: tuple[tuple[int, int, int], ...]) -> Image:
    """(256, 1, 3) BGR, the form that applyColorMap looks up."""
    table = np.zeros((256, 1, 3), np.uint8)
    for index in range(256):
        red, green, blue = palette[index] if index < len(palette) else colour_of(index)
        table[index, 0] = (blue, green, red)
    table.flags.writeable = False
    return table


def class_colour(index: int, palette: Palette) -> tuple[int, int, int]:
    """The RGB colour in which a class is drawn."""
    blue, green, red = _bgr(_colours(tuple((int(r), int(g), int(b)) for r, g, b in palette)), index)
    return red, green, blue


def _bgr(colours: Image, index: int) -> tuple[int, int, int]:
    blue, green, red = colours[min(index, UNSEEN), 0].tolist()
    return blue, green, red


def _share_text(index: int, share: float, labels: Sequence[str]) -> str:
    percent = f"{100 * share:.0f}%" if share >= 0.01 else "<1%"
    return f"{label_of(index, labels)} {percent}"


class _Pen:
    """Text on one canvas, in a size that suits its width."""

    def __init__(self, cv2: ModuleType, canvas: Image) -> None:
        self.cv2 = cv2
        self.canvas = canvas
        self.height, self.width = canvas.shape[:2]
        scale = min(max(self.width / 900, 0.38), 1.6)
        self.line = round(30 * scale) + 4  # pixels from one line of text to the next
        self.room = max(1, int(LEGEND_HEIGHT * self.height) // self.line)

    def letter(self, text: str) -> Image:
        """One line of text, as ``write`` takes it."""
        return letter(self.cv2, text, self.line)

    def write(self, line: Image, x: int, top: int) -> None:
        """Put a line in white with its upper left corner at (x, top)."""
        box = self.canvas[max(top, 0) : max(top + len(line), 0), x : x + line.shape[1]]
        cover = line[max(-top, 0) :][: box.shape[0], : box.shape[1], None]
        if box.size:
            cover = self.cv2.merge([cover] * 3)
            box += self.cv2.multiply(255 - box, cover, scale=1 / 255)

    def shade(self, x: int, y: int, width: int, height: int) -> None:
        """Darken a box so that text on it can be read."""
        box = self.canvas[max(y, 0) : y + height, max(x, 0) : x + width]
        if box.size:
            box[:] = self.cv2.convertScaleAbs(box, alpha=SHADE)

    def fill(self, x: int, y: int, width: int, height: int, colour: tuple[int, int, int]) -> None:
        self.canvas[max(y, 0) : max(y + height, 0), max(x, 0) : max(x + width, 0)] = colour


def _draw_gauge(pen: _Pen, result: Result) -> None:
    """A strip on top with the numbers, and under them a bar that fills as the residual falls."""
    colour = BLUE if result.converged else ORANGE
    bar = max(3, pen.line // 6)
    pen.shade(0, 0, pen.width, pen.line + bar)
    start, spent = "warm" if result.warm else "cold", f"{result.busy_ms:.0f} ms"
    said = [f"{result.iterations} it", f"res {result.residual:.1e}", start, spent]
    text = pen.letter("  ".join(said))
    while said[1:] and text.shape[1] + pen.line // 3 > pen.width:  # what matters least goes first
        said.pop()
        text = pen.letter("  ".join(said))
    pen.write(text, pen.line // 3, 0)
    pen.fill(0, pen.line, round(pen.width * _progress(result.residual)), bar, colour)


def _progress(residual: float) -> float:
    """0 at a residual of 1 or worse, 1 at the best that is told apart; logarithmic between."""
    if not math.isfinite(residual):
        return 0.0
    if residual <= 0:
        return 1.0
    return min(max(math.log10(residual) / BEST_RESIDUAL_LOG10, 0.0), 1.0)


def _draw_rows(pen: _Pen, rows: list[Row]) -> None:
    """A legend at the lower left: a swatch and a text per row."""
    if not rows:
        return
    pad = pen.line // 3
    lines = [pen.letter(text) for text, _ in rows]
    width = max(line.shape[1] for line in lines) + pen.line + 2 * pad
    top = pen.height - len(rows) * pen.line - pad
    pen.shade(0, top - pad, width, pen.height - top + pad)
    swatch = round(0.6 * pen.line)
    for number, (line, (_, colour)) in enumerate(zip(lines, rows, strict=True)):
        y = top + number * pen.line
        pen.fill(pad, y + (pen.line - swatch) // 2, swatch, swatch, colour)
        pen.write(line, pad + pen.line, y)
