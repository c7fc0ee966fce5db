"""Images with one label each: a folder per class (ImageNet's layout), or CIFAR-10's binary files.

- Folder: ``DIR/train/CLASS/*.jpg`` and ``DIR/val/CLASS/*.jpg`` (or ``DIR/validation``).
- CIFAR-10: ``DIR`` or ``DIR/cifar-10-batches-bin`` holds ``data_batch_1.bin`` to
  ``data_batch_5.bin``, ``test_batch.bin`` and ``batches.meta.txt``. The "python version" is a set
  of pickles, which are never loaded.
"""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_mdeq.datasets.images import list_images, read_image
from edge_mdeq.errors import DataError
from edge_mdeq.fitting import FitMode, fit_image, plan_fit

__all__ = ["Cifar10", "ImageFolder", "LabelledImages", "channels_first"]

Image = NDArray[np.uint8]

CIFAR_FILES = {
    "train": tuple(f"data_batch_{k}.bin" for k in range(1, 6)),
    "val": ("test_batch.bin",),
    "test": ("test_batch.bin",),
}
CIFAR_RECORD = 1 + 3 * 32 * 32  # bytes: label, then red, green and blue planes
# Photographs are kept at most this much larger than the input: more detail never reaches it.
CACHE_FACTOR = 2


class LabelledImages(ABC):
    """Items are the image (3, H, W) uint8 RGB at the input's size, its centre, and its class."""

    labels: tuple[str, ...]
    targets: list[int]

    def __init__(self, size: tuple[int, int], fit: FitMode, centre: float) -> None:
        self.size, self.fit, self.centre = size, fit, centre

    @abstractmethod
    def read(self, index: int) -> Image:
        """The whole image (h, w, 3)."""

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Image, int]:
        image = central(self.read(index), self.size, self.fit, self.centre)
        return channels_first(image), self.targets[index]

    def frequencies(self) -> NDArray[np.float64]:
        """Share of the images that each class has, (classes,)."""
        counts = np.bincount(self.targets, minlength=len(self.labels))
        return np.asarray(counts / counts.sum(), dtype=np.float64)


class ImageFolder(LabelledImages):
    """A folder per class.

    Args:
        root: the dataset folder.
        split: "train" or "val".
        classes: how many there must be.
        labels: the folders' names in the order of the indices; empty for their sorted names.
        size: (height, width) of the items.
        fit, centre: how they meet it; see ``DataConfig``.
        grey: whether grey images are taken for colour ones.
        cache: decode (and check) everything now and keep it.

    Raises:
        DataError: a folder is missing, a class has no folder or no images, a folder is no class, or
            an image is unreadable.
    """

    def __init__(
        self,
        root: Path,
        split: str,
        classes: int,
        labels: Sequence[str],
        size: tuple[int, int],
        fit: FitMode = "stretch",
        centre: float = 1.0,
        grey: bool = False,
        cache: bool = True,
    ) -> None:
        super().__init__(size, fit, centre)
        folder = split_folder(root, split)
        found = sorted(p.name for p in folder.iterdir() if p.is_dir())
        self.labels = tuple(labels) or tuple(found)
        if len(self.labels) != classes:
            raise DataError(
                f"{folder} holds {len(found)} class folders, the model has {classes} classes; set "
                "model.classes to what the data has, or choose data that fits the model"
            )
        missing = [name for name in self.labels if name not in found]
        foreign = [name for name in found if name not in self.labels]
        if missing or foreign:
            raise DataError(
                f"{folder} does not match the classes: without a folder: {missing or 'none'}, "
                f"folders that are no class: {foreign or 'none'}; every split needs a folder of "
                "each class"
            )
        self.grey = grey
        self.paths: list[Path] = []
        self.targets = []
        for target, name in enumerate(self.labels):
            paths = list_images(folder / name)
            self.paths += paths
            self.targets += [target] * len(paths)
        self.images = [self.decode(index) for index in range(len(self.paths))] if cache else None

    def read(self, index: int) -> Image:
        return self.decode(index) if self.images is None else self.images[index]

    def decode(self, index: int) -> Image:
        """Decode one image, and shrink it where it holds far more detail than the input takes."""
        image = read_image(self.paths[index], self.grey)
        height, width = image.shape[:2]
        shrink = CACHE_FACTOR * max(self.size[0] / height, self.size[1] / width)
        if shrink >= 1:
            return image
        small = (math.ceil(height * shrink), math.ceil(width * shrink))
        return fit_image(image, plan_fit((height, width), small))


class Cifar10(LabelledImages):
    """CIFAR-10 from its binary files, all in memory.

    Raises:
        DataError: no such split, or a file is missing or has another length or labels than it
            should.
    """

    def __init__(
        self,
        root: Path,
        split: str,
        size: tuple[int, int],
        fit: FitMode = "stretch",
        centre: float = 1.0,
    ) -> None:
        super().__init__(size, fit, centre)
        folder = root / "cifar-10-batches-bin"
        folder = folder if os.path.isdir(folder) else root
        if split not in CIFAR_FILES:
            raise DataError(f"CIFAR-10 has no split {split!r}, only {', '.join(CIFAR_FILES)}")
        records = np.concatenate([read_cifar(folder / name) for name in CIFAR_FILES[split]])
        meta = folder / "batches.meta.txt"
        if not meta.is_file():
            raise DataError(f"{meta} is missing; it names the classes, and comes with the data")
        self.labels = tuple(meta.read_text().split())
        self.targets = records[:, 0].tolist()
        if max(self.targets) >= len(self.labels):
            raise DataError(
                f"{folder} holds label {max(self.targets)}, out of range for the "
                f"{len(self.labels)} classes that {meta.name} names; download the data again"
            )
        planes = records[:, 1:].reshape(-1, 3, 32, 32)
        self.images = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))

    def read(self, index: int) -> Image:
        return np.asarray(self.images[index])


def read_cifar(path: Path) -> NDArray[np.uint8]:
    """The records of one file, (images, 1 + 3 * 32 * 32): label, red, green and blue planes."""
    try:
        raw = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise DataError(
            f"cannot read {path} ({error.strerror}); expected CIFAR-10's binary files (its python "
            "version is a set of pickles, which are never loaded)"
        ) from error
    if raw.size == 0 or raw.size % CIFAR_RECORD:
        raise DataError(
            f"{path} has {raw.size} bytes, not a multiple of {CIFAR_RECORD}: truncated, download "
            "it again"
        )
    return raw.reshape(-1, CIFAR_RECORD)


def split_folder(root: Path, split: str) -> Path:
    """The folder of a split; ``validation`` is taken for ``val``."""
    names = ("val", "validation") if split == "val" else (split,)
    for name in names:
        if os.path.isdir(root / name):  # asked so, a name that is too long is none
            return root / name
    raise DataError(
        f"{root / split} is not a folder; expected {root} to hold train/CLASS/ and val/CLASS/"
    )


def central(image: Image, size: tuple[int, int], fit: FitMode, share: float) -> Image:
    """What validation and the device see: fitted to ``size``, or the central ``share`` of that."""
    large = (round(size[0] / share), round(size[1] / share))
    whole = fit_image(image, plan_fit((image.shape[0], image.shape[1]), large, fit))
    top, left = (large[0] - size[0]) // 2, (large[1] - size[1]) // 2
    return whole[top : top + size[0], left : left + size[1]]


def channels_first(image: Image) -> Image:
    """(h, w, 3) as (3, h, w), as training stacks them to batches; nothing is moved in memory."""
    return np.ascontiguousarray(image).transpose(2, 0, 1)
