"""Draws an answer over its frame: mask and legend or best classes, and how the solve went.

No loop here runs over pixels: a 1080p frame costs a few milliseconds.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from functools import lru_cache
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from edge_mdeq.errors import require
from mdeq_runtime.answers import UNSEEN, class_shares, label_of, top_scores
from mdeq_runtime.glyphs import letter
from mdeq_runtime.results import Result

__all__ = ["Image", "Palette", "draw"]

Image = NDArray[np.uint8]
Palette = Sequence[tuple[int, int, int]]

GREY, GREEN, AMBER = (150, 150, 150), (90, 200, 90), (40, 160, 250)  # BGR
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
) -> Image:
    """A new image (h, w, 3) BGR with ``result`` drawn over ``image``, which stays as it is.

    Args:
        image: the frame (h, w, 3) uint8 BGR.
        result: its answer, a mask (h, w) or scores (classes,).
        labels: a name per class; numbers stand in for missing ones.
        palette: an RGB colour per class; made up where it is missing.
        opacity: of the mask's colours, 0...1.
    """
    cv2 = require("cv2", "camera", "drawing results")
    colours = _colours(tuple((int(r), int(g), int(b)) for r, g, b in palette))
    if result.output.ndim == 2:
        canvas = _blend(cv2, image, result.output, colours, opacity)
        shares = [(i, share) for i, share in class_shares(result.output) if i != UNSEEN]
    else:
        canvas = image.copy()
        shares = top_scores(result.output, TOP)
    pen = _Pen(cv2, canvas)
    kept = shares if len(shares) <= pen.room else shares[: pen.room - 1]
    hidden = len(shares) - len(kept)
    if result.output.ndim == 2:
        kept = sorted(kept)  # by class: rows that swap places from frame to frame are unreadable
    rows = [(_share_text(i, share, labels), _bgr(colours, i)) for i, share in kept]
    if hidden:
        rows.append((f"+{hidden} more", GREY))
    _draw_rows(pen, rows)
    _draw_gauge(pen, result)
    return canvas


def _blend(
    cv2: ModuleType, image: Image, mask: NDArray[np.uint8], colours: Image, opacity: float
) -> Image:
    coloured = cv2.applyColorMap(np.ascontiguousarray(mask), colours)
    blended: Image = cv2.addWeighted(image, 1.0 - opacity, coloured, opacity, 0.0)
    unseen = cv2.compare(mask, UNSEEN, cv2.CMP_EQ)
    if cv2.hasNonZero(unseen):
        cv2.copyTo(image, unseen, blended)
    return blended


@lru_cache(maxsize=8)
def _colours(palette: tuple[tuple[int, int, int], ...]) -> Image:
    """(256, 1, 3) BGR, the form that applyColorMap looks up."""
    table = np.zeros((256, 1, 3), np.uint8)
    for index in range(256):
        if index < len(palette):
            red, green, blue = palette[index]
        else:  # steps of the golden ratio keep neighbouring indices apart
            hue = colorsys.hsv_to_rgb(index * 0.618034 % 1.0, 0.65, 0.95)
            red, green, blue = (round(255 * part) for part in hue)
        table[index, 0] = (blue, green, red)
    table.flags.writeable = False
    return table


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
    colour = GREEN if result.converged else AMBER
    bar = max(3, pen.line // 6)
    pen.shade(0, 0, pen.width, pen.line + bar)
    milliseconds = sum(ms for stage, ms in result.times.items() if stage != "read")
    start = "warm" if result.warm else "cold"
    text = f"{result.iterations} it  res {result.residual:.1e}  {start}  {milliseconds:.0f} ms"
    pen.write(pen.letter(text), pen.line // 3, 0)
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
