"""Colours for classes that have none, told apart also by eyes without one kind of cones.

The first seven are of Okabe and Ito (2008), the others were found by ``runtime/make_palette.py``:
of the 24 no two are nearer than 14 in CIELAB, whichever kind of cones is missing. Where there are
more classes, hues go round; no palette tells so many apart, so the legend's names have to.
"""

from __future__ import annotations

import colorsys

__all__ = ["SAFE", "colour_of"]

SAFE: tuple[tuple[int, int, int], ...] = (  # RGB
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
    (136, 0, 255),
    (119, 51, 17),
    (187, 238, 153),
    (85, 68, 85),
    (0, 255, 221),
    (68, 51, 170),
    (187, 85, 255),
    (170, 170, 85),
    (119, 34, 119),
    (136, 238, 102),
    (68, 102, 68),
    (153, 119, 68),
    (221, 170, 170),
    (238, 204, 255),
    (187, 34, 119),
    (255, 68, 119),
    (187, 34, 170),
)


def colour_of(index: int) -> tuple[int, int, int]:
    """The RGB colour of a class, by its number."""
    if index < len(SAFE):
        return SAFE[index]
    # steps of the golden ratio keep neighbouring numbers apart
    red, green, blue = colorsys.hsv_to_rgb(index * 0.618034 % 1.0, 0.65, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)
