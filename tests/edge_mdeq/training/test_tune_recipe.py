"""What a tuning is asked for: settings, and the recipe that weights and options make."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_training import SEGMENTER, write_recipe
from tuning import Trained, recipe_for

from edge_mdeq.config import ModelCard
from edge_mdeq.errors import ConfigError
from edge_mdeq.training.tune import TuneSettings, choose_recipe, tune
from edge_mdeq.weights import load_weights, save_weights


def test_half_as_many_evaluations_suffice_from_a_warm_start_by_default() -> None:
    assert [TuneSettings(k).warm for k in (1, 2, 3, 8)] == [1, 1, 1, 4]
    assert TuneSettings(4, warm=3).warm == 3
    assert TuneSettings(6, warm=5).counts == (1, 2, 3, 4, 5, 6, 8, 26)


@pytest.mark.parametrize("iterations", [0, -1, 26, 27])
def test_iterations_must_be_fewer_than_the_reference_s(iterations: int) -> None:
    with pytest.raises(
        ConfigError, match=rf"iterations is {iterations}, must be between 1 and .*26"
    ):
        TuneSettings(iterations)


def test_warm_evaluations_cannot_be_negative() -> None:
    with pytest.raises(ConfigError, match="warm is -1"):
        TuneSettings(2, warm=-1)


@pytest.mark.parametrize("weight", [-0.1, math.inf, math.nan])
@pytest.mark.parametrize("name", ["label", "cold_weight", "warm_weight", "far_weight"])
def test_a_weight_that_makes_no_sense_is_refused(name: str, weight: float) -> None:
    with pytest.raises(ConfigError, match=f"the weight of '{name.removesuffix('_weight')}' is"):
        TuneSettings(2, **{name: weight})


def test_the_card_decides_model_and_input(segmenter: Trained, tmp_path: Path) -> None:
    weights, _ = segmenter
    other = replace(SEGMENTER, optim=replace(SEGMENTER.optim, epochs=9, batch=2, lr=1.0), seed=4)
    other = replace(other, model=replace(other.model, channels=(16, 16)))
    path = write_recipe(other, tmp_path / "recipe.toml")
    recipe = choose_recipe(weights, path)
    assert recipe.model == SEGMENTER.model
    assert (recipe.optim.epochs, recipe.optim.lr, recipe.seed) == (9, 1.0, 4)
    recipe = choose_recipe(weights, path, epochs=2, lr=0.1, batch=6, seed=5)
    assert (recipe.optim.epochs, recipe.optim.lr, recipe.optim.batch) == (2, 0.1, 6)
    assert recipe.seed == 5


def test_the_plain_iteration_is_tuned_whatever_the_recipe_was_trained_with(
    segmenter: Trained, tmp_path: Path
) -> None:
    solver = replace(SEGMENTER.solver, name="broyden", m=4)
    other = replace(SEGMENTER, solver=solver, gradient=replace(SEGMENTER.gradient, m=4))
    recipe = choose_recipe(segmenter[0], write_recipe(other, tmp_path / "recipe.toml"))
    assert (recipe.solver.name, recipe.solver.m, recipe.gradient.m) == ("fixed_point", 0, 0)


def test_without_a_recipe_the_task_decides_the_layout(trained: Trained) -> None:
    task = load_weights(trained[0])[1].model.task
    expected = {"segmentation": "camvid", "classification": "folder"}[task]
    assert choose_recipe(trained[0]).data.layout == expected


def test_a_layout_that_is_none_is_refused(trained: Trained) -> None:
    with pytest.raises(ConfigError, match=r"data\.layout 'voc' is none of camvid, cityscapes"):
        choose_recipe(trained[0], layout="voc")


def test_a_card_without_names_and_colours_will_do(segmenter: Trained, tmp_path: Path) -> None:
    """As imported weights may have."""
    model, card = load_weights(segmenter[0])
    save_weights(model, ModelCard(card.model, card.input), tmp_path / "bare.safetensors")
    recipe = recipe_for(tmp_path / "bare.safetensors", epochs=1)
    tune(tmp_path / "bare.safetensors", segmenter[1], tmp_path / "out", TuneSettings(1), recipe)
    _, tuned_card = load_weights(tmp_path / "out")
    assert (tuned_card.labels, tuned_card.palette) == ((), ())
