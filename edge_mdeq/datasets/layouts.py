"""How a dataset folder is laid out and read, and the class that reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edge_mdeq.datasets.classification import Cifar10, ImageFolder, LabelledImages
from edge_mdeq.datasets.segmentation import SegmentationFolder
from edge_mdeq.errors import DataError
from edge_mdeq.fitting import FitMode

__all__ = [
    "LAYOUTS",
    "SEGMENTATION_LAYOUTS",
    "DataConfig",
    "open_classification",
    "open_segmentation",
]

SEGMENTATION_LAYOUTS = ("camvid", "cityscapes")
LAYOUTS = (*SEGMENTATION_LAYOUTS, "folder", "cifar10")


@dataclass(frozen=True)
class DataConfig:
    """How the dataset folder is laid out and read.

    Attributes:
        layout: "camvid" or "cityscapes" for segmentation; "folder" (a folder per class, as ImageNet
            has it) or "cifar10" (the binary version) for classification.
        labels: a name per class, in the order of the indices. An image folder may leave them out:
            its folders' sorted names are taken.
        palette: an RGB colour per class, for drawing masks.
        ignore: mask values that count nowhere.
        fit: how validation images meet the input size, as ``edge-mdeq run --fit`` does it.
        centre: share of the fitted side that validation looks at (0.875 is the published "resize to
            256, crop 224").
        grey: whether grey photographs are taken for colour ones; otherwise they are an error.
        cache: keep decoded images in memory, so that epochs cost no decoding.
        workers: processes that read ahead, 0 for none; only training has any.
    """

    layout: Literal["camvid", "cityscapes", "folder", "cifar10"] = "camvid"
    labels: tuple[str, ...] = ()
    palette: tuple[tuple[int, int, int], ...] = ()
    ignore: tuple[int, ...] = (255,)
    fit: FitMode = "stretch"
    centre: float = 1.0
    grey: bool = False
    cache: bool = True
    workers: int = 0


def open_segmentation(
    config: DataConfig,
    root: Path,
    split: str,
    classes: int,
    size: tuple[int, int] | None,
) -> SegmentationFolder:
    """A split of index masks; ``size`` (height, width) None keeps the files' own.

    Raises:
        DataError: see ``SegmentationFolder``.
    """
    return SegmentationFolder(
        root,
        split,
        classes,
        config.ignore,
        size,
        config.layout,
        config.fit,
        config.grey,
        config.cache,
    )


def open_classification(
    config: DataConfig,
    root: Path,
    split: str,
    classes: int,
    labels: Sequence[str],
    size: tuple[int, int],
) -> LabelledImages:
    """A split of images with one label each, fitted to ``size`` (height, width).

    Args:
        labels: a name per class; empty for those that the data has. CIFAR-10 has its own.

    Raises:
        DataError: see ``ImageFolder`` and ``Cifar10``, or other classes than ``classes``.
    """
    if config.layout != "cifar10":
        return ImageFolder(
            root,
            split,
            classes,
            labels,
            size,
            config.fit,
            config.centre,
            config.grey,
            config.cache,
        )
    cifar = Cifar10(root, split, size, config.fit, config.centre)
    if len(cifar.labels) != classes:
        raise DataError(
            f"CIFAR-10 has 10 classes, the model {classes}; set model.classes = 10, or choose data "
            "that fits the model"
        )
    return cifar
