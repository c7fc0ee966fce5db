"""What differs between the tasks: data, augmentation, loss and score. The loop knows only this."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import kornia
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from edge_mdeq.errors import ConfigError, DataError
from edge_mdeq.model import MDEQ
from edge_mdeq.training.augment import AugmentImages, AugmentMasks
from edge_mdeq.training.datasets import (
    IGNORED,
    Cifar10,
    ImageFolder,
    LabelledImages,
    SegmentationFolder,
    class_frequencies,
)
from edge_mdeq.training.evaluate import evaluate, evaluate_classifier
from edge_mdeq.training.recipe import LossConfig, Recipe

__all__ = ["Classification", "Objective", "Segmentation", "make_objective"]


class Objective(Protocol):
    """A task's data, loss and score.

    Attributes:
        headline: the figure that matters, a key of ``score``'s answer.
        train_set, val_set: datasets of (image uint8 (3, h, w), target).
        labels: a name per class.
    """

    headline: str
    train_set: Any
    val_set: Any
    labels: tuple[str, ...]

    def augmentation(self, rank: int, world: int) -> nn.Module:
        """A module from a batch of items to images in 0..1 and targets."""

    def class_weights(self) -> Tensor | None:
        """(classes,) for the cross entropy, or None."""

    def loss(self, logits: Tensor, target: Tensor, weights: Tensor | None) -> Tensor:
        """A scalar."""

    def score(self, model: MDEQ, evaluations: int) -> dict[str, float]:
        """The validation figures from a cold start, among them ``headline`` and "val_residual"."""

    def curve(self, model: MDEQ, counts: Sequence[int]) -> dict[str, float]:
        """The headline at each count, as ``HEADLINE_cold_N`` and, on video, ``HEADLINE_warm_N``."""


def make_objective(recipe: Recipe, data: Path) -> Objective:
    """Open the datasets below ``data`` for the recipe's task.

    Raises:
        DataError: they cannot be used.
        ConfigError: their images cannot be stacked to batches.
    """
    if recipe.model.task == "segmentation":
        return Segmentation(recipe, data)
    return Classification(recipe, data)


class Segmentation:
    """Index masks; scored by mean IoU, cold and with the state carried from frame to frame."""

    headline = "miou"

    def __init__(self, recipe: Recipe, data: Path) -> None:
        self.recipe = recipe
        self.labels = recipe.data.labels
        self.size = (recipe.input.height, recipe.input.width)
        self.train_set = self.open(data, "train", None)
        self.val_set = self.open(data, "val", self.size)
        same_size(self.train_set)

    def open(self, data: Path, split: str, size: tuple[int, int] | None) -> SegmentationFolder:
        config = self.recipe.data
        return SegmentationFolder(
            data,
            split,
            self.recipe.model.classes,
            config.ignore,
            size,
            config.layout,
            config.fit,
            config.grey,
            config.cache,
        )

    def augmentation(self, rank: int, world: int) -> nn.Module:
        return AugmentMasks(self.recipe.augment, self.size, rank, world)

    def class_weights(self) -> Tensor | None:
        if self.recipe.loss.class_weights == "none":
            return None
        return root_weights(class_frequencies(self.train_set, self.recipe.model.classes))

    def loss(self, logits: Tensor, target: Tensor, weights: Tensor | None) -> Tensor:
        return segmentation_loss(logits, target, weights, self.recipe.loss)

    def score(self, model: MDEQ, evaluations: int) -> dict[str, float]:
        score = evaluate(model, self.val_set, self.recipe.input, evaluations)
        return {"miou": score.miou, "val_residual": score.residual}

    def curve(self, model: MDEQ, counts: Sequence[int]) -> dict[str, float]:
        figures = {}
        for count in counts:
            for start, warm in (("cold", False), ("warm", True)):
                score = evaluate(model, self.val_set, self.recipe.input, count, warm)
                figures[f"miou_{start}_{count}"] = score.miou
        return figures


class Classification:
    """One label an image; scored by accuracy from a cold start."""

    headline = "accuracy"

    def __init__(self, recipe: Recipe, data: Path) -> None:
        self.recipe = recipe
        self.train_set = self.open(data, "train")
        self.labels = self.train_set.labels
        self.val_set = self.open(data, "val")

    def open(self, data: Path, split: str) -> LabelledImages:
        recipe, config = self.recipe, self.recipe.data
        common: dict[str, Any] = {
            "size": (recipe.input.height, recipe.input.width),
            "augment": recipe.augment if split == "train" else None,
            "fit": config.fit,
            "centre": config.centre,
            "seed": recipe.seed,
        }
        if config.layout == "cifar10":
            cifar = Cifar10(data, split, **common)
            if len(cifar.labels) != recipe.model.classes:
                raise DataError(f"CIFAR-10 has 10 classes, the model {recipe.model.classes}")
            return cifar
        labels = self.labels if split == "val" else config.labels
        classes = recipe.model.classes
        return ImageFolder(
            data, split, classes, labels, **common, grey=config.grey, cache=config.cache
        )

    def augmentation(self, rank: int, world: int) -> nn.Module:
        return AugmentImages(self.recipe.augment, rank, world)

    def class_weights(self) -> Tensor | None:
        if self.recipe.loss.class_weights == "none":
            return None
        return root_weights(self.train_set.frequencies())

    def loss(self, logits: Tensor, target: Tensor, weights: Tensor | None) -> Tensor:
        smoothing = self.recipe.loss.label_smoothing
        return F.cross_entropy(logits, target, weights, label_smoothing=smoothing)

    def score(self, model: MDEQ, evaluations: int) -> dict[str, float]:
        score = evaluate_classifier(model, self.val_set, self.recipe.input, evaluations)
        return {
            "accuracy": score.accuracy,
            "balanced_accuracy": score.balanced,
            "val_residual": score.residual,
        }

    def curve(self, model: MDEQ, counts: Sequence[int]) -> dict[str, float]:
        return {f"accuracy_cold_{count}": self.score(model, count)["accuracy"] for count in counts}


def segmentation_loss(
    logits: Tensor, target: Tensor, weights: Tensor | None, config: LossConfig
) -> Tensor:
    """Cross entropy plus Lovasz-softmax over the labelled pixels; 0 where there are none.

    Args:
        logits: (B, classes, H, W).
        target: (B, H, W) int64, ``IGNORED`` where unlabelled.
        weights: (classes,) for the cross entropy, or None.
        config: how much of each.
    """
    if bool((target == IGNORED).all()):  # a mean over nothing is NaN, and would spoil the run
        return logits.sum() * 0.0
    smoothing = config.label_smoothing
    loss = F.cross_entropy(logits, target, weights, ignore_index=IGNORED, label_smoothing=smoothing)
    if config.lovasz:
        # Every second pixel is enough for the surrogate, and sorting is what it costs.
        logits, target = logits[..., ::2, ::2], target[..., ::2, ::2]
        labelled = target != IGNORED
        if bool(labelled.any()):
            flat = logits.permute(1, 0, 2, 3)[:, labelled]  # (classes, N)
            surrogate = kornia.losses.lovasz_softmax_loss(
                flat[None, :, None], target[labelled][None, None]
            )
            loss = loss + config.lovasz * surrogate
    return loss


def root_weights(frequency: NDArray[np.float64]) -> Tensor:
    """(classes,): one over the root of each class's share, with mean 1 over the data."""
    weights = 1 / np.sqrt(frequency)
    weights /= (weights * frequency).sum()
    return torch.tensor(weights, dtype=torch.float32)


def same_size(data: SegmentationFolder) -> None:
    """Raise ConfigError unless all images have one size: they are stacked to batches."""
    if data.items is None:
        return  # found out when the first batch is stacked
    first = data.items[0][0].shape
    for path, (image, _) in zip(data.paths, data.items, strict=True):
        if image.shape != first:
            raise ConfigError(
                f"{path} is {image.shape[:2]}, {data.paths[0].name} is {first[:2]}; training "
                "needs images of one size"
            )
