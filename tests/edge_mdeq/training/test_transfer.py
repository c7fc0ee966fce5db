"""Starting from other weights: a classifier's body becomes a segmentation model's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_training import CLASSIFIER, SEGMENTER

from edge_mdeq.config import InputConfig, ModelCard, ModelConfig
from edge_mdeq.errors import WeightsError
from edge_mdeq.model import MDEQ
from edge_mdeq.training.loop import train
from edge_mdeq.training.transfer import transfer
from edge_mdeq.weights import save_weights

Build = Callable[..., MDEQ]

SEGMENTATION = SEGMENTER.model
BODY = replace(CLASSIFIER.model, downsample_times=2)  # of the same stem and cell


def save(model: MDEQ, path: Path) -> Path:
    save_weights(model, ModelCard(model.config, InputConfig(32, 32)), path)
    return path


def test_a_classifier_s_stem_and_cell_start_a_segmentation_model(
    tmp_path: Path, build: Build
) -> None:
    source, model = build(BODY), build(SEGMENTATION, seed=1)
    fresh = {key: value.clone() for key, value in model.state_dict().items()}
    assert transfer(save(source, tmp_path / "a.safetensors"), model) is False
    taken = source.state_dict()
    for key, value in model.state_dict().items():
        expected = fresh[key] if key.startswith("readout.") else taken[key]
        assert torch.equal(value, expected), key


def test_the_same_model_is_taken_whole(tmp_path: Path, build: Build) -> None:
    source, model = build(SEGMENTATION), build(SEGMENTATION, seed=1)
    assert transfer(save(source, tmp_path / "a.safetensors"), model) is True
    taken = source.state_dict()
    assert all(torch.equal(value, taken[key]) for key, value in model.state_dict().items())


def test_another_number_of_classes_keeps_the_fresh_readout(tmp_path: Path, build: Build) -> None:
    source, model = build(SEGMENTATION), build(replace(SEGMENTATION, classes=5), seed=1)
    fresh = {key: value.clone() for key, value in model.readout.state_dict().items()}
    assert transfer(save(source, tmp_path / "a.safetensors"), model) is False
    assert all(torch.equal(value, fresh[key]) for key, value in model.readout.state_dict().items())
    assert torch.equal(model.inject.stem[0].weight, source.inject.stem[0].weight)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (replace(BODY, channels=(16, 16)), r"inject\.stem\.0\.weight is \(16, 3, 3, 3\), not \(8,"),
        (replace(BODY, expansion=3), r"cell\.blocks\.0\.conv1\.weight is \(24, 8"),
        (
            replace(BODY, channels=(8, 16, 16), head_channels=(4, 8, 8)),
            r"unexpected cell\.blocks\.2\.conv1\.weight.*\(and \d+ more\)",
        ),
        (replace(BODY, post_norm_affine=False), r"missing cell\.post\.0\.norm\.weight"),
    ],
)
def test_another_stem_or_cell_is_refused_and_named(
    tmp_path: Path, build: Build, other: ModelConfig, message: str
) -> None:
    path = save(build(other), tmp_path / "other.safetensors")
    model = build(SEGMENTATION)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(
        WeightsError, match=r"other\.safetensors cannot start this model.*" + message
    ):
        transfer(path, model)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_a_run_starts_from_them(camvid: Path, tmp_path: Path, build: Build) -> None:
    """At a learning rate of 0 it also ends with them, but for the readout's fresh start."""
    still = replace(SEGMENTER, optim=replace(SEGMENTER.optim, epochs=1, lr=0.0, freeze_norm=True))
    path = save(build(BODY), tmp_path / "body.safetensors")
    trained = train(still, camvid, tmp_path / "run", init=path)
    model = MDEQ(SEGMENTATION)
    assert transfer(trained, model) is True
    taken = build(BODY).state_dict()
    for key, value in model.state_dict().items():
        if not key.startswith("readout.") and not key.endswith("num_batches_tracked"):
            torch.testing.assert_close(value, taken[key])


def test_a_missing_start_is_refused_before_training(camvid: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"absent\.safetensors does not exist"):
        train(SEGMENTER, camvid, tmp_path / "run", init=tmp_path / "absent.safetensors")
