"""The losses against their definitions, void pixels, class weights; and what a task opens."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_data import CIFAR_LABELS, LABELS
from tiny_training import CLASSIFIER, SEGMENTER
from torch import Tensor

from edge_mdeq.datasets import IGNORED, class_frequencies
from edge_mdeq.errors import DataError
from edge_mdeq.training.objective import (
    Classification,
    Segmentation,
    cross_entropy,
    lovasz_softmax,
    make_objective,
    over_ranks,
    root_weights,
    total_weight,
)
from edge_mdeq.training.recipe import LossConfig, Recipe

CLASSES = 4


def example(seed: int = 0, batch: int = 3, void: float = 0.3) -> tuple[Tensor, Tensor]:
    """Logits (batch, 4, 6, 8) in double precision, and targets with a share of void."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, CLASSES, 6, 8, generator=generator, dtype=torch.float64)
    target = torch.randint(0, CLASSES, (batch, 6, 8), generator=generator)
    target[torch.rand(batch, 6, 8, generator=generator) < void] = IGNORED
    return logits, target


def segmentation(data: Path, loss: LossConfig) -> Segmentation:
    objective = make_objective(replace(SEGMENTER, loss=loss), data)
    assert isinstance(objective, Segmentation)
    return objective


# Cross entropy


@pytest.mark.parametrize("weights", [None, torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=torch.float64)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_the_weighted_mean_over_labelled_pixels(
    weights: Tensor | None, smoothing: float
) -> None:
    logits, target = example()
    total, norm = 0.0, 0.0
    w = torch.ones(CLASSES) if weights is None else weights
    for b, y, x in np.argwhere(target.numpy() != IGNORED):
        label = int(target[b, y, x])
        logs = logits[b, :, y, x].log_softmax(dim=0)
        total += float(-(1 - smoothing) * w[label] * logs[label])
        total += float(-smoothing / CLASSES * (w * logs).sum())
        norm += float(w[label])
    count = total_weight(target, weights, IGNORED)
    assert float(count) == pytest.approx(norm)
    loss = cross_entropy(logits, target, weights, smoothing, count, IGNORED)
    assert float(loss) == pytest.approx(total / norm)


def test_with_the_whole_batch_s_count_the_parts_mean_is_the_whole() -> None:
    """Parts with more void count less, as they do in one batch."""
    logits, target = example(batch=4)
    target[0] = IGNORED
    weights = torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=torch.float64)
    parts = list(zip(logits.chunk(2), target.chunk(2), strict=True))
    whole = cross_entropy(
        logits, target, weights, 0.1, total_weight(target, weights, IGNORED), IGNORED
    )
    counts = [total_weight(part, weights, IGNORED) for _, part in parts]
    count = torch.stack(counts).mean()
    losses = [cross_entropy(a, b, weights, 0.1, count, IGNORED) for a, b in parts]
    assert float(torch.stack(losses).mean()) == pytest.approx(float(whole))
    own = [
        cross_entropy(a, b, weights, 0.1, c, IGNORED)
        for (a, b), c in zip(parts, counts, strict=True)
    ]
    assert float(torch.stack(own).mean()) != pytest.approx(float(whole), rel=1e-3)


def test_class_255_of_a_classifier_is_a_class() -> None:
    logits = torch.zeros(2, 1000)
    target = torch.tensor([255, 3])
    assert float(total_weight(target, None)) == 2
    loss = cross_entropy(logits, target, None, 0.0, total_weight(target, None))
    assert float(loss) == pytest.approx(math.log(1000))


# Lovasz


def jaccard_loss(wrong: set[int], truth: set[int]) -> float:
    """1 - IoU of a class when the pixels ``wrong`` are mistaken (arXiv:1705.08790, eq. 5)."""
    return len(wrong) / len(truth | wrong) if truth | wrong else 0.0


def lovasz_extension(errors: list[float], truth: set[int]) -> float:
    """The Lovasz extension of ``jaccard_loss`` by its definition (eq. 7)."""
    order = sorted(range(len(errors)), key=lambda k: -errors[k])
    value, before = 0.0, 0.0
    for k in range(len(order)):
        after = jaccard_loss(set(order[: k + 1]), truth)
        value += errors[order[k]] * (after - before)
        before = after
    return value


