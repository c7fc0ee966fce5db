"""Training by a recipe, end to end: from a folder of images to weights with their card."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_data import LABELS, VOID, write_camvid, write_folder
from tiny_training import CLASSIFIER, SEGMENTER, log_of, same_weights, write_recipe
from typer.testing import CliRunner

from edge_mdeq.cli import app
from edge_mdeq.datasets import ImageFolder, SegmentationFolder
from edge_mdeq.errors import ConfigError, DataError, EdgeMdeqError
from edge_mdeq.training.evaluate import evaluate, evaluate_classifier
from edge_mdeq.training.loop import train
from edge_mdeq.training.recipe import (
    AugmentConfig,
    FinishConfig,
    GradientConfig,
    JacobianConfig,
    LossConfig,
    Recipe,
)
from edge_mdeq.weights import load_weights

Run = tuple[Path, Path]  # the dataset, and the folder of a finished run on it


@pytest.fixture(scope="module")
def segmented(tmp_path_factory: pytest.TempPathFactory) -> Run:
    root = tmp_path_factory.mktemp("segmented")
    train(SEGMENTER, write_camvid(root / "data"), root / "run")
    return root / "data", root / "run"


@pytest.fixture(scope="module")
def classified(tmp_path_factory: pytest.TempPathFactory) -> Run:
    root = tmp_path_factory.mktemp("classified")
    train(CLASSIFIER, write_folder(root / "data"), root / "run")
    return root / "data", root / "run"


@pytest.fixture(params=["segmented", "classified"])
def run(request: pytest.FixtureRequest) -> Run:
    """A finished run of either task."""
    done: Run = request.getfixturevalue(request.param)
    return done


# What a run leaves


def test_a_run_leaves_weights_card_log_metrics_and_checkpoint(run: Run) -> None:
    names = sorted(p.name for p in run[1].iterdir())
    assert names == [
        "checkpoint.pt", "log.jsonl", "metrics.json", "tensorboard", "weights.json",
        "weights.safetensors",
    ]  # fmt: skip


def test_the_card_says_what_was_trained(segmented: Run, classified: Run) -> None:
    _, card = load_weights(segmented[1])
    assert (card.model, card.input, card.labels) == (SEGMENTER.model, SEGMENTER.input, LABELS)
    assert (card.palette, card.provenance) == (SEGMENTER.data.palette, SEGMENTER.provenance)
    _, card = load_weights(classified[1])
    assert (card.model, card.provenance) == (CLASSIFIER.model, CLASSIFIER.provenance)
    assert card.labels == ("box", "disc", "ground")  # the folders


def test_the_card_s_metrics_are_those_of_the_weights(segmented: Run) -> None:
    model, card = load_weights(segmented[1])
    held_out = SegmentationFolder(segmented[0], "val", 3, (VOID,), (32, 32))
    for count in (1, 2):
        for start, warm in (("cold", False), ("warm", True)):
            score = evaluate(model, held_out, card.input, count, warm)
            assert card.metrics[f"miou_{start}_{count}"] == pytest.approx(score.miou, abs=1e-4)
    assert len(card.metrics) == 4
    unrounded = json.loads((segmented[1] / "metrics.json").read_text())
    assert card.metrics == {name: round(value, 4) for name, value in unrounded.items()}


def test_so_are_a_classifier_s(classified: Run) -> None:
    model, card = load_weights(classified[1])
    held_out = ImageFolder(classified[0], "val", 3, card.labels, (32, 32))
    for count in (1, 2):
        score = evaluate_classifier(model, held_out, card.input, count)
        assert card.metrics[f"accuracy_cold_{count}"] == pytest.approx(score.accuracy, abs=1e-4)
    assert len(card.metrics) == 2


def test_the_log_has_an_entry_per_epoch_and_validates_as_told(segmented: Run) -> None:
    log = log_of(segmented[1])
    assert [entry["epoch"] for entry in log] == [1, 2, 3]
    assert [entry["step"] for entry in log] == [3, 6, 9]
    assert ["miou" in entry for entry in log] == [False, True, True]  # every 2, and the last
    assert {"loss", "jacobian", "residual", "lr"} <= set(log[0])


def test_the_loss_falls(tmp_path: Path, segmented: Run, classified: Run) -> None:
    losses = [entry["loss"] for entry in log_of(segmented[1])]
    assert losses[-1] < 0.85 * losses[0]
    longer = replace(CLASSIFIER, optim=replace(CLASSIFIER.optim, epochs=10))
    train(longer, classified[0], tmp_path / "run")
    log = log_of(tmp_path / "run")
    assert log[-1]["loss"] < 0.9 * log[0]["loss"]
    assert log[-1]["accuracy"] > 0.6  # chance is a third


# Recipes


SHORT = {"epochs": 2, "batch": 3}


@pytest.mark.parametrize(
    "changes",
    [
        {"gradient": GradientConfig("implicit", steps=4, tol=1e-3)},
        {"gradient": GradientConfig("implicit", steps=4, solver="broyden", recompute=True)},
        {"solver": replace(SEGMENTER.solver, name="anderson", pretrain_steps=0)},
        {"solver": replace(SEGMENTER.solver, name="broyden", tol=1e-2, stop_mode="abs")},
        {"model": replace(SEGMENTER.model, channels=(8, 8, 16), dropout=0.2)},
        {"loss": LossConfig("none", lovasz=0.0), "jacobian": JacobianConfig(weight=0.0)},
        {"optim": replace(SEGMENTER.optim, name="sgd", nesterov=True, decay_all=True, clip_norm=0)},
        {"optim": replace(SEGMENTER.optim, name="adam", ema_decay=0.0, batch=3, accumulate=3)},
    ],
    ids=[
        "implicit gradient", "implicit, Broyden, recomputed", "Anderson from the start",
        "Broyden to a tolerance", "3 scales and dropout", "plain loss", "SGD", "Adam, accumulated",
    ],
)  # fmt: skip
def test_every_kind_of_recipe_runs(camvid: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    recipe = replace(SEGMENTER, **changes)
    recipe = replace(recipe, optim=replace(recipe.optim, **SHORT))
    weights = train(recipe, camvid, tmp_path / "run")
    assert all(bool(x.isfinite().all()) for x in load_file(weights).values())
    assert len(log_of(tmp_path / "run")) == 2


def test_cityscapes_trains_as_camvid_does(camvid: Path, cityscapes: Path, tmp_path: Path) -> None:
    there = replace(SEGMENTER, data=replace(SEGMENTER.data, layout="cityscapes"))
    train(there, cityscapes, tmp_path / "run")
    assert log_of(tmp_path / "run")[-1]["loss"] < log_of(tmp_path / "run")[0]["loss"]


def test_cifar_trains_with_padded_crops(cifar: Path, tmp_path: Path) -> None:
    recipe = replace(
        CLASSIFIER,
        model=replace(CLASSIFIER.model, classes=10),
        data=replace(CLASSIFIER.data, layout="cifar10"),
        augment=AugmentConfig(pad=4, brightness=0, contrast=0, saturation=0, hue=0),
        optim=replace(CLASSIFIER.optim, epochs=2),
    )
    _, card = load_weights(train(recipe, cifar, tmp_path / "run"))
    assert card.labels[:2] == ("airplane", "automobile")
    assert log_of(tmp_path / "run")[-1]["step"] == 10


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # torch forks
@pytest.mark.parametrize("task", ["segmented", "classified"])
def test_reading_ahead_without_a_cache_changes_nothing(
    request: pytest.FixtureRequest, tmp_path: Path, task: str
) -> None:
    data, out = request.getfixturevalue(task)
    recipe = SEGMENTER if task == "segmented" else CLASSIFIER
    ahead = replace(recipe, data=replace(recipe.data, cache=False, workers=1))
    assert same_weights(train(ahead, data, tmp_path / "run"), out / "weights.safetensors")


def test_the_last_phase_comes_after_the_epochs_of_the_first(camvid: Path, tmp_path: Path) -> None:
    finish = FinishConfig(epochs=1, lr=0.05, evaluations=(1, 1), jacobian_frequency=1.0)
    recipe = replace(SEGMENTER, optim=replace(SEGMENTER.optim, epochs=2), finish=finish)
    train(recipe, camvid, tmp_path / "run")
    log = log_of(tmp_path / "run")
    assert [entry["epoch"] for entry in log] == [1, 2, 3]
    assert log[1]["lr"] < log[2]["lr"]
    assert log[2]["jacobian"] > 0


def test_frozen_norms_keep_their_statistics(camvid: Path, tmp_path: Path) -> None:
    for freeze in (True, False):
        optim = replace(SEGMENTER.optim, epochs=1, freeze_norm=freeze)
        path = train(replace(SEGMENTER, optim=optim), camvid, tmp_path / f"run-{freeze}")
        tensors = load_file(path)
        means = [x for key, x in tensors.items() if key.endswith("running_mean")]
        assert len(means) == 4
        assert all(torch.equal(x, torch.zeros_like(x)) for x in means) == freeze


# What is refused before anything was trained


def drop_class(data: Path) -> None:
    for path in (data / "val" / "disc").iterdir():
        path.unlink()


def spoil_photograph(data: Path) -> None:
    (data / "val" / "disc" / "003.jpg").write_bytes(b"\xff\xd8 nothing")


def spoil_mask(data: Path) -> None:
    (data / "valannot" / "001.png").unlink()


def spoil_image(data: Path) -> None:
    raw = (data / "val" / "001.png").read_bytes()
    (data / "val" / "001.png").write_bytes(raw[:-100])


@pytest.mark.parametrize(
    ("recipe", "spoil", "message"),
    [
        (CLASSIFIER, drop_class, "val/disc holds no images"),
        (CLASSIFIER, spoil_photograph, r"val/disc/003\.jpg cannot be decoded"),
        (SEGMENTER, spoil_mask, r"val/001\.png has no mask"),
        (SEGMENTER, spoil_image, r"val/001\.png is truncated"),
    ],
)
def test_bad_validation_data_is_found_before_training(
    tmp_path: Path, recipe: Recipe, spoil: Callable[[Path], None], message: str
) -> None:
    write = write_folder if recipe is CLASSIFIER else write_camvid
    data = write(tmp_path / "data")
    spoil(data)
    with pytest.raises(DataError, match=message):
        train(recipe, data, tmp_path / "run", progress=lambda *_: pytest.fail("it trained"))
    assert list((tmp_path / "run").iterdir()) == []


def test_an_output_folder_that_cannot_be_made_is_refused(camvid: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot make the folder"):
        train(SEGMENTER, camvid, tmp_path / "file")


# The command


def invoke(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_trains_and_names_the_next_one(run: Run, tmp_path: Path) -> None:
    data, out = run
    recipe = SEGMENTER if "segmented" in str(out) else CLASSIFIER
    path = write_recipe(recipe, tmp_path / "recipe.toml")
    result = invoke("train", path, "--data", data, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    weights = tmp_path / "run" / "weights.safetensors"
    assert f"wrote {weights}" in result.output
    assert f"next: edge-mdeq export {weights} -o tiny.mdeq" in result.output
    assert same_weights(weights, out / "weights.safetensors")


def test_the_command_s_seed_goes_before_the_recipe_s(segmented: Run, tmp_path: Path) -> None:
    data, out = segmented
    path = write_recipe(SEGMENTER, tmp_path / "recipe.toml")
    result = invoke("train", path, "--data", data, "--out", tmp_path / "run", "--seed", "5")
    assert result.exit_code == 0, result.output
    other = train(replace(SEGMENTER, seed=5), data, tmp_path / "other")
    assert same_weights(tmp_path / "run" / "weights.safetensors", other)
    assert not same_weights(other, out / "weights.safetensors")


def test_the_command_s_errors_are_ours(tmp_path: Path) -> None:
    path = write_recipe(SEGMENTER, tmp_path / "recipe.toml")
    result = invoke("train", path, "--data", tmp_path / "absent", "--out", tmp_path / "run")
    assert isinstance(result.exception, EdgeMdeqError)  # which ``main`` turns into one line
