"""Segmentation data in the CamVid layout: ``DIR/train`` and ``DIR/val`` hold images, and
``DIR/trainannot`` and ``DIR/valannot`` an index mask (PNG) of the same stem for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from edge_mdeq.errors import DataError, require
from edge_mdeq.fitting import fit_image, plan_fit, resize

__all__ = ["IGNORED", "SegmentationFolder", "class_frequencies"]

IGNORED = 255  # what every ignored mask value becomes

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")


class SegmentationFolder(Dataset[tuple[Tensor, Tensor]]):
    """One split; decoded once and kept as uint8, so that epochs cost no decoding.

    Items are the image (3, H, W) uint8 RGB and the mask (H, W) uint8 with ``IGNORED`` for void.

    Args:
        root: the dataset folder.
        split: "train" or "val".
        classes: valid mask values are 0 to classes - 1.
        ignore: mask values to ignore.
        size: (height, width) to fit image and mask to, as the device does; None keeps the file's.

    Raises:
        DataError: a folder is missing or empty, a file unreadable, a mask missing, of another
            size than its image, not an index mask, or with values out of range.
    """

    def __init__(
        self,
        root: Path,
        split: str,
        classes: int,
        ignore: Sequence[int],
        size: tuple[int, int] | None = None,
    ) -> None:
        folder, masks = root / split, root / f"{split}annot"
        for needed in (folder, masks):
            if not needed.is_dir():
                raise DataError(
                    f"{needed} is not a folder; expected {root} to hold train/, trainannot/, "
                    "val/ and valannot/ (images, and index masks of the same name as PNG)"
                )
        self.paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        if not self.paths:
            raise DataError(f"{folder} holds no images ({', '.join(IMAGE_SUFFIXES)})")
        self.items: list[tuple[NDArray[np.uint8], NDArray[np.uint8]]] = []
        for path in self.paths:
            image, mask = read_pair(path, masks / f"{path.stem}.png", classes, ignore)
            if size is not None:
                image = fit_image(image, plan_fit(image.shape[:2], size))
                mask = np.asarray(resize(mask, *size, "nearest"), dtype=np.uint8)
            self.items.append((image, mask))

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, mask = self.items[index]
        return torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(mask)


def read_pair(
    image_path: Path, mask_path: Path, classes: int, ignore: Sequence[int]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Decode and check one image (H, W, 3) RGB and its mask (H, W)."""
    cv2 = require("cv2", "train", "reading images")
    image = cv2.imread(str(image_path), cv2.IMREAD_COLOR)
    if image is None:
        raise DataError(f"{image_path} cannot be decoded as an image")
    if not mask_path.is_file():
        raise DataError(f"{image_path} has no mask: {mask_path} is missing")
    mask = cv2.imread(str(mask_path), cv2.IMREAD_UNCHANGED)
    if mask is None:
        raise DataError(f"{mask_path} cannot be decoded as an image")
    if mask.ndim != 2 or mask.dtype != np.uint8:
        raise DataError(
            f"{mask_path} has shape {mask.shape} and type {mask.dtype}; expected an 8-bit index "
            "mask with one channel"
        )
    if mask.shape != image.shape[:2]:
        raise DataError(f"{mask_path} is {mask.shape}, its image is {image.shape[:2]}")
    mask = np.where(np.isin(mask, [*ignore, IGNORED]), np.uint8(IGNORED), mask)
    strange = np.unique(mask[(mask >= classes) & (mask != IGNORED)])
    if strange.size:
        raise DataError(
            f"{mask_path} holds labels {strange.tolist()}, out of range for {classes} classes; "
            "list them under data.ignore in the recipe if they mean 'void'"
        )
    return np.ascontiguousarray(image[..., ::-1]), mask


def class_frequencies(data: SegmentationFolder, classes: int) -> NDArray[np.float64]:
    """Share of the labelled pixels that each class has, (classes,).

    Raises:
        DataError: a class never occurs.
    """
    counts = np.zeros(256, dtype=np.int64)
    for _, mask in data.items:
        counts += np.bincount(mask.ravel(), minlength=256)
    present = counts[:classes]
    if not present.all():
        missing = np.flatnonzero(present == 0).tolist()
        raise DataError(f"classes {missing} never occur in {data.paths[0].parent}")
    return np.asarray(present / present.sum(), dtype=np.float64)
