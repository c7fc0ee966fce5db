"""Augmentation of a batch on its device, by kornia.

The random numbers are drawn for the global batch on every rank, and each rank uses its share, so
that what happens to an image does not depend on how many processes there are.
"""

from __future__ import annotations

from typing import Any

import kornia.augmentation as K
import torch
from torch import Tensor, nn

from edge_mdeq.training.datasets import IGNORED
from edge_mdeq.training.recipe import AugmentConfig

__all__ = ["AugmentImages", "AugmentMasks"]

PER_BATCH = ("order", "forward_input_shape")  # parameters that are not one per image


class AugmentMasks(nn.Module):
    """Images (B, 3, h, w) uint8 and masks (B, h, w) uint8 to float 0..1 and int64 at ``size``."""

    def __init__(
        self, config: AugmentConfig, size: tuple[int, int], rank: int = 0, world: int = 1
    ) -> None:
        super().__init__()
        self.rank, self.world = rank, world
        self.geometry = K.AugmentationSequential(
            K.RandomResizedCrop(size, scale=config.scale, ratio=config.ratio, p=1.0),
            K.RandomHorizontalFlip(p=config.flip),
            data_keys=["input", "mask"],
            extra_args={"mask": {"resample": "nearest", "align_corners": None}},
        )
        self.colour = colour_jitter(config)

    @torch.no_grad()
    def forward(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        # Shifted by one, so that a border that kornia fills with zero reads as ignored.
        labelled = ((mask.int() + 1) % (IGNORED + 1)).float().unsqueeze(1)
        shape = global_shape(image, self.world)
        drawn = self.geometry.forward_parameters(shape)
        for item in drawn:
            keep_share(item.data, self.rank, self.world)
        image, labelled = self.geometry(image.float() / 255, labelled, params=drawn)
        mask = (labelled.squeeze(1).round().long() - 1) % (IGNORED + 1)
        return jitter(self.colour, image, self.rank, self.world), mask


class AugmentImages(nn.Module):
    """Images (B, 3, H, W) uint8, already cropped, to float 0..1; labels pass through."""

    def __init__(self, config: AugmentConfig, rank: int = 0, world: int = 1) -> None:
        super().__init__()
        self.rank, self.world = rank, world
        self.flip = config.flip
        self.colour = colour_jitter(config)

    @torch.no_grad()
    def forward(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        count = image.shape[0]
        mirrored = torch.rand(count * self.world)[self.rank * count :][:count] < self.flip
        mirrored = mirrored.to(image.device).view(-1, 1, 1, 1)
        image = torch.where(mirrored, image.flip(3), image).float() / 255
        return jitter(self.colour, image, self.rank, self.world), label


def colour_jitter(config: AugmentConfig) -> Any:
    """Kornia's colour jitter, or None where it would change nothing."""
    strength = (config.brightness, config.contrast, config.saturation, config.hue)
    return K.ColorJiggle(*strength, p=0.8) if any(strength) else None


def jitter(colour: Any, image: Tensor, rank: int, world: int) -> Tensor:
    """Apply ``colour`` with this rank's share of the parameters."""
    if colour is None:
        return image
    drawn = colour.forward_parameters(global_shape(image, world))
    keep_share(drawn, rank, world)
    jittered: Tensor = colour(image, params=drawn)
    return jittered


def global_shape(image: Tensor, world: int) -> torch.Size:
    """The shape of the batch over all ranks."""
    return torch.Size((image.shape[0] * world, *image.shape[1:]))


def keep_share(drawn: dict[str, Any], rank: int, world: int) -> None:
    """Cut kornia's parameters of the global batch down to those of this rank's images."""
    if world == 1:
        return
    share = int(drawn["forward_input_shape"][0]) // world
    for name, value in drawn.items():
        if name == "forward_input_shape":
            drawn[name] = torch.cat([value.new_tensor([share]), value[1:]])
        elif name not in PER_BATCH:
            drawn[name] = value[rank * share : (rank + 1) * share]
