"""The published recipes say what was published, copied here from the yaml files' description."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F

from edge_mdeq.model import MDEQ
from edge_mdeq.registry import REGISTRY, lookup
from edge_mdeq.solvers import Broyden
from edge_mdeq.training.equilibrium import EquilibriumTask
from edge_mdeq.training.recipe import Recipe, read_recipe
from edge_mdeq.training.schedule import draw_plan, learning_rate, make_optimizer

FOLDER = Path(__file__).parents[2] / "samples/recipes/published"


class Row(NamedTuple):
    """One row of the published settings, as they name them."""

    forward: int  # F_THRES
    backward: int  # B_THRES
    stop: str
    dropout: float
    pretrain_steps: int
    layers: int
    optimizer: str
    lr: float
    decay: float
    momentum: float | None
    nesterov: bool
    epochs: int
    per_device: int
    devices: int


PUBLISHED = {
    "cifar-tiny":
        Row(18, 20, "rel", 0.25, 3000, 10, "adam", 1e-3, 2.5e-6, None, False, 50, 64, 2),
    "cifar-large":
        Row(18, 20, "rel", 0.3, 20000, 10, "adam", 1e-3, 0, None, False, 220, 32, 4),
    "cifar-large-reg":
        Row(8, 7, "rel", 0.22, 16000, 8, "adam", 1e-3, 0, None, False, 220, 96, 1),
    "imagenet-small":
        Row(26, 27, "abs", 0, 510000, 5, "sgd", 0.05, 5e-5, 0.9, True, 100, 32, 4),
    "imagenet-small-reg":
        Row(14, 14, "abs", 0.02, 510000, 5, "sgd", 0.04, 2e-5, 0.9, True, 100, 32, 4),
    "imagenet-large":
        Row(26, 27, "abs", 0, 510000, 4, "sgd", 0.05, 1e-4, 0.9, True, 100, 32, 4),
    "imagenet-large-reg":
        Row(14, 14, "abs", 0, 510000, 4, "sgd", 0.05, 1e-4, 0.9, True, 100, 32, 4),
    "imagenet-xl":
        Row(26, 27, "abs", 0, 510000, 4, "sgd", 0.05, 1e-4, 0.9, True, 100, 32, 8),
    "cityscapes-small":
        Row(27, 30, "abs", 0.05, 60000, 3, "sgd", 0.01, 2e-4, 0.9, False, 500, 3, 4),
    "cityscapes-large":
        Row(27, 30, "abs", 0.03, 60000, 3, "sgd", 0.01, 3e-4, 0.9, False, 500, 3, 4),
    "cityscapes-xl":
        Row(27, 30, "abs", 0.04, 40000, 3, "sgd", 0.01, 3e-4, 0.9, False, 500, 2, 8),
}  # fmt: skip
# Share of the steps, weight, its growth every 50,000 steps, weight in the warm-up, last epoch.
JACOBIAN = {
    "cifar-large-reg": (0.02, 0.4, 0.0, 0.0, 90),
    "imagenet-small-reg": (0.08, 2.5, 0.1, 0.03, 0),
    "imagenet-large-reg": (0.08, 3.0, 0.1, 0.03, 0),
}
STILL = ("brightness", "contrast", "saturation", "hue")


@pytest.fixture(params=PUBLISHED)
def name(request: pytest.FixtureRequest) -> str:
    value: str = request.param
    return value


@pytest.fixture
def recipe(name: str) -> Recipe:
    return read_recipe(FOLDER / f"{name}.toml")


def test_there_is_one_for_each_published_configuration() -> None:
    published = {name for name, entry in REGISTRY.items() if entry.published}
    assert published == PUBLISHED.keys()
    assert {path.stem for path in FOLDER.glob("*.toml")} == published


def test_model_and_input_are_the_registry_s(name: str, recipe: Recipe) -> None:
    entry = lookup(name)
    assert (recipe.model, recipe.input) == (entry.model, entry.input)
    assert recipe.model.dropout == PUBLISHED[name].dropout
    assert recipe.provenance.name == name
    assert f"recipes/published/{name}.toml" in recipe.provenance.command


def test_optimizer_and_schedule(name: str, recipe: Recipe) -> None:
    row, optim = PUBLISHED[name], recipe.optim
    assert optim.epochs == recipe.epochs == row.epochs
    assert optim.batch == row.per_device * row.devices
    assert (optim.name, optim.lr, optim.weight_decay) == (row.optimizer, row.lr, row.decay)
    if row.optimizer == "sgd":
        assert (optim.momentum, optim.nesterov) == (row.momentum, row.nesterov)
    assert optim.decay_all
    assert (optim.clip_norm, optim.ema_decay) == (0, 0)
    devices = f"--devices {row.devices}"
    assert (devices in recipe.provenance.command) == (row.devices > 1)
    # A cosine over all steps, from the first one, to 1e-6.
    per_epoch = 1000
    steps = per_epoch * row.epochs
    assert learning_rate(recipe, 0, per_epoch) == row.lr
    assert learning_rate(recipe, steps // 2, per_epoch) == pytest.approx((row.lr + 1e-6) / 2)
    assert learning_rate(recipe, steps - 1, per_epoch) == pytest.approx(1e-6, rel=1e-2)


def test_solvers_and_warm_up(name: str, recipe: Recipe) -> None:
    row, solver, gradient = PUBLISHED[name], recipe.solver, recipe.gradient
    published = lookup(name).published
    assert published is not None
    assert (published.steps, published.backward_steps) == (row.forward, row.backward)
    assert (solver.name, solver.m) == ("broyden", row.forward)
    assert solver.evaluations == (row.forward + 1, row.forward + 1)
    assert recipe.validation.evaluations == row.forward + 1
    assert (solver.tol, solver.stop_mode, solver.best) == (1e-3, row.stop, True)
    assert (solver.pretrain_steps, solver.pretrain_evaluations) == (row.pretrain_steps, row.layers)
    assert gradient.kind == "implicit"
    assert (gradient.solver, gradient.m, gradient.steps) == ("broyden", row.backward, row.backward)
    assert gradient.tol == 1e-3


def test_jacobian_regularisation(name: str, recipe: Recipe) -> None:
    jacobian = recipe.jacobian
    if name not in JACOBIAN:
        plans = [draw_plan(recipe, step, 1000) for step in range(0, 10**6, 1000)]
        assert {plan.penalty for plan in plans} == {0}
        return
    frequency, weight, growth, pretrain, stop = JACOBIAN[name]
    assert (jacobian.frequency, jacobian.weight) == (frequency, weight)
    assert (jacobian.growth, jacobian.pretrain_weight) == (growth, pretrain)
    assert jacobian.stop_epoch == stop
    assert (jacobian.samples, jacobian.jitter) == (2, (-2, 1))
    if growth:
        assert jacobian.growth_steps == 50_000
        always = replace(recipe, jacobian=replace(jacobian, frequency=1.0))
        first = recipe.solver.pretrain_steps
        penalties = [draw_plan(always, first + 50_000 * k, 10_009).penalty for k in range(5)]
        assert penalties == pytest.approx([weight + 0.1 * k for k in range(5)])
        assert draw_plan(always, first - 1, 10_009).penalty == pretrain


def test_augmentation_loss_and_preprocessing(name: str, recipe: Recipe) -> None:
    augment, loss, data = recipe.augment, recipe.loss, recipe.data
    assert all(getattr(augment, strength) == 0 for strength in STILL)
    assert (loss.lovasz, loss.label_smoothing) == (0, 0)
    assert augment.flip == (0 if name == "cifar-tiny" else 0.5)
    if name == "cifar-tiny":
        assert (augment.pad, augment.scale, augment.ratio) == (0, (1, 1), (1, 1))
    elif name.startswith("cifar"):
        assert augment.pad == 4
    elif name.startswith("imagenet"):
        assert (augment.pad, augment.scale) == (0, (0.08, 1.0))
        assert augment.ratio == pytest.approx((3 / 4, 4 / 3))
        assert (data.layout, data.fit, round(224 / data.centre)) == ("folder", "crop", 256)
    if not name.startswith("cityscapes"):
        assert loss.class_weights == "none"
        return
    assert augment.zoom == (0.5, 2.1)
    assert augment.crop == ((768, 1024) if name == "cityscapes-xl" else (512, 1024))
    assert (recipe.input.height, recipe.input.width) == (1024, 2048)
    assert (data.layout, data.ignore) == ("cityscapes", (255,))
    assert data.labels == lookup(name).labels
    weights = loss.class_weights
    assert not isinstance(weights, str)
    assert len(weights) == 19
    assert sum(weights) / 19 == pytest.approx(1, abs=0.01)  # they even frequencies out
    assert min(weights) == weights[data.labels.index("road")]


def test_a_narrow_model_takes_steps_by_it(recipe: Recipe) -> None:
    """One unrolled and one solved, the latter regularised where the recipe ever is."""
    model = recipe.model
    narrow = replace(
        model, channels=(8,) * model.scales, head_channels=(4,) * len(model.head_channels)
    )
    side = 2 * model.stride
    jacobian = replace(recipe.jacobian, frequency=min(1.0, 100 * recipe.jacobian.frequency))
    recipe = replace(recipe, model=narrow, jacobian=jacobian)
    torch.manual_seed(0)
    task = EquilibriumTask(MDEQ(narrow), recipe).train()
    assert task.solver == Broyden(recipe.solver.m)
    optimizer = make_optimizer(task, recipe.optim)
    before = [p.detach().clone() for p in task.parameters()]
    for step in (0, recipe.solver.pretrain_steps):
        plan = draw_plan(recipe, step, 100_000)
        assert plan.unrolled == (step == 0)
        logits, penalty, residual = task(torch.rand(2, 3, side, side), plan)
        target = torch.randint(model.classes, (2, *logits.shape[2:]))
        loss = F.cross_entropy(logits, target) + plan.penalty * penalty
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert loss.isfinite()
        assert bool(residual > 0) == (step > 0)
        assert bool(penalty > 0) == (plan.penalty > 0)
    assert (plan.penalty > 0) == (recipe.provenance.name in JACOBIAN)
    assert all(p.isfinite().all() for p in task.parameters())
    assert any(not torch.equal(a, p) for a, p in zip(before, task.parameters(), strict=True))
