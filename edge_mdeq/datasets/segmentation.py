"""Images with index masks, in the layouts of CamVid and of Cityscapes.

- CamVid: ``DIR/train`` and ``DIR/val`` hold images, ``DIR/trainannot`` and ``DIR/valannot`` an
  index mask (PNG) of the same stem for each.
- Cityscapes: ``DIR/leftImg8bit/train/CITY/NAME_leftImg8bit.png`` with
  ``DIR/gtFine/train/CITY/NAME_gtFine_labelTrainIds.png``, as its own scripts prepare it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_mdeq.datasets.images import (
    decode,
    list_images,
    png_colour_type,
    read_image,
    read_whole,
)
from edge_mdeq.errors import DataError, require
from edge_mdeq.fitting import FitMode, fit_image, plan_fit, resize

__all__ = ["IGNORED", "SegmentationFolder", "class_frequencies"]

IGNORED = 255  # what every ignored mask value becomes

Pair = tuple[NDArray[np.uint8], NDArray[np.uint8]]


class SegmentationFolder:
    """One split. Items are the image (3, H, W) uint8 RGB and the mask (H, W) uint8 with
    ``IGNORED`` for void.

    Args:
        root: the dataset folder.
        split: "train" or "val".
        classes: valid mask values are 0 to classes - 1.
        ignore: mask values to ignore.
        size: (height, width) to fit image and mask to, as the device does; None keeps the files',
            which must then be one: training stacks them to batches.
        layout: "camvid" or "cityscapes".
        fit: how they meet ``size``.
        grey: whether grey images are taken for colour ones.
        cache: decode (and check) everything now and keep it; else each item when it is asked for.

    Raises:
        DataError: a folder is missing or empty, a file unreadable, a mask missing, of another
            size than its image, not an index mask, or with values out of range; images of several
            sizes where ``size`` is None.
    """

    def __init__(
        self,
        root: Path,
        split: str,
        classes: int,
        ignore: Sequence[int],
        size: tuple[int, int] | None = None,
        layout: str = "camvid",
        fit: FitMode = "stretch",
        grey: bool = False,
        cache: bool = True,
    ) -> None:
        find = find_cityscapes if layout == "cityscapes" else find_camvid
        self.pairs = find(root, split)
        for image, mask in self.pairs:
            if not mask.is_file():
                raise DataError(
                    f"{image} has no mask: {mask} is missing; add it, or remove the image"
                )
        self.epoch = 0  # training sets it; nothing is drawn here, augmentation is the batch's
        self.classes, self.ignore = classes, tuple(ignore)
        self.size, self.fit, self.grey = size, fit, grey
        self.first: tuple[str, tuple[int, ...]] | None = None  # name and shape of one image
        self.items: list[Pair] | None = None
        if cache:
            self.items = [self.read(index) for index in range(len(self.pairs))]

    @property
    def paths(self) -> list[Path]:
        """The images."""
        return [image for image, _ in self.pairs]

    def read(self, index: int) -> Pair:
        """Decode, check and fit one image (H, W, 3) and its mask (H, W)."""
        path, mask_path = self.pairs[index]
        image = read_image(path, self.grey)
        mask = read_mask(mask_path, image.shape[:2], self.classes, self.ignore)
        if self.size is not None:
            plan = plan_fit((image.shape[0], image.shape[1]), self.size, self.fit)
            return fit_image(image, plan), fit_mask(mask, self.size, self.fit)
        name, shape = self.first = self.first or (path.name, image.shape)
        if image.shape != shape:
            raise DataError(
                f"{path} is {image.shape[:2]}, {name} is {shape[:2]}; training needs images of one "
                "size, resize them and their masks"
            )
        return image, mask

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Pair:
        image, mask = self.read(index) if self.items is None else self.items[index]
        return image.transpose(2, 0, 1), mask


def find_camvid(root: Path, split: str) -> list[tuple[Path, Path]]:
    """Image and mask paths of a split in CamVid's layout."""
    folder, masks = root / split, root / f"{split}annot"
    for needed in (folder, masks):
        if not os.path.isdir(needed):  # asked so, a name that is too long is none
            raise DataError(
                f"{needed} is not a folder; expected {root} to hold train/, trainannot/, "
                "val/ and valannot/ (images, and index masks of the same name as PNG)"
            )
    return [(path, masks / f"{path.stem}.png") for path in list_images(folder)]


