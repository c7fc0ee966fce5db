"""Images to verify on: the user's own, or generated ones that anyone may have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_mdeq.datasets.images import IMAGE_SUFFIXES, decode, read_whole
from edge_mdeq.errors import DataError, require
from edge_mdeq.fitting import fit_image, plan_fit

__all__ = ["GENERATED", "verification_images"]

GENERATED = "test://"
SPLITS = ("train", "val", "test", "valid")  # how the parts of a dataset's folder begin


def verification_images(
    folder: Path | None, count: int, height: int, width: int
) -> tuple[NDArray[np.uint8], str]:
    """``count`` RGB images (count, height, width, 3) uint8, and a word on where they come from.

    From a folder, evenly spaced through its sorted files (or those of its folders, if it has a
    folder per class or city); without one, generated scenes.

    Raises:
        DataError: the folder is missing or has no images, or one cannot be decoded whole.
    """
    if folder is None:
        return np.stack([scene(seed, height, width) for seed in range(count)]), GENERATED
    paths = find_images(folder)
    chosen = [paths[i] for i in np.linspace(0, len(paths) - 1, min(count, len(paths))).astype(int)]
    return np.stack([read_rgb(path, height, width) for path in chosen]), folder.absolute().name


def find_images(folder: Path) -> list[Path]:
    """The images of a folder; if it has none itself, those of the folders in it.

    Raises:
        DataError: no folder, or no images; if it is a dataset's, with the parts to choose from.
    """
    if not folder.is_dir():
        reason = "is a file" if folder.is_file() else "does not exist"
        raise DataError(f"{folder} {reason}; give a folder of images")
    own = images_in(folder)
    if own:
        return own
    folders = sorted(p for p in folder.iterdir() if p.is_dir())
    parts = [p for p in folders if p.name.startswith(SPLITS)]
    if len(parts) > 1:  # and masks may lie in others of them
        names = " or ".join(str(p) for p in parts)
        raise DataError(f"{folder} holds no images itself; name a part of it: {names}")
    found = [image for p in folders for image in images_in(p)]
    if not found:
        raise DataError(
            f"{folder} holds no images ({', '.join(IMAGE_SUFFIXES)}), nor do the folders in it"
        )
    return found


def images_in(folder: Path) -> list[Path]:
    """What looks like an image by its name, sorted."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)


def read_rgb(path: Path, height: int, width: int) -> NDArray[np.uint8]:
    """Decode and stretch one image, as the runtime would."""
    cv2 = require("cv2", "export", "reading images")
    image = decode(path, read_whole(path), cv2.IMREAD_COLOR)
    rgb: NDArray[np.uint8] = np.ascontiguousarray(image[..., ::-1])
    fit = plan_fit((rgb.shape[0], rgb.shape[1]), (height, width))
    return np.asarray(fit_image(rgb, fit), dtype=np.uint8)


def scene(seed: int, height: int, width: int) -> NDArray[np.uint8]:
    """Sky, ground, boxes and noise: edges, flat areas and texture, the same for the same seed."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    horizon = int(height * rng.uniform(0.3, 0.6))
    sky, ground = rng.uniform(100, 255, 3), rng.uniform(30, 150, 3)
    image = np.where((y < horizon)[..., None], sky, ground)
    image = image * (0.8 + 0.4 * (y / height))[..., None]
    for _ in range(12):
        h, w = rng.integers(height // 12, height // 2), rng.integers(width // 16, width // 3)
        top = max(0, horizon + int(rng.integers(-h, height // 4)))
        left = int(rng.integers(-w // 2, width - w // 2))
        box = (y >= top) & (y < top + h) & (x >= left) & (x < left + w)
        shade = rng.uniform(0, 255, 3) * (0.7 + 0.3 * np.sin(x / rng.uniform(2, 20)))[..., None]
        image = np.where(box[..., None], shade, image)
    image = image + rng.normal(0, 8, image.shape)
    return np.asarray(np.clip(image, 0, 255), dtype=np.uint8)
