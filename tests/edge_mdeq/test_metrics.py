"""The metrics against matrices worked out by hand, plain counting, and torchmetrics' own."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_mdeq.metrics import class_accuracy, confusion_matrix, mean_iou

CLASSES, IGNORED = 5, 255


@pytest.fixture(scope="module")
def masks() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Truth with void, and answers; class 3 never occurs, class 4 is never answered."""
    rng = np.random.default_rng(0)
    truth = rng.choice(np.array([0, 1, 2, 4, IGNORED], dtype=np.uint8), (3, 20, 30))
    answer = rng.choice(np.array([0, 1, 2, 3], dtype=np.uint8), (3, 20, 30))
    return truth, answer


def test_a_confusion_matrix_counts_the_labelled_pixels(
    masks: tuple[NDArray[np.uint8], NDArray[np.uint8]],
) -> None:
    truth, answer = masks
    found = confusion_matrix(truth, answer, CLASSES, IGNORED)
    for row in range(CLASSES):
        for column in range(CLASSES):
            assert found[row, column] == ((truth == row) & (answer == column)).sum()
    assert found.sum() == (truth != IGNORED).sum()


def test_torchmetrics_counts_the_same(
    masks: tuple[NDArray[np.uint8], NDArray[np.uint8]],
) -> None:
    """Training counts with it, on its device."""
    torch = pytest.importorskip("torch")
    from edge_mdeq.training.evaluate import confusion_matrix as of_training

    theirs = of_training(CLASSES, IGNORED)
    truth, answer = (torch.from_numpy(x).long() for x in masks)
    for index in range(len(truth)):
        theirs.update(answer[index], truth[index])
    found = confusion_matrix(*masks, CLASSES, IGNORED)
    np.testing.assert_array_equal(found, theirs.compute().numpy())


def test_without_labelled_pixels_nothing_is_counted() -> None:
    void = np.full((4, 4), IGNORED, dtype=np.uint8)
    assert not confusion_matrix(void, void, 3, IGNORED).any()


@pytest.mark.parametrize("wrong", ["truth", "answer"])
def test_an_index_that_is_no_class_is_an_error(wrong: str) -> None:
    fine, strange = np.array([0, 1]), np.array([0, 2])
    pair = (strange, fine) if wrong == "truth" else (fine, strange)
    with pytest.raises(ValueError, match="none of 2 classes"):
        confusion_matrix(*pair, 2)


def test_mean_iou_of_a_confusion_matrix_worked_out_by_hand() -> None:
    """Rows are the truth: class 0 has 3 hits of 5 in the union, 1 has 2 of 3, 2 has none of 1."""
    iou, mean = mean_iou(np.array([[3, 1, 0], [0, 2, 0], [1, 0, 0]]))
    np.testing.assert_allclose(iou, [3 / 5, 2 / 3, 0])
    assert mean == pytest.approx((3 / 5 + 2 / 3) / 3)


def test_a_class_that_neither_occurs_nor_is_predicted_does_not_count() -> None:
    iou, mean = mean_iou(np.array([[2, 0, 0], [0, 0, 0], [2, 0, 4]]))
    assert np.isnan(iou[1])
    assert mean == pytest.approx((2 / 4 + 4 / 6) / 2)


def test_accuracies_of_a_confusion_matrix_worked_out_by_hand() -> None:
    per_class, balanced, share = class_accuracy(np.array([[3, 1, 0], [0, 0, 0], [0, 0, 1]]))
    np.testing.assert_allclose(per_class, [3 / 4, np.nan, 1])
    assert balanced == pytest.approx(7 / 8)
    assert share == pytest.approx(4 / 5)
