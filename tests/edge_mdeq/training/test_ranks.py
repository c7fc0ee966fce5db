"""Several processes take the steps that one would: torchrun with two, by gloo on the CPU."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_data import write_camvid, write_folder
from tiny_training import (
    CLASSIFIER,
    EPOCH_STEPS,
    SEGMENTER,
    log_of,
    run_command,
    scalars,
    write_recipe,
)

from edge_mdeq.training.loop import train
from edge_mdeq.training.recipe import JacobianConfig, LossConfig, Recipe
from edge_mdeq.weights import load_weights

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
EPOCHS = 7
LOSSES = 20  # the first ones, that must agree


def frozen(recipe: Recipe, **optim: object) -> Recipe:
    """The recipe with frozen norms, class weights and all augmentation, for 21 steps."""
    return replace(
        recipe,
        optim=replace(recipe.optim, epochs=EPOCHS, freeze_norm=True, **optim),  # type: ignore[arg-type]
        jacobian=JacobianConfig(weight=0.0),  # its probes are each rank's own
        loss=LossConfig("sqrt", lovasz=0.5 if recipe is SEGMENTER else 0.0),
    )


RECIPES = {
    "segmentation": frozen(SEGMENTER, lr=3e-4),
    "classification": frozen(CLASSIFIER, name="sgd", lr=2e-3, accumulate=2),
}


@pytest.fixture(scope="module", params=RECIPES)
def runs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, str]:
    """The same run by one process and by torchrun's two, and what the latter said."""
    root, recipe = tmp_path_factory.mktemp("ranks"), RECIPES[request.param]
    tiny, write = (
        (SEGMENTER, write_camvid) if request.param == "segmentation" else (CLASSIFIER, write_folder)
    )
    data = write(root / "data")
    # Norms that know the data: with fresh ones all sums are near zero, and rounding decides.
    start = train(replace(tiny, optim=replace(tiny.optim, epochs=6)), data, root / "start")
    train(recipe, data, root / "one", init=start)
    path = write_recipe(recipe, root / "recipe.toml")
    result = run_command(
        "train", path, "--data", data, "--out", root / "two", "--init", start,
        launcher=[*TORCHRUN, "--no-python"], timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return root / "one", root / "two", result.stdout


def test_two_processes_have_the_first_losses_of_one(runs: tuple[Path, Path, str]) -> None:
    one, two = (scalars(out, "train/loss") for out in runs[:2])
    assert len(one) == EPOCHS * EPOCH_STEPS
    assert [step for step, _ in one] == [step for step, _ in two]
    losses = [torch.tensor([value for _, value in values[:LOSSES]]) for values in (one, two)]
    torch.testing.assert_close(losses[1], losses[0], atol=1e-4, rtol=0)
    assert losses[0].std() > 1e-2  # they do differ from step to step


def test_they_end_with_nearly_its_weights(runs: tuple[Path, Path, str]) -> None:
    one, two = (load_file(out / "weights.safetensors") for out in runs[:2])
    assert one.keys() == two.keys()
    for key, value in one.items():
        assert float((two[key] - value).abs().float().mean()) < 1e-3, key


def test_they_log_and_write_once(runs: tuple[Path, Path, str]) -> None:
    _, two, output = runs
    assert [entry["epoch"] for entry in log_of(two)] == list(range(1, EPOCHS + 1))
    assert len(list((two / "tensorboard").iterdir())) == 1
    assert output.count("wrote ") == 1
    assert output.count("next: edge-mdeq export") == 1


def test_they_score_all_of_the_data(runs: tuple[Path, Path, str]) -> None:
    """Not each its half, and not all of it twice."""
    one, two, _ = runs
    _, card = load_weights(two)
    assert card.metrics == pytest.approx(load_weights(one)[1].metrics, abs=0.02)
    assert json.loads((two / "metrics.json").read_text()).keys() == card.metrics.keys()


def test_a_batch_that_the_ranks_cannot_share_is_refused(tmp_path: Path) -> None:
    optim = replace(SEGMENTER.optim, batch=3)
    path = write_recipe(replace(SEGMENTER, optim=optim), tmp_path / "recipe.toml")
    result = run_command(
        "train", path, "--data", write_camvid(tmp_path / "data"), "--out", tmp_path / "run",
        "--devices", "2",
    )  # fmt: skip
    assert result.returncode == 1
    assert "optim.batch 3 does not divide into 1 micro-batches on 2 ranks" in result.stderr
    assert "choose a multiple of 2" in result.stderr
