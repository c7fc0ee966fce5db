"""Small checkpoints in the layouts of the published code, and what importing them needs told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from published import Layout, published_checkpoint
from torch import Tensor

from edge_mdeq.checkpoints import ImportSettings
from edge_mdeq.config import ModelConfig
from edge_mdeq.model import MDEQ
from edge_mdeq.registry import lookup

Tensors = dict[str, Tensor]

CLASSIFIER = ModelConfig(
    task="classification",
    classes=5,
    channels=(8, 16, 16, 24),
    expansion=2,
    head_channels=(3, 4, 5, 6),
    final_channels=20,
)
SEGMENTER = ModelConfig(
    task="segmentation", classes=4, channels=(8, 16, 24), expansion=3, norm_momentum=0.01
)
GIVEN = ImportSettings(downsample_times=2, size=(64, 96))  # what no published row tells of those
LAYOUTS: tuple[Layout, ...] = ("v1", "v2", "torchdeq-imagenet", "torchdeq-cifar")


def tiny(layout: Layout = "v2") -> Tensors:
    """CIFAR TINY; only v2 leaves gain and bias out of f's last norm."""
    return published_checkpoint(
        replace(lookup("cifar-tiny").model, post_norm_affine=layout != "v2"), layout
    )


def same(a: MDEQ, b: MDEQ) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return list(first) == list(second) and all(torch.equal(first[k], second[k]) for k in first)


def save(tensors: Any, folder: Path) -> Path:
    torch.save(tensors, folder / "c.pth")
    return folder / "c.pth"
