"""Reading images: decoded to RGB, or refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_mdeq.errors import DataError, require

__all__ = ["IMAGE_SUFFIXES", "list_images", "read_image"]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")


def list_images(folder: Path) -> list[Path]:
    """The images of a folder, sorted by name.

    Raises:
        DataError: there are none.
    """
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise DataError(f"{folder} holds no images ({', '.join(IMAGE_SUFFIXES)})")
    return paths


def read_image(path: Path, grey: bool = False) -> NDArray[np.uint8]:
    """Decode a photograph to (H, W, 3) uint8 RGB, upright as its EXIF data says.

    Raises:
        DataError: it cannot be decoded, has more than 8 bits a channel or an alpha channel, or is
            grey and ``grey`` does not allow that.
    """
    cv2 = require("cv2", "train", "reading images")
    image = cv2.imread(str(path), cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH)
    if image is None:
        raise DataError(f"{path} cannot be decoded as an image")
    if image.dtype != np.uint8:
        raise DataError(f"{path} has {image.dtype} pixels; expected 8 bits a channel, convert it")
    if image.ndim == 2:
        if not grey:
            raise DataError(
                f"{path} is grey; expected an RGB photograph. Convert it, or set data.grey in the "
                "recipe if grey ones belong to the data"
            )
        image = np.repeat(image[..., None], 3, axis=2)
    if has_alpha(path):
        raise DataError(f"{path} has an alpha channel; expected RGB, flatten it first")
    return np.ascontiguousarray(image[..., ::-1])


def has_alpha(path: Path) -> bool:
    """Whether a PNG's header says that its pixels carry alpha (OpenCV would drop it silently)."""
    if path.suffix.lower() != ".png":
        return False
    with path.open("rb") as file:
        header = file.read(26)
    return len(header) == 26 and header[25] in (4, 6)  # PNG colour types with alpha
