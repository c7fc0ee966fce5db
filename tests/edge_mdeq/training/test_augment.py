"""Augmentation: image and mask move together, and how a step is divided changes nothing."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from tiny_data import VOID, draw_scene
from torch import Tensor

from edge_mdeq.datasets import IGNORED
from edge_mdeq.training.augment import AugmentImages, AugmentMasks
from edge_mdeq.training.recipe import AugmentConfig
from edge_mdeq.training.run import seed_step

SIZE = (32, 32)
COLOURED = AugmentConfig()
STILL = AugmentConfig(brightness=0, contrast=0, saturation=0, hue=0)
ZOOMED = replace(STILL, zoom=(0.5, 2.0))


def masks(count: int) -> Tensor:
    """Masks of scenes, (count, 40, 56) uint8, void as ``IGNORED``."""
    mask = torch.from_numpy(np.stack([draw_scene(seed)[1] for seed in range(count)]))
    mask[mask == VOID] = IGNORED
    return mask


def images(count: int) -> Tensor:
    """Scenes, (count, 3, 40, 56) uint8."""
    scenes = np.stack([draw_scene(seed)[0] for seed in range(count)])
    return torch.from_numpy(scenes).permute(0, 3, 1, 2)


@pytest.mark.parametrize("config", [STILL, replace(ZOOMED, zoom=(0.8, 1.5))])
@pytest.mark.parametrize("seed", range(8))
def test_image_and_mask_move_together(seed: int, config: AugmentConfig) -> None:
    """The image shows what its mask says, and after augmentation it still does.

    Red is what lies right of a vertical edge and green what lies below a horizontal one. Halfway
    between two pixels interpolation passes through one half, and the nearest pixel changes.
    """
    rng = np.random.default_rng(seed)
    rows, columns = torch.meshgrid(torch.arange(40), torch.arange(56), indexing="ij")
    right = torch.stack([columns >= int(c) for c in rng.integers(8, 48, 4)])
    below = torch.stack([rows >= int(r) for r in rng.integers(8, 32, 4)])
    mask = (right + 2 * below).to(torch.uint8)
    image = 255 * torch.stack([right, below, right ^ right], dim=1).to(torch.uint8)
    seed_step(seed, 0)
    moved_image, moved_mask = AugmentMasks(config, SIZE)(image, mask)
    assert (tuple(moved_image.shape), moved_image.dtype) == ((4, 3, *SIZE), torch.float32)
    assert (tuple(moved_mask.shape), moved_mask.dtype) == ((4, *SIZE), torch.int64)
    for channel, bit in ((0, 1), (1, 2)):
        shown = moved_image[:, channel]
        clear = (shown - 0.5).abs() > 1e-3
        assert torch.equal((shown > 0.5)[clear], (moved_mask & bit > 0)[clear])
        assert clear.float().mean() > 0.95
        assert 0.05 < (shown > 0.5).float().mean() < 0.95  # there was an edge to be seen


@pytest.mark.parametrize("zoom", [0.5, 1.0, 1.3, 2.0])
@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_a_zoomed_crop_is_a_crop_of_the_resized_image(zoom: float, flip: float) -> None:
    """One of all that OpenCV's resize offers, black and void where the image was too small."""
    image, mask = images(2), masks(2)
    seed_step(0, 0)
    config = replace(ZOOMED, zoom=(zoom, zoom), flip=flip)
    moved_image, moved_mask = AugmentMasks(config, SIZE)(image, mask)
    for source, found, found_mask in zip(image, moved_image, moved_mask, strict=True):
        pixels = source.permute(1, 2, 0).numpy().astype(np.float32) / 255
        height, width = round(40 * zoom), round(56 * zoom)
        large = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR)
        below, beside = max(0, SIZE[0] - height), max(0, SIZE[1] - width)
        large = np.pad(large, ((0, below), (0, beside), (0, 0)))
        got = (found.flip(2) if flip else found).permute(1, 2, 0).numpy()
        places = [
            (top, left)
            for top in range(large.shape[0] - SIZE[0] + 1)
            for left in range(large.shape[1] - SIZE[1] + 1)
            if np.abs(large[top : top + SIZE[0], left : left + SIZE[1]] - got).max() < 1e-4
        ]
        assert len(places) == 1
        outside = np.zeros(SIZE, dtype=bool)
        outside[height:], outside[:, width:] = True, True
        shown = (found_mask.flip(1) if flip else found_mask).numpy()
        assert (shown[outside] == IGNORED).all()
        assert (shown[~outside] != IGNORED).mean() > 0.9


def test_the_zoom_is_uniform_over_its_range() -> None:
    """A ramp of 56 steps shows by its slope how far it was enlarged."""
    ramp = torch.arange(56, dtype=torch.uint8).expand(400, 3, 40, 56)
    seed_step(0, 0)
    moved, _ = AugmentMasks(replace(ZOOMED, flip=0.0), (8, 8))(ramp, ramp[:, 0])
    slope = 255 * (moved[:, 0, 4, 6] - moved[:, 0, 4, 1]) / 5  # borders may repeat a pixel
    factor = 1 / slope
    assert 0.49 < factor.min() < 0.52
    assert 1.95 < factor.max() < 2.01
    assert 1.18 < factor.mean() < 1.32  # 1.25, and three standard errors


