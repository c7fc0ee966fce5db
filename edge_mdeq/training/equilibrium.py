"""From a batch of images to logits and a Jacobian penalty: the part that runs under Fabric."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_mdeq.config import InputConfig
from edge_mdeq.gradients import implicit, jacobian_penalty, phantom
from edge_mdeq.model import MDEQ
from edge_mdeq.solvers import Solver, make_solver, solve
from edge_mdeq.training.recipe import Recipe
from edge_mdeq.training.schedule import Plan

__all__ = ["EquilibriumTask", "forward_solver", "normalise", "read_out", "upsample"]


class EquilibriumTask(nn.Module):
    """Solves for the equilibrium as a plan says and reads it out."""

    def __init__(self, model: MDEQ, recipe: Recipe) -> None:
        super().__init__()
        self.model = model
        self.recipe = recipe
        self.solver, self.backward_solver = forward_solver(recipe), backward_solver(recipe)
        model.cell.recompute = recipe.gradient.recompute

    def forward(self, image: Tensor, plan: Plan) -> tuple[Tensor, Tensor, Tensor]:
        """Images (B, 3, H, W) in 0..1 to logits, penalty () and residual ().

        Logits are (B, classes), or (B, classes, H, W) for segmentation.
        """
        model, gradient, config = self.model, self.recipe.gradient, self.recipe.solver
        u = model.inject(normalise(image, self.recipe.input))
        f = model.bind(u)
        z = model.zero_state(u)
        penalty = residual = torch.zeros((), device=image.device)
        if plan.unrolled:
            z = phantom(f, z, plan.evaluations)
        else:
            with torch.no_grad():
                solution = solve(
                    f, z, self.solver, plan.evaluations, config.tol, config.best, config.stop_mode
                )
            residual = solution.residual.mean()
            if gradient.kind == "implicit":
                z = implicit(f, solution.value, self.backward_solver, gradient.steps, gradient.tol)
            else:
                z = phantom(f, solution.value, gradient.steps, gradient.tau)
        if plan.penalty:
            penalty = jacobian_penalty(f, z, self.recipe.jacobian.samples)
        return read_out(model, z, image.shape[2:]), penalty, residual


def forward_solver(recipe: Recipe) -> Solver:
    """The solver that finds the equilibria."""
    return with_history(recipe.solver.name, recipe.solver.m)


def backward_solver(recipe: Recipe) -> Solver:
    """The solver of the implicit gradient's linear system."""
    return with_history(recipe.gradient.solver or recipe.solver.name, recipe.gradient.m)


def with_history(name: str, m: int) -> Solver:
    """A solver by name that keeps ``m`` of the past, 0 for its default."""
    return make_solver(name, m=m) if m else make_solver(name)


def read_out(model: MDEQ, z: tuple[Tensor, ...], size: torch.Size) -> Tensor:
    """Logits (B, classes); for segmentation at the image's ``size``, (B, classes, H, W)."""
    logits: Tensor = model.readout(z)
    return upsample(logits, size) if model.config.task == "segmentation" else logits


def normalise(image: Tensor, config: InputConfig) -> Tensor:
    """(B, 3, H, W) in 0..1 to zero mean and unit variance per channel, as the config says."""
    mean = image.new_tensor(config.mean).view(1, 3, 1, 1)
    std = image.new_tensor(config.std).view(1, 3, 1, 1)
    return (image - mean) / std


def upsample(logits: Tensor, size: torch.Size) -> Tensor:
    """Logits at 1/4 of the image to the image's size, as the published training does."""
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=True)
