"""Labelled images on disk as NumPy arrays, read lazily or kept in memory. Torch-free.

Training and ``edge-mdeq val`` read the same files the same way, so that their figures compare.
"""

from edge_mdeq.datasets.classification import Cifar10, ImageFolder, LabelledImages
from edge_mdeq.datasets.layouts import (
    LAYOUTS,
    SEGMENTATION_LAYOUTS,
    DataConfig,
    open_classification,
    open_segmentation,
)
from edge_mdeq.datasets.segmentation import IGNORED, SegmentationFolder, class_frequencies

__all__ = [
    "IGNORED",
    "LAYOUTS",
    "SEGMENTATION_LAYOUTS",
    "Cifar10",
    "DataConfig",
    "ImageFolder",
    "LabelledImages",
    "SegmentationFolder",
    "class_frequencies",
    "open_classification",
    "open_segmentation",
]