def test_void_stays_void() -> None:
    mask = masks(4)
    mask[:, :, :20] = IGNORED
    image = 255 * (mask == IGNORED).to(torch.uint8).unsqueeze(1).repeat(1, 3, 1, 1)
    seed_step(0, 0)
    moved_image, moved_mask = AugmentMasks(STILL, SIZE)(image, mask)
    assert set(moved_mask.unique().tolist()) == {0, 1, 2, IGNORED}
    shown = moved_image[:, 0]
    clear = ((shown - 0.5).abs() > 1e-3) & interior(moved_mask)
    assert torch.equal((shown > 0.5)[clear], (moved_mask == IGNORED)[clear])


def interior(mask: Tensor) -> Tensor:
    """Where all of the 3x3 neighbours have the same label, (B, H, W)."""
    x = mask.float().unsqueeze(1)
    top = torch.nn.functional.max_pool2d(x, 3, 1, 1)
    low = -torch.nn.functional.max_pool2d(-x, 3, 1, 1)
    return (top == low).squeeze(1)


def test_it_draws_anew_for_every_image_and_step() -> None:
    image, mask = images(1).repeat(2, 1, 1, 1), masks(1).repeat(2, 1, 1)
    augment = AugmentMasks(COLOURED, SIZE)
    seed_step(0, 0)
    first, _ = augment(image, mask)
    seed_step(0, 1)
    second, _ = augment(image, mask)
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, second)


def test_seed_and_step_decide_what_it_draws() -> None:
    augment = AugmentMasks(COLOURED, SIZE)
    image, mask = images(4), masks(4)
    seed_step(3, 5)
    first = augment(image, mask)
    torch.manual_seed(99)
    augment(image, mask)
    seed_step(3, 5)
    again = augment(image, mask)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("shares", [2, 3, 6])
@pytest.mark.parametrize("config", [COLOURED, replace(COLOURED, flip=0.3), STILL, ZOOMED])
def test_each_share_gets_what_the_whole_step_would_give_it(
    shares: int, config: AugmentConfig
) -> None:
    image, mask = images(6), masks(6)
    for step in range(3):
        seed_step(0, step)
        whole = AugmentMasks(config, SIZE)(image, mask)
        augment = AugmentMasks(config, SIZE)
        parts = []
        for share in range(shares):
            seed_step(0, step)
            part = slice(share * 6 // shares, (share + 1) * 6 // shares)
            parts.append(augment(image[part], mask[part], share, shares))
        together = [torch.cat(values) for values in zip(*parts, strict=True)]
        torch.testing.assert_close(together[0], whole[0], atol=1e-6, rtol=0)
        assert torch.equal(together[1], whole[1])


@pytest.mark.parametrize("shares", [2, 4])
def test_so_does_each_share_of_photographs(shares: int) -> None:
    image, label = images(4)[..., :40], torch.arange(4)
    seed_step(0, 0)
    whole, labels = AugmentImages(COLOURED)(image, label)
    assert torch.equal(labels, label)
    for share in range(shares):
        seed_step(0, 0)
        part = slice(share * 4 // shares, (share + 1) * 4 // shares)
        got, labels = AugmentImages(COLOURED)(image[part], label[part], share, shares)
        torch.testing.assert_close(got, whole[part], atol=1e-6, rtol=0)
        assert torch.equal(labels, label[part])


def test_photographs_are_mirrored_as_often_as_told() -> None:
    image = torch.zeros(400, 3, 4, 4, dtype=torch.uint8)
    image[..., 0] = 255
    seed_step(0, 0)
    moved, _ = AugmentImages(replace(STILL, flip=0.3))(image, torch.zeros(400))
    mirrored = moved[:, 0, 0, 3] == 1
    assert 0.22 < mirrored.float().mean() < 0.38  # 0.3, and three standard deviations
    assert torch.equal(moved[mirrored], moved[mirrored].flip(3).flip(3))
    assert (moved[~mirrored][..., 0] == 1).all()


def test_masks_are_mirrored_with_their_images() -> None:
    config = replace(STILL, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=1.0)
    mask = masks(1)[:, 4:36, 12:44]
    image = images(1)[:, :, 4:36, 12:44]
    moved_image, moved_mask = AugmentMasks(config, SIZE)(image, mask)
    assert torch.equal(moved_mask, mask.flip(2).long())
    torch.testing.assert_close(moved_image, image.flip(3).float() / 255)


def test_without_strengths_colours_stay() -> None:
    image = images(2)
    kept, _ = AugmentImages(replace(STILL, flip=0.0))(image, torch.zeros(2))
    torch.testing.assert_close(kept, image.float() / 255)


def test_colours_change_by_no_more_than_told() -> None:
    """Brightness alone adds at most its strength, in units of white."""
    image = torch.full((64, 3, 8, 8), 128, dtype=torch.uint8)
    config = replace(STILL, brightness=0.2)
    seed_step(0, 0)
    moved, _ = AugmentImages(config)(image, torch.zeros(64))
    change = (moved[:, 0, 0, 0] - 128 / 255).abs()
    assert 0.15 < change.max() < 0.21
    assert 0.05 < (change == 0).float().mean() < 0.4  # one in five is left alone
