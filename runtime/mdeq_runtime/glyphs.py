"""Text as pixels, from a sheet of glyphs that was rendered once.

OpenCV 5 unpacks a whole font and its engine at the first ``putText``: 10 MB that a device would
hold for the sake of a legend. The sheet (Roboto Medium, Apache-2.0; ``runtime/make_glyphs.py``)
takes a third of a megabyte.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

__all__ = ["CHARACTERS", "SHEET", "letter"]

CHARACTERS = "".join(map(chr, [*range(0x20, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]))
SHEET = "glyphs.png"


def letter(cv2: ModuleType, text: str, height: int) -> NDArray[np.uint8]:
    """Coverage (height, width), 0...255, of one line of text; ``height`` is the whole line's."""
    glyphs = _glyphs(cv2)
    cells = [glyphs[character] for character in text if character in glyphs]
    if not text or len(cells) < len(text):
        return _letter_by_engine(cv2, text, height)
    line = np.hstack(cells)
    width = max(1, round(line.shape[1] * height / line.shape[0]))
    return np.asarray(cv2.resize(line, (width, height), interpolation=cv2.INTER_AREA))


def _letter_by_engine(cv2: ModuleType, text: str, height: int) -> NDArray[np.uint8]:
    """The same with OpenCV's own font: version 5 knows more alphabets, 4 writes question marks."""
    font, scale, weight = cv2.FONT_HERSHEY_SIMPLEX, (height - 4) / 30, 2 if height > 31 else 1
    width = cv2.getTextSize(text, font, scale, weight)[0][0]
    cover = np.zeros((height, max(1, width)), np.uint8)
    place = (0, round(0.75 * height))
    cv2.putText(cover, text, place, font, scale, (255,), weight, cv2.LINE_AA)
    return cover


@lru_cache(maxsize=1)
def _glyphs(cv2: ModuleType) -> dict[str, NDArray[np.uint8]]:
    """A cell (64, advance) per character; pixels in the sheet's first row mark their starts."""
    data = np.fromfile(Path(__file__).with_name(SHEET), np.uint8)
    sheet = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE)
    starts = np.flatnonzero(sheet[0])
    return dict(zip(CHARACTERS, np.split(sheet[1:], starts[1:], axis=1), strict=True))
