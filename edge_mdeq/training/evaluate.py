"""The task metric of a torch model by number of evaluations, cold and warm."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassConfusionMatrix

from edge_mdeq.config import InputConfig
from edge_mdeq.datasets import IGNORED, LabelledImages, SegmentationFolder
from edge_mdeq.metrics import class_accuracy, mean_iou
from edge_mdeq.model import MDEQ
from edge_mdeq.solvers import Anderson, FixedPoint, Solver, solve
from edge_mdeq.spectral import spectral_radius
from edge_mdeq.training.equilibrium import normalise, read_out

__all__ = [
    "Accuracy",
    "Score",
    "accuracy",
    "evaluate",
    "evaluate_classifier",
    "spectral_radii",
]

EVALUATION_BATCH = 64  # images; samples do not influence one another
PLAIN = FixedPoint()
REFERENCE_EVALUATIONS = 40  # of f, for an equilibrium to linearise at


@dataclass(frozen=True)
class Score:
    """Mean IoU over the classes that occur, IoU per class (classes,), and the mean residual."""

    miou: float
    iou: NDArray[np.float64]
    residual: float


@dataclass(frozen=True)
class Accuracy:
    """Share of right answers, its mean over the classes, per class (classes,), mean residual."""

    accuracy: float
    balanced: float
    per_class: NDArray[np.float64]
    residual: float


@torch.no_grad()
def evaluate(
    model: MDEQ,
    data: SegmentationFolder,
    config: InputConfig,
    evaluations: int,
    warm: bool = False,
    solver: Solver = PLAIN,
    best: bool = False,
) -> Score:
    """Score ``model`` on ``data``, whose items have the input's size, one image at a time.

    Args:
        model: any mode; it is frozen here.
        data: in order; with ``warm`` each frame starts from the equilibrium of the one before.
        config: the input normalisation.
        evaluations: of f per frame.
        warm: carry the state (the first frame starts cold with as many evaluations).
        solver: how to get from one iterate to the next, by default by plain iteration.
        best: read out the iterate with the lowest residual instead of the last one.
    """
    frozen = model.freeze()
    device = next(frozen.parameters()).device
    confusion = confusion_matrix(model.config.classes, IGNORED).to(device)
    residuals, state = [], None
    for image, mask in (map(torch.from_numpy, data[i]) for i in range(len(data))):
        x = normalise(image[None].to(device).float() / 255, config)
        u = frozen.inject(x)
        z0 = state if warm and state is not None else frozen.zero_state(u)
        solution = solve(frozen.bind(u), z0, solver, evaluations, best=best)
        state = solution.value
        residuals.append(float(solution.residual))
        logits = read_out(frozen, state, x.shape[2:])
        confusion.update(logits.argmax(dim=1), mask[None].to(device).long())
    iou, miou = mean_iou(confusion.compute().cpu().numpy())
    return Score(miou, iou, float(np.mean(residuals)))


@torch.no_grad()
def evaluate_classifier(
    model: MDEQ,
    data: LabelledImages,
    config: InputConfig,
    evaluations: int,
    solver: Solver = PLAIN,
    best: bool = False,
) -> Accuracy:
    """Score a classifier from a cold start.

    Args:
        model: any mode; it is frozen here.
        data: without augmentation.
        config: the input normalisation.
        evaluations: of f per image.
        solver, best: as for ``evaluate``.
    """
    frozen = model.freeze()
    loader: DataLoader[Any] = DataLoader(data, EVALUATION_BATCH)  # type: ignore[arg-type]
    residuals: list[Tensor] = []

    def answers() -> Iterator[tuple[Tensor, Tensor]]:
        for image, target in loader:
            x = normalise(image.to(next(frozen.parameters()).device).float() / 255, config)
            u = frozen.inject(x)
            z0 = frozen.zero_state(u)
            solution = solve(frozen.bind(u), z0, solver, evaluations, best=best)
            residuals.append(solution.residual)
            yield frozen.readout(solution.value), target

    per_class, balanced, share = accuracy(answers(), model.config.classes)
    return Accuracy(share, balanced, per_class, float(torch.cat(residuals).mean()))


@torch.no_grad()
def spectral_radii(model: MDEQ, images: Sequence[NDArray[np.uint8]], config: InputConfig) -> Tensor:
    """The spectral radius of f's Jacobian at each image's equilibrium, (B,).

    Args:
        model: any mode; it is frozen here.
        images: (3, H, W) uint8 of the input's size.
        config: the input normalisation.
    """
    frozen = model.freeze()
    device = next(frozen.parameters()).device
    radii = []
    for image in map(torch.from_numpy, images):
        u = frozen.inject(normalise(image[None].to(device).float() / 255, config))
        f = frozen.bind(u)
        solution = solve(f, frozen.zero_state(u), Anderson(), REFERENCE_EVALUATIONS, best=True)
        radii.append(spectral_radius(f, solution.iterate).value)
    return torch.cat(radii)


def accuracy(
    answers: Iterator[tuple[Tensor, Tensor]], classes: int
) -> tuple[NDArray[np.float64], float, float]:
    """As ``class_accuracy``: share of right answers per class, its mean, the share over all.

    Args:
        answers: logits (B, classes) and targets (B,), batch by batch.
        classes: how many there are.
    """
    confusion = confusion_matrix(classes)
    for logits, target in answers:
        confusion.update(logits.argmax(dim=1).cpu(), target.cpu())
    return class_accuracy(confusion.compute().numpy())


def confusion_matrix(classes: int, ignored: int | None = None) -> MulticlassConfusionMatrix:
    """Torchmetrics' own, without its sums over ranks: each scores all of the data."""
    return MulticlassConfusionMatrix(classes, ignore_index=ignored, sync_on_compute=False)