@pytest.mark.parametrize("seed", range(4))
def test_lovasz_is_the_extension_of_the_jaccard_loss(seed: int) -> None:
    logits, target = example(seed)
    if seed == 3:
        target[target == 2] = 1  # a class that does not occur
    labelled = target != IGNORED
    probability = logits.softmax(dim=1).permute(0, 2, 3, 1)[labelled].tolist()
    truth = target[labelled].tolist()
    values = []
    for label in range(CLASSES):
        members = {k for k, t in enumerate(truth) if t == label}
        errors = [abs((k in members) - p[label]) for k, p in enumerate(probability)]
        values.append(lovasz_extension(errors, members))
    assert float(lovasz_softmax(logits, target)) == pytest.approx(sum(values) / CLASSES)


def test_lovasz_s_gradient_is_that_of_finite_differences() -> None:
    logits, target = example(batch=1)
    assert torch.autograd.gradcheck(lambda x: lovasz_softmax(x, target), (logits.requires_grad_(),))


def test_certain_answers_cost_one_minus_the_mean_iou() -> None:
    _, target = example()
    seen = target.roll(1, dims=2).clamp(max=CLASSES - 1)
    logits = 100.0 * F.one_hot(seen, CLASSES).permute(0, 3, 1, 2)
    labelled = target != IGNORED
    a, b = seen[labelled], target[labelled]
    ious = [
        float(((a == k) & (b == k)).sum() / ((a == k) | (b == k)).sum()) for k in range(CLASSES)
    ]
    assert float(lovasz_softmax(logits, target)) == pytest.approx(1 - sum(ious) / CLASSES)


# Both, as training uses them


@pytest.mark.parametrize("lovasz", [0.0, 0.5])
@pytest.mark.parametrize("weights", ["none", "sqrt"])
def test_an_all_void_batch_costs_nothing_and_teaches_nothing(
    camvid: Path, lovasz: float, weights: str
) -> None:
    objective = segmentation(camvid, LossConfig(weights, lovasz))  # type: ignore[arg-type]
    logits = torch.randn(2, 3, 8, 8, requires_grad=True)
    target = torch.full((2, 8, 8), IGNORED)
    loss = objective.loss(logits, target)
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == 0
    assert logits.grad is not None
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("lovasz", [0.0, 0.5])
def test_a_perfect_answer_costs_nothing(camvid: Path, lovasz: float) -> None:
    objective = segmentation(camvid, LossConfig(lovasz=lovasz))
    target = torch.from_numpy(objective.val_set[0][1])[None].long()
    logits = 20.0 * F.one_hot(target.clamp(max=2), 3).permute(0, 3, 1, 2)
    assert float(objective.loss(logits, target)) < 1e-4


@pytest.mark.parametrize("lovasz", [0.0, 0.5])
def test_void_pixels_do_not_enter_the_loss(camvid: Path, lovasz: float) -> None:
    objective = segmentation(camvid, LossConfig(lovasz=lovasz))
    torch.manual_seed(0)
    target = torch.from_numpy(objective.val_set[0][1])[None].long()
    target[:, 20:] = IGNORED
    logits = torch.randn(1, 3, 32, 32)
    before = objective.loss(logits, target)
    logits[:, :, 20:] = torch.randn(1, 3, 12, 32)
    assert float(objective.loss(logits, target)) == pytest.approx(float(before))
    assert float(before) > 0


def test_lovasz_looks_at_every_second_pixel_of_either_axis(camvid: Path) -> None:
    logits, target = torch.randn(2, 3, 16, 16), torch.randint(0, 3, (2, 16, 16))
    plain = segmentation(camvid, LossConfig("none", lovasz=0.0)).loss(logits, target)
    both = segmentation(camvid, LossConfig("none", lovasz=0.7)).loss(logits, target)
    surrogate = lovasz_softmax(logits[..., ::2, ::2], target[..., ::2, ::2])
    assert float(both) == pytest.approx(float(plain + 0.7 * surrogate))


def test_without_several_processes_there_is_nothing_to_gather() -> None:
    x = torch.randn(2, 3)
    assert over_ranks(x) is x


# Class weights


