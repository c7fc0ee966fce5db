"""What training sees of images with one label each: a random crop."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edge_mdeq.datasets import LabelledImages
from edge_mdeq.datasets.classification import channels_first
from edge_mdeq.fitting import fit_image, plan_fit
from edge_mdeq.training.recipe import AugmentConfig

__all__ = ["RandomCrops", "random_crop"]

Image = NDArray[np.uint8]

TRIES = 10


class RandomCrops:
    """Items are a crop (3, H, W) uint8 RGB of an image, at the input's size, and its class.

    The crop is drawn from a generator that depends on seed, epoch and index alone: neither the
    order of reading nor the number of processes changes it.
    """

    def __init__(self, images: LabelledImages, config: AugmentConfig, seed: int = 0) -> None:
        self.images, self.config, self.seed = images, config, seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image, int]:
        rng = np.random.default_rng((self.seed, self.epoch, index))
        image = random_crop(self.images.read(index), self.images.size, self.config, rng)
        return channels_first(image), self.images.targets[index]


def random_crop(
    image: Image, size: tuple[int, int], config: AugmentConfig, rng: np.random.Generator
) -> Image:
    """A training crop (H, W, 3) of ``size``.

    Of random area and shape ("Going deeper with convolutions", section 6), resized; or with ``pad``
    out of the image that was fitted and padded. Images differ in size and so cannot be cropped as
    a batch.
    """
    height, width = image.shape[:2]
    if config.pad:
        whole = fit_image(image, plan_fit((height, width), size))
        padded = np.pad(whole, ((config.pad,) * 2, (config.pad,) * 2, (0, 0)))
        top = int(rng.integers(0, padded.shape[0] - size[0] + 1))
        left = int(rng.integers(0, padded.shape[1] - size[1] + 1))
        return padded[top : top + size[0], left : left + size[1]]
    low, high = (math.log(r) for r in config.ratio)
    for _ in range(TRIES):
        area = height * width * rng.uniform(*config.scale)
        ratio = math.exp(rng.uniform(low, high))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top, left = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
            part = image[top : top + h, left : left + w]
            return fit_image(part, plan_fit((h, w), size))
    return fit_image(image, plan_fit((height, width), size, "crop"))
