"""Reading images: decoded to RGB, or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_mdeq.errors import DataError, require

__all__ = ["IMAGE_SUFFIXES", "decode", "list_images", "png_colour_type", "read_image", "read_whole"]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")
PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_MODES: dict[int | None, str] = {3: "a palette", 4: "an alpha channel", 6: "an alpha channel"}


def list_images(folder: Path) -> list[Path]:
    """The images of a folder, sorted by name.

    Raises:
        DataError: there are none.
    """
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise DataError(
            f"{folder} holds no images ({', '.join(IMAGE_SUFFIXES)}); add some or remove the folder"
        )
    return paths


def read_image(path: Path, grey: bool = False) -> NDArray[np.uint8]:
    """Decode a photograph to (H, W, 3) uint8 RGB, upright as its EXIF data says.

    Raises:
        DataError: it cannot be decoded whole, has more than 8 bits a channel, a palette or an alpha
            channel, or is grey and ``grey`` does not allow that.
    """
    cv2 = require("cv2", "camera", "reading images")
    raw = read_whole(path)
    mode = PNG_MODES.get(png_colour_type(raw))
    if mode is not None:  # OpenCV would resolve the one and drop the other without a word
        raise DataError(f"{path} has {mode}; expected an RGB photograph, convert it")
    image = decode(path, raw, cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH)
    if image.dtype != np.uint8:
        raise DataError(f"{path} has {image.dtype} pixels; expected 8 bits a channel, convert it")
    if image.ndim == 2:
        if not grey:
            raise DataError(
                f"{path} is grey; expected an RGB photograph. Convert it, or set data.grey in the "
                "recipe (val: --grey) if grey ones belong to the data"
            )
        image = np.repeat(image[..., None], 3, axis=2)
    return np.ascontiguousarray(image[..., ::-1])


def read_whole(path: Path) -> bytes:
    """The bytes of an image file.

    Raises:
        DataError: unreadable, or cut short: decoders make a grey rest of what a JPEG file lacks.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    jpeg, png = raw.startswith(b"\xff\xd8"), raw.startswith(PNG_START)
    # The last scan of a JPEG file is followed by an end marker, as a thumbnail's before it may be.
    if (jpeg and raw.rfind(b"\xff\xd9") < raw.rfind(b"\xff\xda")) or (png and b"IEND" not in raw):
        raise DataError(f"{path} is truncated after {len(raw)} bytes; copy it again or remove it")
    return raw


def decode(path: Path, raw: bytes, flags: int) -> NDArray[Any]:
    """What OpenCV makes of a file's bytes, (H, W) or (H, W, channels) with blue first.

    Raises:
        DataError: nothing.
    """
    cv2 = require("cv2", "camera", "reading images")
    try:
        image = cv2.imdecode(np.frombuffer(raw, dtype=np.uint8), flags) if raw else None
    except cv2.error:  # sizes beyond reason
        image = None
    if image is None:
        raise DataError(f"{path} cannot be decoded as an image; replace or remove it")
    return np.asarray(image)


def png_colour_type(raw: bytes) -> int | None:
    """0 grey, 2 RGB, 3 palette, 4 and 6 the first two with alpha; None if this is no PNG file."""
    return raw[25] if raw.startswith(PNG_START) and len(raw) > 25 else None