def find_cityscapes(root: Path, split: str) -> list[tuple[Path, Path]]:
    """Image and mask paths of a split in Cityscapes' layout."""
    folder, masks = root / "leftImg8bit" / split, root / "gtFine" / split
    for needed in (folder, masks):
        if not os.path.isdir(needed):  # asked so, a name that is too long is none
            raise DataError(
                f"{needed} is not a folder; expected {root} to hold leftImg8bit/{split}/CITY/ and "
                f"gtFine/{split}/CITY/"
            )
    pairs = []
    for city in sorted(p for p in folder.iterdir() if p.is_dir()):
        for path in list_images(city):
            stem = path.stem.removesuffix("_leftImg8bit")
            pairs.append((path, masks / city.name / f"{stem}_gtFine_labelTrainIds.png"))
    if not pairs:
        raise DataError(f"{folder} holds no city folders with images")
    return pairs


def read_mask(
    path: Path, size: tuple[int, ...], classes: int, ignore: Sequence[int]
) -> NDArray[np.uint8]:
    """Decode and check the index mask (H, W) of an image of ``size``."""
    cv2 = require("cv2", "camera", "reading images")
    raw = read_whole(path)
    if png_colour_type(raw) == 3:
        raise DataError(
            f"{path} has a palette; expected an 8-bit index mask, save its indices as grey values"
        )
    mask = decode(path, raw, cv2.IMREAD_UNCHANGED)
    if mask.ndim != 2 or mask.dtype != np.uint8:
        raise DataError(
            f"{path} has shape {mask.shape} and type {mask.dtype}; expected an 8-bit index "
            "mask with one channel, convert it"
        )
    if mask.shape != size:
        raise DataError(
            f"{path} is {mask.shape}, its image is {size}; make both of one size (masks without "
            "interpolation)"
        )
    mask = np.where(np.isin(mask, [*ignore, IGNORED]), np.uint8(IGNORED), mask)
    strange = np.unique(mask[(mask >= classes) & (mask != IGNORED)])
    if strange.size:
        raise DataError(
            f"{path} holds labels {strange.tolist()}, out of range for {classes} classes; "
            "list them under data.ignore in the recipe (tune and val: --ignore) if they mean void"
        )
    return np.asarray(mask)


def fit_mask(mask: NDArray[np.uint8], size: tuple[int, int], mode: FitMode) -> NDArray[np.uint8]:
    """The mask that belongs to an image fitted with ``mode``; padding is ignored."""
    plan = plan_fit((mask.shape[0], mask.shape[1]), size, mode)
    top, left, height, width = plan.source
    t_top, t_left, t_height, t_width = plan.target
    part = resize(mask[top : top + height, left : left + width], t_height, t_width, "nearest")
    whole = np.full(size, IGNORED, dtype=np.uint8)
    whole[t_top : t_top + t_height, t_left : t_left + t_width] = part
    return whole


def class_frequencies(data: SegmentationFolder, classes: int) -> NDArray[np.float64]:
    """Share of the labelled pixels that each class has, (classes,).

    Raises:
        DataError: a class never occurs.
    """
    counts = np.zeros(256, dtype=np.int64)
    for index in range(len(data)):
        counts += np.bincount(data[index][1].ravel(), minlength=256)
    present = counts[:classes]
    if not present.all():
        missing = np.flatnonzero(present == 0).tolist()
        raise DataError(f"classes {missing} never occur in {data.paths[0].parent}")
    return np.asarray(present / present.sum(), dtype=np.float64)