def test_class_weights_are_roots_with_mean_one_over_the_pixels(camvid: Path) -> None:
    objective = segmentation(camvid, LossConfig("sqrt"))
    frequency = class_frequencies(objective.train_set, 3)
    weights = objective.weights
    assert weights is not None
    assert float((weights.double() * torch.from_numpy(frequency)).sum()) == pytest.approx(1)
    ratio = float(weights[1] / weights[0])
    assert ratio == pytest.approx(math.sqrt(frequency[0] / frequency[1]))
    assert segmentation(camvid, LossConfig("none")).weights is None


def test_so_are_those_of_images(folder: Path) -> None:
    for path in list((folder / "train" / "disc").iterdir())[:2]:
        path.unlink()
    recipe = replace(CLASSIFIER, loss=LossConfig("sqrt", lovasz=0.0))
    objective = make_objective(recipe, folder)
    expected = root_weights(np.array([2, 4, 4]) / 10)  # "box" is the first, "disc" the second
    assert isinstance(objective, Classification)
    assert objective.weights is not None
    assert torch.equal(objective.weights, expected[[1, 0, 2]])


def test_given_weights_are_taken_as_they_are(camvid: Path, folder: Path) -> None:
    """Also where a class never occurs: nothing is counted."""
    given = (0.5, 1.0, 1.5)
    for recipe, data in ((SEGMENTER, camvid), (CLASSIFIER, folder)):
        weighted = replace(recipe, loss=replace(recipe.loss, class_weights=given))
        objective = make_objective(weighted, data)
        assert isinstance(objective, Segmentation | Classification)
        assert objective.weights is not None
        assert objective.weights.tolist() == list(given)


def test_a_class_that_never_occurs_cannot_be_weighted(camvid: Path) -> None:
    wide = replace(
        SEGMENTER,
        model=replace(SEGMENTER.model, classes=4),
        data=replace(SEGMENTER.data, labels=(*LABELS, "cone"), palette=((0, 0, 0),) * 4),
    )
    with pytest.raises(DataError, match=r"classes \[3\] never occur"):
        make_objective(wide, camvid)


# What a task opens


def test_segmentation_trains_on_files_as_they_are_and_validates_at_the_input_s_size(
    camvid: Path,
) -> None:
    objective = make_objective(SEGMENTER, camvid)
    assert tuple(objective.train_set[0][0].shape) == (3, 40, 56)
    assert tuple(objective.val_set[0][0].shape) == (3, 32, 32)
    assert objective.labels == LABELS
    assert objective.headline == "miou"


def test_training_may_see_less_than_the_input(camvid: Path) -> None:
    recipe = replace(SEGMENTER, augment=replace(SEGMENTER.augment, crop=(16, 24)))
    objective = make_objective(recipe, camvid)
    image, mask = (torch.from_numpy(x)[None] for x in objective.train_set[0])
    cropped, labels = objective.augmentation()(image, mask)
    assert (tuple(cropped.shape), tuple(labels.shape)) == ((1, 3, 16, 24), (1, 16, 24))
    assert tuple(objective.val_set[0][0].shape) == (3, 32, 32)


def test_classification_augments_what_it_trains_on_alone(folder: Path) -> None:
    objective = make_objective(CLASSIFIER, folder)
    first, again = objective.train_set[0][0], objective.val_set[0][0]
    objective.train_set.epoch = objective.val_set.epoch = 1
    assert (objective.train_set[0][0] != first).any()
    assert (objective.val_set[0][0] == again).all()
    assert objective.labels == ("box", "disc", "ground")


def cifar_recipe(classes: int) -> Recipe:
    return replace(
        CLASSIFIER,
        model=replace(CLASSIFIER.model, classes=classes),
        data=replace(CLASSIFIER.data, layout="cifar10"),
    )


def test_cifar_has_ten_classes(cifar: Path) -> None:
    assert make_objective(cifar_recipe(10), cifar).labels == CIFAR_LABELS
    with pytest.raises(
        DataError, match=r"CIFAR-10 has 10 classes, the model 3; set model\.classes = 10"
    ):
        make_objective(cifar_recipe(3), cifar)


def test_the_layout_of_cityscapes_gives_the_same_items(camvid: Path, cityscapes: Path) -> None:
    there = replace(SEGMENTER, data=replace(SEGMENTER.data, layout="cityscapes"))
    ours, theirs = make_objective(SEGMENTER, camvid), make_objective(there, cityscapes)
    for index in range(2):
        for a, b in zip(ours.val_set[index], theirs.val_set[index], strict=True):
            assert (a == b).all()
