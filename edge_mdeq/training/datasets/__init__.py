"""Datasets on disk, read lazily or kept in memory; every layout has its own class."""

from edge_mdeq.training.datasets.classification import Cifar10, ImageFolder, LabelledImages
from edge_mdeq.training.datasets.segmentation import (
    IGNORED,
    SegmentationFolder,
    class_frequencies,
)

__all__ = [
    "IGNORED",
    "Cifar10",
    "ImageFolder",
    "LabelledImages",
    "SegmentationFolder",
    "class_frequencies",
]
