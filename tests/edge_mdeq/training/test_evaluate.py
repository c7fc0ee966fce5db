"""Scores against an independent computation in NumPy, and their curves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tiny_data import LABELS, VOID, write_image
from tiny_training import CLASSIFIER, SEGMENTER

from edge_mdeq.config import InputConfig
from edge_mdeq.datasets import IGNORED, ImageFolder, SegmentationFolder
from edge_mdeq.model import MDEQ
from edge_mdeq.solvers import Broyden, solve
from edge_mdeq.training.equilibrium import normalise
from edge_mdeq.training.evaluate import (
    accuracy,
    evaluate,
    evaluate_classifier,
    spectral_radii,
)
from edge_mdeq.training.loop import validate
from edge_mdeq.training.objective import make_objective

Build = Callable[..., MDEQ]

EVALUATIONS = 3


def val_masks(data: Path) -> SegmentationFolder:
    return SegmentationFolder(data, "val", 3, (VOID,), (32, 32))


def iterate(
    model: MDEQ, image: torch.Tensor, z: tuple[torch.Tensor, ...] | None, count: int
) -> tuple[tuple[torch.Tensor, ...], float]:
    """``count`` evaluations from ``z`` or from zero; the state and the last residual."""
    u = model.inject(normalise(image[None] / 255, InputConfig(32, 32)))
    f = model.bind(u)
    z = model.zero_state(u) if z is None else z
    last = z
    for _ in range(count):
        last, z = z, f(z)
    change = sum(float((a - b).square().sum()) for a, b in zip(z, last, strict=True))
    return z, (change / sum(float(a.square().sum()) for a in z)) ** 0.5


def test_normalisation_is_per_channel() -> None:
    config = InputConfig(64, 64, mean=(0.0, 0.5, 1.0), std=(1.0, 0.5, 0.25))
    x = normalise(torch.ones(1, 3, 2, 2), config)
    assert x[0, :, 0, 0].tolist() == [1.0, 1.0, 0.0]


# Segmentation


def count_pixels(
    model: MDEQ, data: SegmentationFolder, warm: bool
) -> tuple[NDArray[np.float64], float]:
    """IoU per class and mean residual, by counting pixels in NumPy."""
    hits, unions, residuals, z = np.zeros(3), np.zeros(3), [], None
    with torch.no_grad():
        for image, mask in (map(torch.from_numpy, data[k]) for k in range(len(data))):
            z, residual = iterate(model, image, z if warm else None, EVALUATIONS)
            residuals.append(residual)
            logits = F.interpolate(
                model.readout(z), size=(32, 32), mode="bilinear", align_corners=True
            )
            seen, truth = logits.argmax(dim=1)[0].numpy(), mask.numpy()
            labelled = truth != IGNORED
            for k in range(3):
                hits[k] += ((seen == k) & (truth == k)).sum()
                unions[k] += (((seen == k) | (truth == k)) & labelled).sum()
    return hits / unions, float(np.mean(residuals))


@pytest.mark.parametrize("warm", [False, True])
def test_a_score_is_what_counting_pixels_gives(camvid: Path, build: Build, warm: bool) -> None:
    model, data = build(SEGMENTER.model), val_masks(camvid)
    iou, residual = count_pixels(model, data, warm)
    score = evaluate(model, data, SEGMENTER.input, EVALUATIONS, warm=warm)
    np.testing.assert_allclose(score.iou, iou, atol=2e-3)  # freezing rounds differently
    assert score.miou == pytest.approx(iou.mean(), abs=2e-3)
    assert score.residual == pytest.approx(residual, rel=1e-3)


def test_warm_starts_follow_the_order_of_the_frames(camvid: Path, build: Build) -> None:
    """The first frame starts cold; the second one from it, so that the order matters."""
    for kind in ("val", "valannot"):  # the same two frames again, the other way round
        for source, target in (("001", "002"), ("000", "003")):
            path = camvid / kind / f"{source}.png"
            (camvid / kind / f"{target}.png").write_bytes(path.read_bytes())
    model, data = build(SEGMENTER.model), val_masks(camvid)

    def residual(*indices: int) -> float:
        part = val_masks(camvid)
        part.pairs = [data.pairs[k] for k in indices]
        assert data.items is not None
        part.items = [data.items[k] for k in indices]
        return evaluate(model, part, SEGMENTER.input, EVALUATIONS, warm=True).residual

    cold = [residual(0), residual(1)]
    assert residual(0, 1) != pytest.approx(np.mean(cold), rel=1e-3)  # 1 started from 0
    assert residual(0, 1) != pytest.approx(residual(1, 0), rel=1e-4)
    assert residual(2, 3) == residual(1, 0)


def test_a_curve_has_a_cold_and_a_warm_value_at_each_count(camvid: Path, build: Build) -> None:
    objective, model = make_objective(SEGMENTER, camvid), build(SEGMENTER.model)
    curve = objective.curve(model, (1, 4))
    assert list(curve) == ["miou_cold_1", "miou_warm_1", "miou_cold_4", "miou_warm_4"]
    for key, value in curve.items():
        _, start, count = key.split("_")
        score = evaluate(model, val_masks(camvid), SEGMENTER.input, int(count), start == "warm")
        assert value == score.miou


@pytest.mark.parametrize("best", [False, True])
def test_the_recipe_s_own_solver_is_what_a_run_is_scored_with(
    camvid: Path, folder: Path, build: Build, best: bool
) -> None:
    """By residuals, which tell solvers apart where the few pixels' classes need not."""
    count, found = 7, []
    for recipe, data in ((SEGMENTER, camvid), (CLASSIFIER, folder)):
        solver = replace(recipe.solver, name="broyden", m=2, best=best)
        objective = make_objective(replace(recipe, solver=solver), data)
        model = build(recipe.model, seed=4)
        found.append(objective.score(model, count)["val_residual"])
        residuals = []
        for image, _ in (objective.val_set[k] for k in range(len(objective.val_set))):
            x = torch.from_numpy(image)[None] / 255
            u = model.inject(normalise(x, InputConfig(32, 32)))
            with torch.no_grad():
                z0 = model.zero_state(u)
                solution = solve(model.bind(u), z0, Broyden(2), count, best=best)
            residuals.append(float(solution.residual))
        assert found[-1] == pytest.approx(np.mean(residuals), rel=2e-2)  # freezing rounds
        plain = make_objective(recipe, data).score(model, count)["val_residual"]
        assert found[-1] != pytest.approx(plain, rel=5e-2)


