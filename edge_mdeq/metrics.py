"""The task metrics, from a confusion matrix: rows are the truth, columns the answers. No torch."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["class_accuracy", "confusion_matrix", "mean_iou"]


def confusion_matrix(
    truth: NDArray[np.integer[Any]],
    answer: NDArray[np.integer[Any]],
    classes: int,
    ignored: int | None = None,
) -> NDArray[np.int64]:
    """How often each class was answered for each, (classes, classes).

    Args:
        truth, answer: class indices, of one shape.
        classes: how many there are.
        ignored: the truth of what counts nowhere.

    Raises:
        ValueError: an index that is no class.
    """
    if ignored is not None:
        labelled = truth != ignored
        truth, answer = truth[labelled], answer[labelled]
    if truth.size and max(int(truth.max()), int(answer.max())) >= classes:
        raise ValueError(f"an index is none of {classes} classes")
    pairs = truth.astype(np.int64).ravel() * classes + answer.ravel()
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def mean_iou(confusion: NDArray[np.integer[Any]]) -> tuple[NDArray[np.float64], float]:
    """IoU per class (NaN where a class neither occurs nor is predicted) and their mean."""
    matrix = confusion.astype(np.float64)
    hit = np.diag(matrix)
    union = matrix.sum(axis=0) + matrix.sum(axis=1) - hit
    iou = np.where(union > 0, hit / np.maximum(union, 1), np.nan)
    return iou, float(np.nanmean(iou))


def class_accuracy(confusion: NDArray[np.integer[Any]]) -> tuple[NDArray[np.float64], float, float]:
    """Share of right answers per class (NaN where it does not occur), their mean (balanced
    accuracy), and the share over all.
    """
    matrix = confusion.astype(np.float64)
    hit, total = np.diag(matrix), matrix.sum(axis=1)
    per_class = np.where(total > 0, hit / np.maximum(total, 1), np.nan)
    return per_class, float(np.nanmean(per_class)), float(hit.sum() / total.sum())
