"""Random crops: what decides them, and which part of an image they show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tiny_data import LABELS, draw_photograph

from edge_mdeq.datasets import ImageFolder
from edge_mdeq.training.crops import RandomCrops, random_crop
from edge_mdeq.training.recipe import AugmentConfig

SIZE = (32, 32)


def test_a_crop_depends_on_seed_epoch_and_image_alone(folder: Path) -> None:
    def crops(seed: int, epoch: int, order: list[int]) -> dict[int, NDArray[np.uint8]]:
        images = ImageFolder(folder, "train", 3, LABELS, SIZE)
        data = RandomCrops(images, AugmentConfig(), seed)
        data.epoch = epoch
        return {index: data[index][0] for index in order}

    first = crops(0, 0, [0, 1, 2])
    again = crops(0, 0, [2, 0, 1, 0])
    assert all((first[index] == again[index]).all() for index in range(3))
    for other in (crops(1, 0, [0]), crops(0, 1, [0])):
        assert (first[0] != other[0]).any()


def test_a_random_crop_keeps_to_its_shares_and_shapes() -> None:
    """Coordinates as colours: what was cut out can be read off the crop."""
    height, width = 120, 160
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    image = np.stack([rows, columns, columns], axis=2)
    config = AugmentConfig(scale=(0.2, 0.5), ratio=(0.8, 1.25))
    rng = np.random.default_rng(0)
    areas = []
    for _ in range(100):
        crop = random_crop(image, (40, 40), config, rng).astype(int)
        assert crop.shape == (40, 40, 3)
        h = (crop[-1, :, 0].mean() - crop[0, :, 0].mean()) * 40 / 39
        w = (crop[:, -1, 1].mean() - crop[:, 0, 1].mean()) * 40 / 39
        assert 0.75 < w / h < 1.35
        areas.append(h * w / (height * width))
    assert 0.19 < min(areas) < 0.24
    assert 0.45 < max(areas) < 0.52


def test_a_padded_crop_moves_by_at_most_the_padding() -> None:
    rows, columns = np.mgrid[1:33, 1:33].astype(np.uint8)
    image = np.stack([rows, columns, columns], axis=2)
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(200):
        crop = random_crop(image, (32, 32), AugmentConfig(pad=4), rng).astype(int)
        top, left = crop[16, 16, 0] - 17, crop[16, 16, 1] - 17
        seen.add((top, left))
        shifted = np.zeros((40, 40, 3), dtype=int)
        shifted[4:36, 4:36] = image
        np.testing.assert_array_equal(crop, shifted[4 + top : 36 + top, 4 + left : 36 + left])
    assert {abs(x) for pair in seen for x in pair} == {0, 1, 2, 3, 4}


def test_a_padded_crop_of_an_image_of_another_size_fits_it_first() -> None:
    rng = np.random.default_rng(0)
    assert random_crop(draw_photograph(0, 0), (64, 64), AugmentConfig(pad=4), rng).shape[0] == 64
