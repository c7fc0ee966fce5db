"""What differs between the tasks: data, augmentation, loss and score. The loop knows only this."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from edge_mdeq.datasets import (
    IGNORED,
    LabelledImages,
    SegmentationFolder,
    class_frequencies,
    open_classification,
    open_segmentation,
)
from edge_mdeq.model import MDEQ
from edge_mdeq.training.augment import AugmentImages, AugmentMasks
from edge_mdeq.training.crops import RandomCrops
from edge_mdeq.training.equilibrium import forward_solver
from edge_mdeq.training.evaluate import Score, evaluate, evaluate_classifier
from edge_mdeq.training.recipe import Recipe

__all__ = ["Classification", "Objective", "Segmentation", "make_objective"]

NO_LABEL = -100  # torch's own; 255 is a class of ImageNet's


class Objective(Protocol):
    """A task's data, loss and score.

    Attributes:
        headline: the figure that matters, a key of ``score``'s answer.
        train_set, val_set: datasets of (image uint8 (3, h, w), target), of arrays and numbers.
        labels: a name per class.
        weights: of the classes in the loss, (classes,), or None.
    """

    headline: str
    train_set: Any
    val_set: Any
    labels: tuple[str, ...]
    weights: Tensor | None

    def augmentation(self) -> nn.Module:
        """A module from a batch of items, its share of a step and the number of shares to images in
        0..1 and targets; see ``edge_mdeq.training.augment``.
        """

    def count(self, target: Tensor) -> Tensor:
        """What the targets of a batch weigh in the loss, ()."""

    def loss(self, logits: Tensor, target: Tensor, count: Tensor | None = None) -> Tensor:
        """The mean loss, ().

        Args:
            logits: (B, classes, ...).
            target: (B, ...).
            count: what to divide the cross entropies' sum by; by default this batch's own. With
                the mean over a step's micro-batches and ranks, the mean of their losses is that of
                the whole batch.
        """

    def score(self, model: MDEQ, evaluations: int) -> dict[str, float]:
        """The validation figures from a cold start, among them ``headline`` and "val_residual"."""

    def curve(self, model: MDEQ, counts: Sequence[int]) -> dict[str, float]:
        """The headline at each count, as ``HEADLINE_cold_N`` and, on video, ``HEADLINE_warm_N``."""


def make_objective(recipe: Recipe, data: Path) -> Objective:
    """Open the datasets below ``data`` for the recipe's task.

    Raises:
        DataError: they cannot be used.
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
        self.weights = given_weights(recipe)
        if recipe.loss.class_weights == "sqrt":
            self.weights = root_weights(class_frequencies(self.train_set, recipe.model.classes))

    def open(self, data: Path, split: str, size: tuple[int, int] | None) -> SegmentationFolder:
        recipe = self.recipe
        return open_segmentation(recipe.data, data, split, recipe.model.classes, size)

    def augmentation(self) -> nn.Module:
        crop = self.recipe.augment.crop
        return AugmentMasks(self.recipe.augment, crop if any(crop) else self.size)

    def count(self, target: Tensor) -> Tensor:
        return total_weight(target, self.weights, IGNORED)

    def loss(self, logits: Tensor, target: Tensor, count: Tensor | None = None) -> Tensor:
        config = self.recipe.loss
        count = self.count(target) if count is None else count
        loss = cross_entropy(logits, target, self.weights, config.label_smoothing, count, IGNORED)
        if config.lovasz:
            # Every second pixel is enough for the surrogate, and sorting is what it costs.
            logits, target = logits[..., ::2, ::2], target[..., ::2, ::2]
            loss = loss + config.lovasz * lovasz_softmax(over_ranks(logits), over_ranks(target))
        return loss

    def score(self, model: MDEQ, evaluations: int) -> dict[str, float]:
        score = self.evaluate(model, evaluations, warm=False)
        return {"miou": score.miou, "val_residual": score.residual}

    def evaluate(self, model: MDEQ, evaluations: int, warm: bool) -> Score:
        """Score with the recipe's solver."""
        recipe = self.recipe
        solver, best = forward_solver(recipe), recipe.solver.best
        return evaluate(model, self.val_set, recipe.input, evaluations, warm, solver, best)

    def curve(self, model: MDEQ, counts: Sequence[int]) -> dict[str, float]:
        figures = {}
        for count in counts:
            for start, warm in (("cold", False), ("warm", True)):
                figures[f"miou_{start}_{count}"] = self.evaluate(model, count, warm).miou
        return figures


