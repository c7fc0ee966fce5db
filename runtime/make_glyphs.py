"""Renders mdeq_runtime/glyphs.png, the sheet of glyphs that overlays are lettered with.

    python runtime/make_glyphs.py Roboto-Medium.ttf

Needs Pillow and the font (Roboto by Google, Apache-2.0; fonts-roboto-unhinted in Debian). The sheet
is part of the repository, so only who changes it runs this.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mdeq_runtime.glyphs import CHARACTERS, SHEET

LINE = 64  # pixels from one line of text to the next; the largest overlay uses 52
BASELINE = 48
EM = 48


def main() -> None:
    """One row of cells as wide as each glyph's advance; pixels above them mark their starts."""
    font = ImageFont.truetype(sys.argv[1], EM)
    widths = [round(font.getlength(character)) for character in CHARACTERS]
    starts = np.cumsum([0, *widths])
    sheet = Image.new("L", (int(starts[-1]), 1 + LINE))
    for character, start, width in zip(CHARACTERS, starts, widths, strict=False):
        cell = Image.new("L", (width, LINE))
        ImageDraw.Draw(cell).text((0, BASELINE), character, fill=255, font=font, anchor="ls")
        sheet.paste(cell, (int(start), 1))
        sheet.putpixel((int(start), 0), 255)
    folder = Path(__file__).parent / "mdeq_runtime"
    sheet.save(folder / SHEET, optimize=True)


if __name__ == "__main__":
    main()
