"""What the tests of tuning share: weights to tune, and how they answer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tiny_data import VOID
from torch import Tensor

from edge_mdeq.model import MDEQ
from edge_mdeq.training.equilibrium import normalise
from edge_mdeq.training.loop import train
from edge_mdeq.training.recipe import Recipe
from edge_mdeq.training.tune import choose_recipe, iterate

Trained = tuple[Path, Path]  # weights, and the data that they were trained on
REFERENCE = 26


def train_on(recipe: Recipe, data: Path, out: Path) -> Path:
    """Weights whose iteration converges, roughly."""
    solver = replace(recipe.solver, evaluations=(4, 6))
    optim = replace(recipe.optim, epochs=10)
    return train(replace(recipe, solver=solver, optim=optim), data, out)


def recipe_for(weights: Path, **changes: Any) -> Recipe:
    """The default recipe with fewer epochs."""
    options: dict[str, Any] = {"epochs": 3, "lr": 3e-3, "batch": 3, "ignore": (VOID,)} | changes
    return choose_recipe(weights, **options)


@torch.no_grad()
def answer(model: MDEQ, image: Tensor, recipe: Recipe, count: int) -> Tensor:
    """Logits after ``count`` plain evaluations from zero."""
    u = model.inject(normalise(image, recipe.input))
    logits: Tensor = model.readout(iterate(model.bind(u), model.zero_state(u), count))
    return logits
