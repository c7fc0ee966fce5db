"""Torch's loader over the datasets, which know nothing of torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_data import LABELS, PER_CLASS, VOID, text
from torch.utils.data import DataLoader

from edge_mdeq.datasets import ImageFolder, SegmentationFolder
from edge_mdeq.errors import DataError

SIZE = (32, 32)


def test_masks_become_batches_of_tensors(camvid: Path) -> None:
    data = SegmentationFolder(camvid, "train", 3, (VOID,), SIZE)
    image, mask = next(iter(DataLoader(data, 3)))
    assert (image.dtype, mask.dtype) == (torch.uint8, torch.uint8)
    np.testing.assert_array_equal(image, np.stack([data[k][0] for k in range(3)]))
    np.testing.assert_array_equal(mask, np.stack([data[k][1] for k in range(3)]))


def test_so_do_labelled_images(folder: Path) -> None:
    data = ImageFolder(folder, "train", 3, LABELS, SIZE)
    image, label = next(iter(DataLoader(data, len(data))))
    assert (image.dtype, label.dtype) == (torch.uint8, torch.int64)
    np.testing.assert_array_equal(image[PER_CLASS], data[PER_CLASS][0])
    assert label.tolist() == data.targets


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # torch forks
def test_what_is_unreadable_is_named_by_a_process_that_reads_ahead_too(camvid: Path) -> None:
    text(camvid / "train" / "002.png")
    data = SegmentationFolder(camvid, "train", 3, (VOID,), cache=False)
    with pytest.raises(DataError, match=r"train/002\.png cannot be decoded"):
        list(DataLoader(data, 2, num_workers=1))