class Classification:
    """One label an image; scored by accuracy from a cold start."""

    headline = "accuracy"

    def __init__(self, recipe: Recipe, data: Path) -> None:
        self.recipe = recipe
        images = self.open(data, "train", recipe.data.labels)
        self.labels = images.labels
        self.train_set = RandomCrops(images, recipe.augment, recipe.seed)
        self.val_set = self.open(data, "val", self.labels)
        self.weights = given_weights(recipe)
        if recipe.loss.class_weights == "sqrt":
            self.weights = root_weights(images.frequencies())

    def open(self, data: Path, split: str, labels: Sequence[str]) -> LabelledImages:
        recipe = self.recipe
        size = (recipe.input.height, recipe.input.width)
        return open_classification(recipe.data, data, split, recipe.model.classes, labels, size)

    def augmentation(self) -> nn.Module:
        return AugmentImages(self.recipe.augment)

    def count(self, target: Tensor) -> Tensor:
        return total_weight(target, self.weights)

    def loss(self, logits: Tensor, target: Tensor, count: Tensor | None = None) -> Tensor:
        count = self.count(target) if count is None else count
        return cross_entropy(logits, target, self.weights, self.recipe.loss.label_smoothing, count)

    def score(self, model: MDEQ, evaluations: int) -> dict[str, float]:
        recipe = self.recipe
        solver, best = forward_solver(recipe), recipe.solver.best
        score = evaluate_classifier(model, self.val_set, recipe.input, evaluations, solver, best)
        return {
            "accuracy": score.accuracy,
            "balanced_accuracy": score.balanced,
            "val_residual": score.residual,
        }

    def curve(self, model: MDEQ, counts: Sequence[int]) -> dict[str, float]:
        return {f"accuracy_cold_{count}": self.score(model, count)["accuracy"] for count in counts}


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    weights: Tensor | None,
    smoothing: float,
    count: Tensor,
    ignored: int = NO_LABEL,
) -> Tensor:
    """The weighted sum over the labelled targets, divided by ``count``; 0 where ``count`` is.

    Args:
        logits: (B, classes, ...).
        target: (B, ...) int64.
        weights: (classes,), or None.
        smoothing: share of the probability that goes to all classes alike.
        count: from ``total_weight``.
        ignored: the target of what is unlabelled.
    """
    weights = None if weights is None else weights.to(logits.device)
    total = F.cross_entropy(
        logits, target, weights, ignore_index=ignored, label_smoothing=smoothing, reduction="sum"
    )
    # A sum over nothing is 0, and a mean over nothing NaN, which would spoil the run.
    return total / torch.where(count > 0, count, 1.0)


def total_weight(target: Tensor, weights: Tensor | None, ignored: int = NO_LABEL) -> Tensor:
    """How many targets are labelled, or the sum of their classes' weights, ()."""
    labelled = target[target != ignored]
    if weights is None:
        return torch.tensor(float(labelled.numel()), device=target.device)
    return weights.to(target.device)[labelled].sum()


def lovasz_softmax(logits: Tensor, target: Tensor) -> Tensor:
    """A surrogate of 1 - mean IoU over all classes (arXiv:1705.08790, algorithm 1), ().

    Kornia's was wrong for more than two classes before its version 0.9, which needs Python 3.11.

    Args:
        logits: (B, classes, H, W).
        target: (B, H, W) int64; pixels that are ``IGNORED`` do not count.
    """
    labelled = target != IGNORED
    if not bool(labelled.any()):
        return logits.sum() * 0.0
    classes = logits.shape[1]
    probability = logits.permute(0, 2, 3, 1)[labelled].softmax(dim=1)  # (N, classes)
    truth = F.one_hot(target[labelled], classes).to(probability.dtype)
    errors, order = (truth - probability).abs().sort(dim=0, descending=True)
    truth = truth.gather(0, order)
    outside = truth.sum(dim=0) - truth.cumsum(dim=0)  # of the class, beyond the first k errors
    union = truth.sum(dim=0) + (1 - truth).cumsum(dim=0)
    jaccard = 1 - outside / union  # loss of mistaking the pixels with the k largest errors
    steps = jaccard.diff(dim=0, prepend=torch.zeros_like(jaccard[:1]))
    return (errors * steps).sum(dim=0).mean()


def over_ranks(x: Tensor) -> Tensor:
    """``x`` (B, ...) of all ranks, one after the other.

    Gradients reach this rank's own part only, as many times as there are ranks: averaged over the
    ranks, as they are afterwards, the parameters' gradients are those of one process.
    """
    if not dist.is_initialized():
        return x
    world, rank = dist.get_world_size(), dist.get_rank()
    parts = [torch.empty_like(x) for _ in range(world)]
    dist.all_gather(parts, x.detach().contiguous())
    parts[rank] = x + (world - 1) * (x - x.detach())
    return torch.cat(parts)


def given_weights(recipe: Recipe) -> Tensor | None:
    """The weights (classes,) that the recipe itself lists, if it does."""
    weights = recipe.loss.class_weights
    return None if isinstance(weights, str) else torch.tensor(weights, dtype=torch.float32)


def root_weights(frequency: NDArray[np.float64]) -> Tensor:
    """(classes,): one over the root of each class's share, with mean 1 over the data."""
    weights = 1 / np.sqrt(frequency)
    weights /= (weights * frequency).sum()
    return torch.tensor(weights, dtype=torch.float32)
