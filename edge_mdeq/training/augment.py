"""Augmentation of a batch on its device, by kornia.

The random numbers are drawn for all images of an optimizer step, and each micro-batch of each rank
uses its share of them, so that what happens to an image does not depend on how they are divided.
"""

from __future__ import annotations

from typing import Any

import kornia.augmentation as K
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_mdeq.datasets import IGNORED
from edge_mdeq.training.recipe import AugmentConfig

__all__ = ["AugmentImages", "AugmentMasks"]

PER_BATCH = ("order",)  # parameters that are not one per image


class AugmentMasks(nn.Module):
    """Images (B, 3, h, w) uint8 and masks (B, h, w) uint8 to float 0..1 and int64 at ``size``."""

    def __init__(self, config: AugmentConfig, size: tuple[int, int]) -> None:
        super().__init__()
        self.size, self.zoom, self.flip = size, config.zoom, config.flip
        # Both are sampled at the same points, where slicing and resizing them apart would shift the
        # mask by up to a pixel.
        self.geometry = K.AugmentationSequential(
            K.RandomResizedCrop(size, config.scale, config.ratio, p=1.0, cropping_mode="resample"),
            K.RandomHorizontalFlip(p=config.flip),
            data_keys=["input", "mask"],
            extra_args={"mask": {"resample": "nearest", "align_corners": True}},
        )
        self.colour = colour_jitter(config)

    @torch.no_grad()
    def forward(
        self, image: Tensor, mask: Tensor, share: int = 0, shares: int = 1
    ) -> tuple[Tensor, Tensor]:
        """Augment what is the ``share``-th of ``shares`` equal parts of a step's images."""
        # Shifted by one, so that a border that kornia fills with zero reads as ignored.
        labelled = ((mask.int() + 1) % (IGNORED + 1)).float().unsqueeze(1)
        image = image.float() / 255
        if any(self.zoom):
            grid = self.zoomed_grid(image, share, shares)
            inside = (grid.abs() <= 1).all(dim=3).unsqueeze(1)
            image = sample(image, grid, "bilinear", "border") * inside
            labelled = sample(labelled, grid, "nearest", "border") * inside
        else:
            drawn = self.geometry.forward_parameters(whole_shape(image, shares))
            for item in drawn:
                keep_share(item.data, share, shares)
            image, labelled = self.geometry(image, labelled, params=drawn)
        mask = (labelled.squeeze(1).round().long() - 1) % (IGNORED + 1)
        return jitter(self.colour, image, share, shares), mask

    def zoomed_grid(self, image: Tensor, share: int, shares: int) -> Tensor:
        """Where to sample, (B, H, W, 2) as (x, y) from -1 to 1: crops at whole pixels of the image
        resized by a factor of its own, from its upper left corner where it is too small.

        Kornia draws a crop's area, in which a factor is not uniform, and none beyond the image.
        """
        count = image.shape[0]
        drawn = torch.rand(count * shares, 4)[share * count :][:count]
        factor = self.zoom[0] + (self.zoom[1] - self.zoom[0]) * drawn[:, 0]
        axes = []
        for k, (length, wanted) in enumerate(zip(image.shape[2:], self.size, strict=True)):
            resized = (length * factor).round().view(-1, 1)
            room = (resized - wanted).clamp(min=0)
            start = (drawn[:, 1 + k, None] * (room + 1)).floor()
            axes.append(2 * (start + torch.arange(wanted) + 0.5) / resized - 1)  # (B, H or W)
        y, x = axes
        x = torch.where(drawn[:, 3, None] < self.flip, x.flip(1), x)
        grid = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), dim=3)
        return grid.to(image.device)


def sample(x: Tensor, grid: Tensor, mode: str, padding: str) -> Tensor:
    """``x`` (B, C, h, w) at the points of a grid (B, H, W, 2)."""
    return F.grid_sample(x, grid, mode, padding, align_corners=False)


class AugmentImages(nn.Module):
    """Images (B, 3, H, W) uint8, already cropped, to float 0..1; labels pass through."""

    def __init__(self, config: AugmentConfig) -> None:
        super().__init__()
        self.flip = config.flip
        self.colour = colour_jitter(config)

    @torch.no_grad()
    def forward(
        self, image: Tensor, label: Tensor, share: int = 0, shares: int = 1
    ) -> tuple[Tensor, Tensor]:
        """Augment what is the ``share``-th of ``shares`` equal parts of a step's images."""
        count = image.shape[0]
        mirrored = torch.rand(count * shares)[share * count :][:count] < self.flip
        mirrored = mirrored.to(image.device).view(-1, 1, 1, 1)
        image = torch.where(mirrored, image.flip(3), image).float() / 255
        return jitter(self.colour, image, share, shares), label


def colour_jitter(config: AugmentConfig) -> Any:
    """Kornia's colour jitter, or None where it would change nothing."""
    strength = (config.brightness, config.contrast, config.saturation, config.hue)
    return K.ColorJiggle(*strength, p=0.8) if any(strength) else None


def jitter(colour: Any, image: Tensor, share: int, shares: int) -> Tensor:
    """Apply ``colour`` with this share of the parameters."""
    if colour is None:
        return image
    drawn = colour.forward_parameters(whole_shape(image, shares))
    keep_share(drawn, share, shares)
    jittered: Tensor = colour(image, params=drawn)
    return jittered


def whole_shape(image: Tensor, shares: int) -> torch.Size:
    """The shape of all images of the step."""
    return torch.Size((image.shape[0] * shares, *image.shape[1:]))


def keep_share(drawn: dict[str, Any], share: int, shares: int) -> None:
    """Cut kornia's parameters of all images down to those of one share's."""
    if shares == 1:
        return
    applied = drawn["batch_prob"] > 0.5
    count = len(applied) // shares
    first, last = share * count, (share + 1) * count
    before, until = int(applied[:first].sum()), int(applied[:last].sum())
    for name, value in drawn.items():
        if name == "forward_input_shape":
            drawn[name] = torch.cat([value.new_tensor([count]), value[1:]])
        elif name in PER_BATCH:
            continue
        elif len(value) == len(applied):
            drawn[name] = value[first:last]
        else:  # kornia below 0.9 draws only for the images that it changes
            drawn[name] = value[before:until]
