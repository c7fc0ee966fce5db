"""Mean IoU of a torch model by number of evaluations, cold and warm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torchmetrics.classification import MulticlassConfusionMatrix

from edge_mdeq.config import InputConfig
from edge_mdeq.model import MDEQ
from edge_mdeq.solvers import FixedPoint, solve
from edge_mdeq.training.data import IGNORED, SegmentationFolder
from edge_mdeq.training.task import normalise, upsample

__all__ = ["Score", "evaluate", "mean_iou"]


@dataclass(frozen=True)
class Score:
    """Mean IoU over the classes that occur, IoU per class (classes,), and the mean residual."""

    miou: float
    iou: NDArray[np.float64]
    residual: float


@torch.no_grad()
def evaluate(
    model: MDEQ,
    data: SegmentationFolder,
    config: InputConfig,
    evaluations: int,
    warm: bool = False,
) -> Score:
    """Score ``model`` on ``data``, whose items have the input's size, one image at a time.

    Args:
        model: any mode; it is frozen here.
        data: in order; with ``warm`` each frame starts from the equilibrium of the one before.
        config: the input normalisation.
        evaluations: of f per frame, plain iteration.
        warm: carry the state (the first frame starts cold with as many evaluations).
    """
    frozen = model.freeze()
    device = next(frozen.parameters()).device
    confusion = MulticlassConfusionMatrix(model.config.classes, ignore_index=IGNORED).to(device)
    residuals, state = [], None
    for image, mask in (data[i] for i in range(len(data))):
        x = normalise(image[None].to(device).float() / 255, config)
        u = frozen.inject(x)
        z0 = state if warm and state is not None else frozen.zero_state(u)
        solution = solve(frozen.bind(u), z0, FixedPoint(), evaluations)
        state = solution.value
        residuals.append(float(solution.residual))
        logits = upsample(frozen.readout(state), x.shape[2:])
        confusion.update(logits.argmax(dim=1), mask[None].to(device).long())
    iou, miou = mean_iou(confusion.compute().cpu().numpy())
    return Score(miou, iou, float(np.mean(residuals)))


def mean_iou(confusion: NDArray[np.integer]) -> tuple[NDArray[np.float64], float]:
    """IoU per class (NaN where a class neither occurs nor is predicted) and their mean."""
    matrix = confusion.astype(np.float64)
    hit = np.diag(matrix)
    union = matrix.sum(axis=0) + matrix.sum(axis=1) - hit
    iou = np.where(union > 0, hit / np.maximum(union, 1), np.nan)
    return iou, float(np.nanmean(iou))


def curve(
    model: MDEQ, data: SegmentationFolder, config: InputConfig, counts: Sequence[int]
) -> dict[str, float]:
    """Mean IoU at each count, as ``miou_cold_N`` and ``miou_warm_N``."""
    scores = {}
    for count in counts:
        scores[f"miou_cold_{count}"] = evaluate(model, data, config, count).miou
        scores[f"miou_warm_{count}"] = evaluate(model, data, config, count, warm=True).miou
    return scores
