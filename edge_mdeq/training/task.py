"""From a batch of images to logits and a Jacobian penalty: the part that runs under Fabric."""

from __future__ import annotations

from dataclasses import dataclass

import kornia
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_mdeq.config import InputConfig
from edge_mdeq.gradients import implicit, jacobian_penalty, phantom
from edge_mdeq.model import MDEQ
from edge_mdeq.solvers import make_solver, solve
from edge_mdeq.training.data import IGNORED
from edge_mdeq.training.recipe import LossConfig, Recipe

__all__ = ["EquilibriumTask", "Plan", "normalise", "segmentation_loss", "upsample"]


@dataclass(frozen=True)
class Plan:
    """What one training step does: drawn by the loop, so that it is part of the random state."""

    unrolled: bool
    evaluations: int
    penalise: bool


class EquilibriumTask(nn.Module):
    """Solves for the equilibrium as a plan says and reads it out."""

    def __init__(self, model: MDEQ, recipe: Recipe) -> None:
        super().__init__()
        self.model = model
        self.recipe = recipe
        self.solver = make_solver(recipe.solver.name)

    def forward(self, image: Tensor, plan: Plan) -> tuple[Tensor, Tensor, Tensor]:
        """Images (B, 3, H, W) in 0..1 to logits (B, classes, H, W), penalty () and residual ()."""
        model, gradient = self.model, self.recipe.gradient
        u = model.inject(normalise(image, self.recipe.input))
        f = model.bind(u)
        z = model.zero_state(u)
        penalty = residual = torch.zeros((), device=image.device)
        if plan.unrolled:
            z = phantom(f, z, plan.evaluations)
        else:
            with torch.no_grad():
                solution = solve(f, z, self.solver, plan.evaluations)
            residual = solution.residual.mean()
            if gradient.kind == "implicit":
                z = implicit(f, solution.value, self.solver, gradient.steps, gradient.tol)
            else:
                z = phantom(f, solution.value, gradient.steps, gradient.tau)
        if plan.penalise:
            penalty = jacobian_penalty(f, z, self.recipe.jacobian.samples)
        return upsample(model.readout(z), image.shape[2:]), penalty, residual


def normalise(image: Tensor, config: InputConfig) -> Tensor:
    """(B, 3, H, W) in 0..1 to zero mean and unit variance per channel, as the config says."""
    mean = image.new_tensor(config.mean).view(1, 3, 1, 1)
    std = image.new_tensor(config.std).view(1, 3, 1, 1)
    return (image - mean) / std


def upsample(logits: Tensor, size: torch.Size) -> Tensor:
    """Logits at 1/4 of the image to the image's size, as the published training does."""
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=True)


def segmentation_loss(
    logits: Tensor, target: Tensor, weights: Tensor | None, config: LossConfig
) -> Tensor:
    """Cross entropy plus Lovasz-softmax over the labelled pixels.

    Args:
        logits: (B, classes, H, W).
        target: (B, H, W) int64, ``IGNORED`` where unlabelled.
        weights: (classes,) for the cross entropy, or None.
        config: how much of each.
    """
    loss = F.cross_entropy(logits, target, weights, ignore_index=IGNORED)
    if config.lovasz:
        # Every second pixel is enough for the surrogate, and sorting is what it costs.
        logits, target = logits[..., ::2, ::2], target[..., ::2, ::2]
        labelled = target != IGNORED
        flat = logits.permute(1, 0, 2, 3)[:, labelled]  # (classes, N)
        surrogate = kornia.losses.lovasz_softmax_loss(
            flat[None, :, None], target[labelled][None, None]
        )
        loss = loss + config.lovasz * surrogate
    return loss