def test_evaluating_leaves_the_model_as_it_was(camvid: Path, build: Build) -> None:
    model = build(SEGMENTER.model).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    evaluate(model, val_masks(camvid), SEGMENTER.input, 2)
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


# Classification


def val_images(data: Path) -> ImageFolder:
    return ImageFolder(data, "val", 3, LABELS, (32, 32))


def test_accuracy_is_what_counting_images_gives(folder: Path, build: Build) -> None:
    for k in range(4, 9):  # so that classes differ in size, and the last batch is not full
        write_image(folder / "val" / "disc" / f"{k}.png", np.full((32, 32, 3), 25 * k, np.uint8))
    model, data = build(CLASSIFIER.model, seed=3), val_images(folder)
    seen, residuals = [], []
    with torch.no_grad():
        for index in range(len(data)):
            z, residual = iterate(model, torch.from_numpy(data[index][0]), None, EVALUATIONS)
            seen.append(int(model.readout(z).argmax()))
            residuals.append(residual)
    right = np.array(seen) == np.array(data.targets)
    per_class = [right[np.array(data.targets) == k].mean() for k in range(3)]
    score = evaluate_classifier(model, data, CLASSIFIER.input, EVALUATIONS)
    assert 0 < right.mean() < 1  # or anything would do
    assert score.accuracy == pytest.approx(right.mean())
    np.testing.assert_allclose(score.per_class, per_class)
    assert score.balanced == pytest.approx(np.mean(per_class))
    assert score.balanced != pytest.approx(score.accuracy)
    assert score.residual == pytest.approx(np.mean(residuals), rel=1e-3)


def test_a_class_without_images_has_no_accuracy() -> None:
    answers = [
        (torch.eye(4)[[0, 1, 1]], torch.tensor([0, 1, 0])),
        (torch.eye(4)[[3]], torch.tensor([3])),
    ]
    per_class, balanced, share = accuracy(iter(answers), 4)
    assert share == pytest.approx(3 / 4)
    np.testing.assert_allclose(per_class, [1 / 2, 1, np.nan, 1])
    assert balanced == pytest.approx(5 / 6)


def test_a_classifier_s_curve_has_a_value_at_each_count(folder: Path, build: Build) -> None:
    objective, model = make_objective(CLASSIFIER, folder), build(CLASSIFIER.model)
    curve = objective.curve(model, (1, 5))
    assert list(curve) == ["accuracy_cold_1", "accuracy_cold_5"]
    assert curve["accuracy_cold_5"] == objective.score(model, 5)["accuracy"]


# Spectral radius


def test_validation_measures_the_spectral_radius_where_asked(folder: Path, build: Build) -> None:
    validation = replace(CLASSIFIER.validation, spectral_images=2)
    recipe = replace(CLASSIFIER, validation=validation)
    objective, model = make_objective(recipe, folder), build(CLASSIFIER.model)
    figures = validate(model, objective, recipe)
    images = [objective.val_set[k][0] for k in range(2)]
    radii = spectral_radii(model, images, recipe.input)
    assert figures["spectral_radius"] == pytest.approx(float(radii.mean()))
    assert figures["spectral_worst"] == pytest.approx(float(radii.max()))
    assert set(validate(model, objective, CLASSIFIER)) == set(figures) - {
        "spectral_radius",
        "spectral_worst",
    }
