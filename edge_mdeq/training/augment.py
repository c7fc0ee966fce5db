"""Augmentation of a batch on its device, image and mask alike, by kornia."""

from __future__ import annotations

import kornia.augmentation as K
import torch
from torch import Tensor, nn

from edge_mdeq.training.data import IGNORED
from edge_mdeq.training.recipe import AugmentConfig

__all__ = ["Augment"]


class Augment(nn.Module):
    """Images (B, 3, h, w) uint8 and masks (B, h, w) uint8 to float 0..1 and int64 at ``size``."""

    def __init__(self, config: AugmentConfig, size: tuple[int, int]) -> None:
        super().__init__()
        self.geometry = K.AugmentationSequential(
            K.RandomResizedCrop(size, scale=config.scale, ratio=config.ratio, p=1.0),
            K.RandomHorizontalFlip(p=config.flip),
            data_keys=["input", "mask"],
            extra_args={"mask": {"resample": "nearest", "align_corners": None}},
        )
        self.colour = K.ColorJiggle(
            config.brightness, config.contrast, config.saturation, config.hue, p=0.8
        )

    @torch.no_grad()
    def forward(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        # Shifted by one, so that a border that kornia fills with zero reads as ignored.
        labelled = ((mask.int() + 1) % (IGNORED + 1)).float().unsqueeze(1)
        image, labelled = self.geometry(image.float() / 255, labelled)
        mask = (labelled.squeeze(1).round().long() - 1) % (IGNORED + 1)
        return self.colour(image), mask
